"""Training on lists of answers: each is one sequence, whatever its loss, and nothing of it is on both sides."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dt2it_pipeline.reward.data.lists import TrainingExamples
from dt2it_pipeline.reward.reward_model import RewardModel
from dt2it_pipeline.reward.training.job import TrainJob
from dt2it_pipeline.reward.training.step_metrics import ExampleSizes, Tally
from dt2it_pipeline.reward.training.train import run
from dt2it_pipeline.reward.training.training_data import TrainingData
from dt2it_pipeline.storage import atomic
from dt2it_pipeline_tests.support.list_worlds import answers, flipped, listed_job, on_pairs, ranking_probability
from dt2it_pipeline_tests.support.tolerance import score_tolerance
from dt2it_pipeline_tests.support.training_jobs import changed, log_of, train_several

TOKENS = 128  # more than a prompt with one answer has
STILL = {"max_steps": 1, "learning_rate": 1e-12, "logging_steps": 1}  # the first loss, of weights that stay
LUCE = {"loss": {"lists": "plackett_luce"}}


def scores_of(job: TrainJob, folder: Path, lists: int = 8) -> tuple[list[list[float]], float]:
    """Scores of every list's answers, from best to worst by its labels, and how exact they are."""
    model = RewardModel.from_pretrained(folder)
    prompts = atomic.read_parquet(job.prompts, "prompts").to_pylist()[:lists]
    given = [answers(4, number) for number in range(lists)]
    scores = [part.tolist() for part in model.score(prompts, given, media_root=job.media_root)]
    return scores, score_tolerance(model, TOKENS)


