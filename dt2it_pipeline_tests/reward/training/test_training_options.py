"""What a recipe may ask of training beside the default, in one process: each option against what it promises."""

from __future__ import annotations

import json
import resource
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dt2it_pipeline.reward.errors import TrainingError
from dt2it_pipeline.reward.reward_model import RewardModel
from dt2it_pipeline.reward.training.job import TrainJob
from dt2it_pipeline.reward.training.train import run, weights_digest
from dt2it_pipeline.storage import atomic, schemas
from dt2it_pipeline_tests.support.tolerance import score_tolerance
from dt2it_pipeline_tests.support.training_jobs import changed, log_of

TOKENS = 128  # more than any sequence of the job has


def strengths(job: TrainJob, folder: Path, *values: float | None) -> TrainJob:
    """The job with these strengths, repeated over its pairs."""
    pairs = atomic.read_parquet(job.pairs, "pairs").to_pylist()
    rows = [row | {"strength": values[number % len(values)]} for number, row in enumerate(pairs)]
    atomic.write_parquet(schemas.table(rows, "pairs"), folder / "strong.parquet")
    return job.model_copy(update={"pairs": folder / "strong.parquet"})


def losses(job: TrainJob, name: str, folder: Path, **settings: Any) -> list[float]:
    this = changed(job, name, folder, **{"max_steps": 4} | settings)
    run(this, [].append)
    return [row["loss"] for row in log_of(this.output)]


@pytest.mark.numerics
def test_a_token_budget_changes_rounding_alone(job: TrainJob, tmp_path: Path) -> None:
    pairs = losses(job, "pairs", tmp_path)
    # A loss moves by half the errors of two scores at most; four steps add the roundings of one after the other.
    within = 4 * score_tolerance(RewardModel.from_pretrained(tmp_path / "pairs"), TOKENS)
    assert losses(job, "tokens", tmp_path, micro_batch_tokens=100) == pytest.approx(pairs, abs=within, rel=0)
    single = changed(job, "single", tmp_path, micro_batch_tokens=16, max_steps=2)
    assert run(single, [].append)["padding_share"] == 0
    assert run(changed(job, "wide", tmp_path, micro_batch_size=8, max_steps=2), [].append)["padding_share"] > 0.02
    wide = changed(job, "separate", tmp_path, micro_batch_size=8, max_steps=2, shared_prefix=False)
    assert run(wide, [].append)["padding_share"] > 0.02


def test_losses_of_the_recipe_reach_the_training(job: TrainJob, tmp_path: Path) -> None:
    plain = losses(job, "plain", tmp_path)
    strong = strengths(job, tmp_path, 2.0)
    assert losses(strong, "ignored", tmp_path) == plain
    assert losses(strong, "margin", tmp_path, loss={"kind": "margin"})[0] > plain[0] + 0.5
    assert losses(strong, "soft", tmp_path, loss={"kind": "soft_label"}) != plain
    assert losses(job, "nobody", tmp_path, loss={"kind": "margin"}) == plain
    centred = losses(job, "centred", tmp_path, loss={"center_rewards_coefficient": 10.0})
    assert centred[0] > plain[0]


def test_pairs_without_strength_are_counted_and_infinite_ones_quarantine(job: TrainJob, tmp_path: Path) -> None:
    mixed = strengths(job, tmp_path, 1.0, None, float("nan"), float("inf"))
    summary = run(changed(mixed, "out", tmp_path, loss={"kind": "margin"}, max_steps=1), [].append)
    assert summary["pairs_quarantined"] == summary["pairs_without_strength"] / 2 == 6
    aside = atomic.read_parquet(tmp_path / "out" / "quarantine.parquet", "quarantine").to_pylist()
    assert {row["reason"] for row in aside} == {"strength is infinite"}


@pytest.mark.numerics
def test_the_best_weights_are_kept(job: TrainJob, tmp_path: Path) -> None:
    reports: list[Mapping[str, Any]] = []
    settings = {"validation_pairs": 6, "eval_steps": 1, "keep": "best", "learning_rate": 0.1}  # far too high
    this = changed(job, "best", tmp_path, **settings)
    summary = run(this, reports.append)
    rows = log_of(this.output, "validation_log")
    assert [row["step"] for row in rows] == list(range(1, summary["steps"] + 1))
    best = min(rows, key=lambda row: row["loss"])
    assert best["step"] < summary["steps"]
    assert (summary["kept_step"], summary["validation_loss"]) == (best["step"], best["loss"])
    assert summary["validation_pairs"] == rows[0]["pairs"] >= 6
    assert summary["samples_seen"] == 3 * (summary["pairs"] - summary["validation_pairs"])
    assert [r["validation_loss"] for r in reports if "validation_loss" in r] == [row["loss"] for row in rows]

    again = changed(this, "again", tmp_path, learning_rate=1e-12, max_steps=1)
    run(again.model_copy(update={"base_model": str(this.output)}), [].append)
    within = score_tolerance(RewardModel.from_pretrained(this.output), TOKENS)
    assert log_of(again.output, "validation_log")[0]["loss"] == pytest.approx(best["loss"], abs=within, rel=0)

    last = changed(job, "last", tmp_path, **settings | {"keep": "last"})
    assert run(last, [].append)["validation_loss"] == rows[-1]["loss"]
    assert log_of(last.output, "validation_log") == rows
    assert weights_digest(Path(last.output)) != weights_digest(this.output)


