"""Judges whose models two worker processes hold: the same results in the same order, faults of rows, and kills."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from dt2it_pipeline.config.base import DEMO_BASE_MODEL
from dt2it_pipeline.config.paths import model_path
from dt2it_pipeline.config.sections.annotation import AnnotationSettings
from dt2it_pipeline.config.sections.judging import JudgingSettings
from dt2it_pipeline.config.sections.ray import RaySettings
from dt2it_pipeline.construct import judge, restyle
from dt2it_pipeline.curate.annotation import annotate
from dt2it_pipeline.demo.rendering import draw
from dt2it_pipeline.engines.launch import shards
from dt2it_pipeline.engines.launch.launcher import Resources, ShardsError
from dt2it_pipeline.engines.launch.local_shards import LocalShards
from dt2it_pipeline.judges import shared
from dt2it_pipeline.judges.ask import NO_REPLY, Tally, Unusable
from dt2it_pipeline.judges.likelihood.model import LikelihoodModel
from dt2it_pipeline.storage import atomic, records, schemas
from dt2it_pipeline_tests.support.construct_world import judging_job, prompt_row, response_rows
from dt2it_pipeline_tests.support.fault_server import FaultServer, serving
from dt2it_pipeline_tests.support.restyle_jobs import SHAPES, restyling
from dt2it_pipeline_tests.support.tolerance import log_likelihood_tolerance

COLORS = ("red", "blue", "green", "teal", "black", "yellow", "gray", "brown")
QUESTION = "what shape is in the image?"
DAMAGED = 3  # the place of the prompt whose image cannot be read
TOKENS = 160  # more than any prompt with its answer has here


@pytest.fixture
def prompts(tmp_path: Path) -> list[dict[str, Any]]:
    """A question about a drawn shape of each colour; the image of one is damaged."""
    found = []
    for place, color in enumerate(COLORS):
        shape = SHAPES[place % 3]
        Image.fromarray(draw(color, shape, random.Random(0))).save(tmp_path / f"{color}.png")
        found.append(prompt_row(tmp_path, color, QUESTION, shape))
    damaged = tmp_path / f"{COLORS[DAMAGED]}.png"
    damaged.write_bytes(damaged.read_bytes()[:40])
    return found


def texts_of(prompt: Mapping[str, Any]) -> list[str]:
    return [f"It is a {shape}." for shape in SHAPES]


class Watch:
    """A reporter that notes how many child processes there are at most, and may kill one."""

    def __init__(self, kills: bool = False) -> None:
        self.most, self._kills = 0, kills

    def __call__(self, progress: Mapping[str, Any]) -> None:
        children = multiprocessing.active_children()
        self.most = max(self.most, len(children))
        if self._kills and children:
            self._kills = False
            os.kill(children[0].pid or 0, signal.SIGKILL)


def table(folder: Path, name: str) -> pa.Table:
    return atomic.read_parquet(folder / f"{name}.parquet", name)


@pytest.mark.numerics
def test_two_processes_judge_like_one_and_a_damaged_image_costs_its_own_prompt(
    prompts: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "_READ", 8)
    responses = [row for prompt in prompts for row in response_rows(prompt, *texts_of(prompt))]
    likely = {"kind": "likelihood", "name": "likely", "measure": "yes"}
    settings = JudgingSettings.model_validate(
        {"judges": [likely], "modes": ["listwise", "pointwise", "pairwise"], "orders": 2}
    )
    job = judging_job(tmp_path, prompts, responses, settings)
    judge.run(job, lambda progress: None)
    own = {"cache": tmp_path / "two.sqlite", "output": tmp_path / "two", "processes": 2}
    both, watch = job.model_copy(update=own), Watch()
    summary = judge.run(both, watch)
    assert watch.most == 2
    assert not multiprocessing.active_children()
    one, two = (table(folder, "judgements") for folder in (job.output, both.output))
    assert one.num_rows == len(COLORS) * 3 * (2 + 1 + 4)
    assert one.drop_columns(["score", "criteria"]).equals(two.drop_columns(["score", "criteria"]))
    model = LikelihoodModel(model_path(DEMO_BASE_MODEL), 2048)
    within = 10 * log_likelihood_tolerance(model._model, TOKENS, 1)
    for first, second in zip(one["score"].to_pylist(), two["score"].to_pylist(), strict=True):
        assert (first is None) == (second is None)
        assert first is None or first == pytest.approx(second, abs=within)
    assert table(both.output, "quarantine").equals(table(job.output, "quarantine"))
    lost = {row["row_id"] for row in table(both.output, "quarantine").to_pylist()}
    assert lost == {row["response_id"] for row in responses if row["prompt_id"] == prompts[DAMAGED]["prompt_id"]}
    assert summary["rows_quarantined"] == 3
    # What is kept is not asked for again: of the second run, only what met an error.
    again = judge.run(both.model_copy(update={"processes": 1}), Watch())
    assert again["judges"]["likely"]["looked_up"] == 11 * (len(COLORS) - 1)
    assert again["judges"]["likely"]["asked"] == 0


def annotating(tmp_path: Path, prompts: Sequence[Mapping[str, Any]], **judge: Any) -> annotate.AnnotateJob:
    """A job over two pairs per prompt, in shards of two pairs."""
    pairs = []
    for prompt in prompts:
        right = prompt["reference"]
        for other in [shape for shape in SHAPES if shape != right]:
            sides = (f"It is a {right}.", f"It is a {other}.")
            pairs.append(records.make_pair(prompt["prompt_id"], *sides, source="test"))
    atomic.write_parquet(schemas.table(prompts, "prompts"), tmp_path / "prompts.parquet")
    atomic.write_parquet(schemas.table(pairs, "pairs"), tmp_path / "pairs.parquet")
    described = {"name": "base", "model": model_path(DEMO_BASE_MODEL)} | judge
    return annotate.AnnotateJob(
        pairs=tmp_path / "pairs.parquet",
        prompts=tmp_path / "prompts.parquet",
        media_root=tmp_path,
        output=tmp_path / "votes.parquet",
        work=tmp_path / "work",
        cache=tmp_path / "one.sqlite",
        settings=AnnotationSettings.model_validate({"judges": [described], "batch_pairs": 2}),
        seed=0,
    )


def by_two(job: annotate.AnnotateJob, tmp_path: Path) -> annotate.AnnotateJob:
    """The same job by two processes, in a folder of its own."""
    folder = tmp_path / "two"
    own = {"work": folder / "work", "output": folder / "votes.parquet", "cache": folder / "two.sqlite"}
    return job.model_copy(update={**own, "processes": 2})


@pytest.mark.heavy
def test_two_processes_vote_like_one_and_a_killed_run_goes_on(prompts: list[dict[str, Any]], tmp_path: Path) -> None:
    job = annotating(tmp_path, prompts, baselines=2)
    one = annotate.run(job, lambda progress: None)
    both = by_two(job, tmp_path)
    with pytest.raises(
        ShardsError, match=r"the worker process [0-9]+ ended with exit code -9 at shard [0-9]+ \(signal SIGKILL"
    ):
        annotate.run(both, Watch(kills=True))
    assert not multiprocessing.active_children()
    done = {path: path.stat().st_mtime_ns for path in both.work.glob("*/*/votes.parquet")}
    assert 0 < len(done) < len(prompts)
    watch = Watch()
    two = annotate.run(both, watch)
    assert watch.most == 2
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert both.output.read_bytes() == job.output.read_bytes()
    aside = "votes.quarantine.parquet"
    assert both.output.with_name(aside).read_bytes() == job.output.with_name(aside).read_bytes()
    counts = ("pairs", "votes", "calls", "unusable", "verdicts")
    assert {key: one[key] for key in counts} == {key: two[key] for key in counts}
    assert (one["unusable"], one["calls"]) == (2, 2 * (len(prompts) - 1))


@pytest.mark.heavy
def test_two_engines_of_an_answering_judge_vote_like_one(prompts: list[dict[str, Any]], tmp_path: Path) -> None:
    job = annotating(tmp_path, prompts, kind="answer", baselines=1)
    one = annotate.run(job, lambda progress: None)
    both, watch = by_two(job, tmp_path), Watch()
    two = annotate.run(both, watch)
    assert watch.most == 2
    assert both.output.read_bytes() == job.output.read_bytes()
    assert one["unusable"] == two["unusable"] == 2
    assert one["asked"]["base"]["asked"] <= two["asked"]["base"]["asked"]  # both may ask about the same other image
    words = {row["words"] for row in table(tmp_path, "votes").to_pylist()}
    assert any(shape in (said or "") for said in words for shape in SHAPES)
    # Kept answers serve a further run, whoever asked for them.
    elsewhere = both.model_copy(update={"work": tmp_path / "three", "output": tmp_path / "three" / "votes.parquet"})
    third = annotate.run(elsewhere, Watch())
    assert (third["asked"]["base"]["asked"], third["calls"]) == (0, 0)
    assert elsewhere.output.read_bytes() == job.output.read_bytes()


def same_tables(job: restyle.RestyleJob, tmp_path: Path, report: Callable[[Mapping[str, Any]], None]) -> None:
    """Rewrite by one process and by two, and compare what they write."""
    one = restyle.run(job, lambda progress: None)
    both = job.model_copy(update={"output": tmp_path / "two", "cache": tmp_path / "two.sqlite", "processes": 2})
    two = restyle.run(both, report)
    assert {key: one[key] for key in ("rows_in", "rows_out")} == {key: two[key] for key in ("rows_in", "rows_out")}
    for name in ("pairs", "responses", "quarantine"):
        assert (both.output / f"{name}.parquet").read_bytes() == (job.output / f"{name}.parquet").read_bytes()


@pytest.mark.heavy
def test_two_processes_compare_rewritten_texts_like_one(
    prompts: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "_READ", 4)

    def rewrite(words: str, _: list[str]) -> str:
        shape = next(shape for shape in SHAPES if shape in words.split("=== ANSWER")[1])
        return '{"text": "The shape is a %s."}' % ("rectangle" if shape == "triangle" else shape)

    with serving(FaultServer({}, rewrite)) as server:
        rewriter = {"kind": "endpoint", "name": "rewriter", "base_url": server.url, "model": "m", "attempts": 1}
        check = {"kind": "likelihood", "name": "check", "asks": "right"}
        told = [row | {"reference": None} for row in prompts]
        job = restyling(tmp_path, told, rewriter=rewriter, check=check)
        watch = Watch()
        same_tables(job, tmp_path, watch)
    assert watch.most == 2
    reasons = [row["reason"] for row in table(tmp_path / "two", "quarantine").to_pylist()]
    assert restyle.DRIFTED in reasons and restyle.FAILED in reasons


@pytest.mark.heavy
def test_two_engines_of_a_rewriter_write_what_one_writes(
    prompts: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "_READ", 4)
    monkeypatch.setattr(shared, "_WRITTEN", 4)
    rewriter = {"kind": "vllm", "name": "rewriter", "max_model_len": 512, "max_new_tokens": 48, "attempts": 1}
    watch = Watch()
    same_tables(restyling(tmp_path, prompts, rewriter=rewriter, check={"kind": "words"}), tmp_path, watch)
    assert watch.most == 2


def test_on_gpus_no_more_processes_hold_a_judge_than_have_gpus_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def resources(seen: int, processes: int, gpus: int) -> Resources:
        monkeypatch.setattr(shards, "visible_gpus", lambda: [str(number) for number in range(seen)])
        launcher = shards.model_launcher(None, processes, gpus)
        assert isinstance(launcher, LocalShards)
        return launcher.resources

    assert [resources(*given).processes for given in ((0, 2, 1), (1, 2, 1), (8, 8, 1), (8, 8, 4), (8, 2, 1))] == [
        2, 1, 8, 2, 2,
    ]  # fmt: skip
    assert resources(8, 8, 4).gpus == 4


def test_what_workers_counted_adds_up_and_a_reply_is_a_better_example_than_an_error() -> None:
    first = Tally(calls=3, judged=1, no_reply=2, prompt_tokens=10, example=Unusable("pairwise", NO_REPLY, "late"))
    second = Tally(calls=2, judged=1, unusable=1, asked_again=1, example=Unusable("pairwise", "not JSON", "I think"))
    first.add(second)
    first.add(Tally(calls=1, judged=1))
    assert first == Tally(
        calls=6, judged=3, unusable=1, no_reply=2, asked_again=1, prompt_tokens=10, example=second.example
    )


def test_requests_about_a_prompt_go_to_one_worker(prompts: list[dict[str, Any]]) -> None:
    from dt2it_pipeline.judges.protocol import POINTWISE, JudgeRequest

    requests = [JudgeRequest(prompt, (text,), POINTWISE) for prompt in prompts for text in texts_of(prompt)]
    made = shared._shards(requests, 4)
    assert [place for shard in made for place in shard] == list(range(len(requests)))
    assert [len(shard) for shard in made] == [6, 6, 6, 6]


@pytest.mark.heavy
def test_on_ray_an_answering_judge_votes_the_same_and_its_replies_are_kept_by_this_process(
    prompts: list[dict[str, Any]], tmp_path: Path
) -> None:
    """In a process of its own, whose Ray ends with it."""
    job = annotating(tmp_path, prompts, kind="answer", baselines=1)
    annotate.run(job, lambda progress: None)
    folder = tmp_path / "ray"
    paths = {"work": folder / "work", "output": folder / "votes.parquet", "cache": folder / "ray.sqlite"}
    there = job.model_copy(update={**paths, "ray": RaySettings(workers=2)})
    folder.mkdir()
    there.write(folder / "job.json")
    command = [sys.executable, "-m", "dt2it_pipeline.engines.jobs", str(folder / "job.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert there.output.read_bytes() == job.output.read_bytes()
    assert json.loads(done.stdout.splitlines()[-1])["asked"]["base"]["asked"] > 0
    # The next run finds what the workers of this one sent home.
    own = {"work": tmp_path / "again", "output": tmp_path / "again" / "votes.parquet", "ray": None}
    again = annotate.run(there.model_copy(update=own), lambda progress: None)
    assert (again["asked"]["base"]["asked"], again["calls"]) == (0, 0)