def first(job: TrainJob, name: str, folder: Path, **settings: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The first row of the log, of a step over all lists, and the summary."""
    this = changed(job, name, folder, **{"global_batch_size": 48, "micro_batch_size": 64} | STILL | settings)
    summary = dict(run(this, [].append))
    return log_of(this.output)[0], summary


@pytest.mark.numerics
def test_losses_are_those_of_a_plain_loop_over_scores(job: TrainJob, tmp_path: Path) -> None:
    job = listed_job(job, tmp_path)
    row, summary = first(job, "luce", tmp_path, **LUCE)
    scores, within = scores_of(job, tmp_path / "luce")
    logs = [-math.log(ranking_probability(own)) for own in scores]
    assert row["loss"] == pytest.approx(sum(logs) / (8 * 3), abs=within)  # three choices in a list of four
    margins = [own[a] - own[b] for own in scores for a, b in itertools.combinations(range(4), 2)]
    assert row["accuracy"] == sum(margin > 0 for margin in margins) / 48
    assert (summary["pairs"], summary["samples_seen"], summary["steps"]) == (48, 48, 1)
    assert {name: value for name, value in summary.items() if "list" in name} == {
        "lists": 8, "lists_complete": 8, "lists_with_gaps": 0, "lists_contradictory": 0, "list_pairs": 48
    }  # fmt: skip

    pairwise, _ = first(job, "pairwise", tmp_path)
    assert pairwise["loss"] == pytest.approx(np.mean(np.logaddexp(0, -np.array(margins))), abs=within)
    # One step over everything is the same whether pairs know of their lists or not: so is each parameter's gradient.
    alone, known = first(listed_job(job, tmp_path / "alone", named=False), "alone", tmp_path)
    assert "lists" not in known and known["padding_share"] != summary["padding_share"]
    for name in ("loss", "grad_norm"):
        assert pairwise[name] == pytest.approx(alone[name], rel=1e-4)
    for name, settings in {
        "separate": {"shared_prefix": False}, "several": {"micro_batch_size": 4}, "tokens": {"micro_batch_tokens": 200},
        "read ahead": {"loader_workers": 1, "cache_vision": False},
    }.items():  # fmt: skip
        again, _ = first(job, name, tmp_path, **LUCE | settings)
        assert again["loss"] == pytest.approx(row["loss"], abs=within) and again["accuracy"] == row["accuracy"]
        assert again["grad_norm"] == pytest.approx(row["grad_norm"], rel=1e-4)


@pytest.mark.numerics
def test_what_curation_left_of_a_list_is_what_is_learned(job: TrainJob, tmp_path: Path) -> None:
    """One list whole, one with a pair dropped, one with neighbours flipped, one that goes round in a circle."""
    whole = listed_job(job, tmp_path, lists=4)
    rows = atomic.read_parquet(whole.pairs, "pairs").to_pylist()
    lists = [rows[start : start + 6] for start in range(0, 24, 6)]  # pairs 01 02 03 12 13 23 of each
    del lists[1][3]
    lists[2][0] = flipped(lists[2][0])
    lists[3][2] = flipped(lists[3][2])
    assert lists[2][0]["chosen_rank"] == 2 and lists[2][0]["rejected_rank"] == 1
    left = on_pairs(job, [pair for own in lists for pair in own], tmp_path / "left")
    row, summary = first(left, "luce", tmp_path, global_batch_size=23, **LUCE)
    assert [summary[f"lists_{kind}"] for kind in ("complete", "with_gaps", "contradictory")] == [2, 1, 1]
    scores, within = scores_of(job, tmp_path / "luce", 4)

    def choice(of: int, better: int, *worse: int) -> float:
        own = scores[of]
        return float(np.logaddexp.reduce([own[better], *(own[each] for each in worse)]) - own[better])

    wanted = [choice(0, 0, 1, 2, 3), choice(0, 1, 2, 3), choice(0, 2, 3)]
    wanted += [choice(1, 0, 1, 2, 3), choice(1, 1, 3), choice(1, 2, 3)]
    wanted += [choice(2, 1, 0, 2, 3), choice(2, 0, 2, 3), choice(2, 2, 3)]
    wanted += [choice(3, *pair) for pair in ((0, 1), (0, 2), (3, 0), (1, 2), (1, 3), (2, 3))]
    assert row["loss"] == pytest.approx(np.mean(wanted), abs=within)


def test_a_list_is_held_out_whole_and_a_killed_run_goes_on(
    job: TrainJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[TrainingData] = []
    build = TrainingData.__init__

    def watched(self: TrainingData, *given: Any, **named: Any) -> None:
        build(self, *given, **named)
        made.append(self)

    monkeypatch.setattr(TrainingData, "__init__", watched)
    job = listed_job(job, tmp_path)
    settings = LUCE | {"validation_pairs": 7, "eval_steps": 2, "keep": "best", "epochs": 6.0, "save_steps": 2}
    whole = changed(job, "whole", tmp_path, **settings)
    summary = run(whole, [].append)
    assert summary["validation_pairs"] == 12  # two lists
    rows, data = atomic.read_parquet(job.pairs, "pairs").to_pylist(), made[0]
    sides = [{rows[pair]["list_id"] for pair in data.examples.pairs_of(part)} for part in (data.trained, data.held_out)]
    assert len(sides[0]) == 6 and len(sides[1]) == 2 and not sides[0] & sides[1]
    # Batches of eight pairs hold one list of six; six epochs of six lists.
    assert summary["steps"] == 36 and summary["samples_seen"] == 36 * 6

    class Killed(Exception):
        pass

    def stop(progress: Any) -> None:
        if progress.get("unit") == "steps" and progress["done"] == 20:
            raise Killed

    broken = changed(job, "broken", tmp_path, **settings)
    with pytest.raises(Killed):
        run(broken, stop)
    prepared = {file: file.stat().st_mtime_ns for file in (broken.work / "prepared").rglob("*.bin")}
    resumed = run(broken, [].append)
    assert resumed["resumed_from_step"] == 18 and resumed["weights_sha256"] == summary["weights_sha256"]
    assert prepared and {file: file.stat().st_mtime_ns for file in prepared} == prepared
    # Another loss is another training, from the same prepared table.
    other = run(changed(job, "broken", tmp_path, **settings | {"loss": {"lists": "pairwise"}}), [].append)
    assert other["resumed_from_step"] == 0 and other["weights_sha256"] != summary["weights_sha256"]
    assert {file: file.stat().st_mtime_ns for file in prepared} == prepared


def test_a_list_whose_image_is_gone_is_left_out_whole(job: TrainJob, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(job.media_root, tmp_path / "media")
    job = listed_job(job.model_copy(update={"media_root": tmp_path / "media"}), tmp_path)
    prompts = atomic.read_parquet(job.prompts, "prompts").to_pylist()[:8]
    shown = next(prompt["media"][0]["path"] for prompt in prompts if prompt["media"])
    hit = sum(any(medium["path"] == shown for medium in prompt["media"]) for prompt in prompts)
    file = tmp_path / "media" / shown

    def spoil(progress: Any) -> None:
        file.write_bytes(file.read_bytes()[:70])

    job = changed(job, "out", tmp_path, cache_vision=False, logging_steps=1, save_steps=4, loader_workers=0, **LUCE)
    summary = run(job, spoil)
    assert 0 < hit < 8 and summary["pairs"] == 48 - 6 * hit and summary["pairs_quarantined"] == 6 * hit
    aside = atomic.read_parquet(job.output / "quarantine.parquet", "quarantine").to_pylist()
    assert {row["reason"] for row in aside} == {"unreadable image"} and len(
        {row["pair_id"] for row in aside}
    ) == 6 * hit


def test_what_is_not_a_number_is_named_by_its_pairs() -> None:
    pairs = np.array([[0, 0, 1], [0, 0, 2], [0, 1, 2], [-1, 5, 6], [-1, 7, 8]])
    prepared: Any = SimpleNamespace(
        lists=lambda: pairs[:, 0], prompt_ranks=lambda: np.zeros(5, np.int64), responses=lambda: pairs[:, 1:]
    )
    nan, inf = math.nan, math.inf
    for loss, losses in (("pairwise", [0.0, 0.0, 0.0]), ("plackett_luce", [0.0, 0.0])):
        examples = TrainingExamples(prepared, loss)
        counts = examples.response_counts
        sizes = ExampleSizes(np.full(3, 10), 5 * counts, np.full(3, 5), counts, True)

        def bad(run: list[int], margins: list[float], losses: list[float], these: Any = (examples, sizes)) -> list[int]:
            tally = Tally(*these)
            tally.add(np.array(run), torch.tensor(margins), torch.tensor(losses))
            sums = tally.sums()
            assert sums[2] == len(margins) and sums[6] == len(losses) and (sums[3] > 0) == bool(tally.bad())
            assert sums[5] == 10 * len(run) + 5 * int(these[0].response_counts[run].sum())
            return tally.bad()

        assert bad([0, 2], [1, 1, 1, 1], [*losses, 0.0]) == []
        assert bad([2, 0], [nan, 1, nan, 1], [*losses, 0.0]) == [4, 1]
        assert bad([1, 2], [1, 1], [0.0, inf]) == [4]
        # A choice has no pair of its own: all that it may be of are named.
        assert bad([0], [1, 1, 1], [inf, *losses[1:]]) == ([0] if loss == "pairwise" else [0, 1, 2])


@pytest.mark.heavy
@pytest.mark.numerics
def test_two_ranks_train_lists_as_one_does(job: TrainJob, tmp_path: Path) -> None:
    """Seven lists and three pairs over two ranks, in steps of any size, each to the loss and gradient of one rank."""
    lists = atomic.read_parquet(listed_job(job, tmp_path, lists=7).pairs, "pairs").to_pylist()
    alone = atomic.read_parquet(job.pairs, "pairs").to_pylist()[-3:]
    job = on_pairs(job, [*lists, *alone], tmp_path / "both")
    settings = LUCE | {"global_batch_size": 16, "max_steps": 4, "logging_steps": 1, "micro_batch_tokens": 300}
    two = changed(job, "two", tmp_path, **settings | {"processes": 2})
    train_several([two], tmp_path / "jobs.json", 2)
    one = changed(job, "one", tmp_path, **settings)
    run(one, [].append)
    logs = [log_of(each.output) for each in (one, two)]
    assert len(logs[0]) == len(logs[1]) == 4
    for ours, theirs in zip(*logs, strict=True):
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-3) and theirs["accuracy"] == ours["accuracy"]
        assert theirs["grad_norm"] == pytest.approx(ours["grad_norm"], rel=1e-2)
    assert logs[1][0]["loss"] == pytest.approx(logs[0][0]["loss"], rel=1e-5)