def test_holding_out_every_prompt_is_refused(job: TrainJob, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no pair is left to train on: 24 of 24 pairs are held out"):
        run(changed(job, "out", tmp_path, validation_pairs=24), [].append)


def test_event_files_hold_every_point(job: TrainJob, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    this = changed(job, "out", tmp_path, tensorboard=True, validation_pairs=4, eval_steps=3)
    run(this, [].append)
    events = EventAccumulator(str(tmp_path / "out" / "tensorboard")).Reload()
    for tag, name in (("train/loss", "training_log"), ("validation/loss", "validation_log")):
        rows = log_of(this.output, name)
        assert [point.step for point in events.Scalars(tag)] == [row["step"] for row in rows]
        assert [point.value for point in events.Scalars(tag)] == pytest.approx([row["loss"] for row in rows])


@pytest.mark.parametrize(("setting", "package"), [("wandb_project", "wandb"), ("mlflow_experiment", "mlflow-skinny")])
def test_a_missing_package_is_named_with_its_setting(
    job: TrainJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, package: str
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    wanted = rf"training\.{setting} is set, but the package {package} is not installed"
    with pytest.raises(TrainingError, match=wanted):
        run(changed(job, "out", tmp_path, **{setting: "rewards"}), [].append)
    assert not (tmp_path / "work-out").exists()


def test_wandb_is_told_every_row(job: TrainJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is not among the dependencies: a recorder with its interface stands in."""
    logged: list[tuple[int, dict[str, float]]] = []
    made: dict[str, Any] = {}

    def init(**given: Any) -> Any:
        made.update(given)
        return SimpleNamespace(log=lambda values, step: logged.append((step, values)), finish=lambda: None)

    fake = SimpleNamespace(init=init, teardown=lambda: None, __spec__=SimpleNamespace(name="wandb"))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    run(changed(job, "out", tmp_path, wandb_project="rewards", max_steps=4), [].append)
    assert (made["project"], made["name"], made["resume"]) == ("rewards", "test", "allow")
    assert [step for step, _ in logged] == [2, 4]
    assert logged[0][1]["train/loss"] == log_of(tmp_path / "out")[0]["loss"]


def test_wandb_offline_leaves_its_files_in_the_checkpoint(
    job: TrainJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run(changed(job, "out", tmp_path, wandb_project="rewards", max_steps=4), [].append)
    (file,) = (tmp_path / "out" / "wandb").glob("offline-run-*/run-*.wandb")
    content = file.read_bytes()
    assert b"train/loss" in content and b"rewards" in content


def test_mlflow_has_every_point_in_files_of_the_checkpoint(
    job: TrainJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run(changed(job, "out", tmp_path, mlflow_experiment="rewards", max_steps=4), [].append)
    (file,) = (tmp_path / "out" / "mlruns").glob("*/*/metrics/train/loss")
    points = [line.split() for line in file.read_text(encoding="utf-8").splitlines()]
    rows = log_of(tmp_path / "out")
    assert [int(step) for _, _, step in points] == [row["step"] for row in rows]
    assert [float(value) for _, value, _ in points] == pytest.approx([row["loss"] for row in rows])


def test_a_tracker_that_is_down_costs_its_curves_and_no_training(
    job: TrainJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    calls: list[int] = []

    def log(values: dict[str, float], step: int) -> None:
        calls.append(step)
        raise ConnectionError("gone")

    def fake(**_: Any) -> Any:
        return SimpleNamespace(log=log, finish=lambda: None)

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=fake, __spec__=SimpleNamespace(name="wandb")))
    run(changed(job, "out", tmp_path, mlflow_experiment="a", wandb_project="b", max_steps=4), [].append)
    assert [row["step"] for row in log_of(tmp_path / "out")] == [2, 4]
    assert calls == [2]  # the second point is not tried
    warned = [record.getMessage() for record in caplog.records if "does not answer or refuses" in record.getMessage()]
    assert [text.partition(" does")[0] for text in warned] == ["MLflow", "Weights & Biases"]
    assert "gone" in warned[1]


@pytest.fixture
def limit() -> Iterator[Any]:
    """Sets the size, in bytes, beyond which no file can grow; every write beyond fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("step", "what", "resumed"),
    [(4, "the state to resume from", 2), (9, "the checkpoint", 8)],
)
def test_a_full_disk_leaves_the_last_good_state(
    job: TrainJob, tmp_path: Path, limit: Any, step: int, what: str, resumed: int
) -> None:
    whole = changed(job, "whole", tmp_path)
    run(whole, [].append)

    def report(progress: Mapping[str, Any]) -> None:
        if progress.get("unit") == "steps" and progress["done"] == step:
            limit(30_000)

    failed = rf"cannot write {what} .*(File too large|write failed).*from step {resumed}$"
    with pytest.raises(TrainingError, match=failed) as caught:
        run(job, report)
    limit(resource.RLIM_INFINITY)
    assert str(tmp_path) in str(caught.value)
    assert [p.name for p in (tmp_path / "work" / "checkpoints").glob("step-*")] == [f"step-{resumed:08d}"]
    assert not job.output.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["whole", "work", "work-whole"]

    assert run(job, [].append)["resumed_from_step"] == resumed
    assert weights_digest(job.output) == weights_digest(whole.output)


def test_a_full_disk_at_the_best_weights(job: TrainJob, tmp_path: Path, limit: Any) -> None:
    this = changed(job, "out", tmp_path, validation_pairs=4, eval_steps=2, keep="best")
    with pytest.raises(TrainingError, match=r"cannot write the best weights .*File too large"):
        run(this, lambda progress: limit(30_000))
    limit(resource.RLIM_INFINITY)
    assert list((tmp_path / "work-out" / "best").iterdir()) == []


class Stopped(Exception):
    """Raised out of a report, where a run is to end."""


def stop_at(step: int) -> Callable[[Mapping[str, Any]], None]:
    def report(progress: Mapping[str, Any]) -> None:
        if progress.get("unit") == "steps" and progress["done"] == step:
            raise Stopped

    return report


def test_the_best_weights_outlive_a_stop(job: TrainJob, tmp_path: Path) -> None:
    settings = {
        "validation_pairs": 6, "eval_steps": 1, "keep": "best", "learning_rate": 0.1, "tensorboard": True,
        "lora": {"rank": 4, "alpha": 8.0, "dropout": 0.2}, "micro_batch_tokens": 100,
    }  # fmt: skip
    whole, job = (changed(job, name, tmp_path, **settings) for name in ("whole", "stopped"))
    kept = run(whole, [].append)["kept_step"]
    with pytest.raises(Stopped):
        run(job, stop_at(7))  # the last step; which one is best, rounding decides
    summary = run(job, [].append)
    assert (summary["resumed_from_step"], summary["kept_step"]) == (6, kept)
    assert weights_digest(job.output) == weights_digest(whole.output)
    for name in ("training_log", "validation_log"):
        assert log_of(job.output, name) == log_of(whole.output, name)
    assert len(list((tmp_path / "stopped" / "tensorboard").iterdir())) == 1


def test_a_state_of_other_labels_is_not_resumed(job: TrainJob, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        run(job, stop_at(4))
    assert json.loads(next((tmp_path / "work").glob("checkpoints/*/complete.json")).read_text())["step"] == 2
    pairs = atomic.read_parquet(job.pairs, "pairs").to_pylist()
    swapped = [
        row | {a: row[b] for a, b in (("chosen", "rejected"), ("rejected", "chosen"))}
        | {"chosen_id": row["rejected_id"], "rejected_id": row["chosen_id"]}
        for row in pairs
    ]  # fmt: skip
    atomic.write_parquet(schemas.table(swapped, "pairs"), tmp_path / "swapped.parquet")
    assert run(job.model_copy(update={"pairs": tmp_path / "swapped.parquet"}), [].append)["resumed_from_step"] == 0


@pytest.mark.heavy
@pytest.mark.parametrize("settings", [
    {"lora": {"rank": 4}},
    {"lora": {"rank": 4}, "deepspeed_config": "zero3_cpu", "gradient_checkpointing": True},
], ids=["lora", "lora-zero3-checkpointing"])  # fmt: skip
def test_compiled_layers_train_the_same(job: TrainJob, tmp_path: Path, settings: Mapping[str, Any]) -> None:
    import torch

    found = []
    for compiled in (False, True):
        torch._dynamo.reset()
        found.append(losses(job, f"out-{compiled}", tmp_path, attention="sdpa", compile=compiled, **settings))
    torch._dynamo.reset()
    plain, compiled_losses = found
    assert max(plain) - min(plain) > 1e-3
    assert compiled_losses == pytest.approx(plain, abs=1e-4)


def test_attention_without_a_gradient_is_refused_before_training(job: TrainJob, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="flex has no gradient on a CPU; set sdpa_blocks"):
        run(changed(job, "out", tmp_path, attention="flex"), [].append)
