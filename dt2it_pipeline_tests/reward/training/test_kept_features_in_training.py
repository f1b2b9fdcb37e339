"""Trainings that keep features of images on disk: the same weights whatever was kept before, after kills too."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dt2it_pipeline.reward.data import kept_features
from dt2it_pipeline.reward.training.job import TrainJob
from dt2it_pipeline.reward.training.train import run, weights_digest
from dt2it_pipeline.storage import atomic
from dt2it_pipeline.storage.home.feature_files import FOLDER
from dt2it_pipeline.storage.leftovers import places_of, sweep
from dt2it_pipeline_tests.support.training_jobs import changed, log_of, start_training

KEPT = {"vision_disk_gib": 1.0, "max_steps": 4}


def later_round(job: TrainJob, name: str, folder: Path, **settings: Any) -> TrainJob:
    """Another training on two thirds of the pairs, in another order."""
    pairs = folder / "later.parquet"
    if not pairs.exists():
        table = atomic.read_parquet(job.pairs, "pairs")
        atomic.write_parquet(table.take(list(range(table.num_rows))[::-1][:16]), pairs)
    return changed(job, name, folder, **settings).model_copy(update={"pairs": pairs, "seed": job.seed + 1})


def features_in(home: Path) -> dict[str, bytes]:
    """Kept features, by the names of their files."""
    root = home / "cache" / FOLDER
    return {str(file.relative_to(root)): file.read_bytes() for file in root.glob("*/*/[!.]*")}


def test_a_later_training_encodes_nothing_again(job: TrainJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DT2IT_HOME", str(tmp_path / "home"))
    encode, encoded = kept_features.encode_patches, []

    def noted(model: Any, registry: Any, read: Any, device: Any) -> Any:
        encoded.extend(read.images)
        return encode(model, registry, read, device)

    monkeypatch.setattr(kept_features, "encode_patches", noted)
    few = KEPT | {"validation_pairs": 5, "eval_steps": 2}
    run(changed(job, "first", tmp_path, **few), [].append)
    kept = features_in(tmp_path / "home")
    assert encoded and len(encoded) == len(kept)
    run(later_round(job, "second", tmp_path, **few), [].append)
    assert len(encoded) == len(kept) and features_in(tmp_path / "home") == kept
    monkeypatch.setenv("DT2IT_HOME", str(tmp_path / "another"))
    run(later_round(job, "alone", tmp_path, **few), [].append)
    assert weights_digest(tmp_path / "alone") == weights_digest(tmp_path / "second")
    in_memory = changed(job, "in-memory", tmp_path, **few | {"vision_disk_gib": 0.0})
    run(in_memory, [].append)
    for name in ("training_log", "validation_log"):
        for row, other in zip(log_of(tmp_path / "first", name), log_of(in_memory.output, name), strict=True):
            assert row == pytest.approx(other, rel=1e-3, abs=1e-4)


def test_without_room_a_training_goes_on_as_without_it(
    job: TrainJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DT2IT_HOME", str(tmp_path / "home"))
    made = [changed(job, f"disk{gib}", tmp_path, vision_disk_gib=gib, max_steps=2) for gib in (0.0, 1e-6)]
    for each in made:
        run(each, [].append)
    assert weights_digest(made[0].output) == weights_digest(made[1].output) and not features_in(tmp_path / "home")
    assert caplog.text.count("vision_disk_gib allows 0.00 and 0.00 are taken") == 1


@pytest.mark.heavy
def test_two_ranks_and_two_rounds_killed_while_features_are_made(
    job: TrainJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first_two: Callable[..., Any]
) -> None:
    """The same weights and files as in a home where nobody was killed, damaged files included."""
    whole, home = first_two(job, tmp_path / "whole"), tmp_path / "killed"
    (tmp_path / "runs").mkdir()
    monkeypatch.setenv("DT2IT_HOME", str(home))
    first = changed(job, "first", tmp_path / "runs", **KEPT)
    ranks = start_training(first, tmp_path / "runs", 2)
    while not features_in(home):
        time.sleep(0.001)
    os.killpg(ranks.pid, signal.SIGKILL)
    ranks.wait(60)
    assert not first.output.exists() and len(features_in(home)) > 0
    damaged = sorted((home / "cache" / FOLDER).glob("*/*/[!.]*"))[0]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")  # of the same length, as after a power cut
    assert first_two(job, tmp_path / "runs", home) == whole
    assert features_in(home) == features_in(tmp_path / "whole" / "home")
    sweep(places_of(home))  # as a run's start does
    assert not list(home.rglob(".*"))


@pytest.fixture
def first_two(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """A function that trains two rounds in two ranks each, with one home; digests of their weights."""

    def train(job: TrainJob, folder: Path, home: Path | None = None) -> list[str]:
        folder.mkdir(exist_ok=True)
        monkeypatch.setenv("DT2IT_HOME", str(home or folder / "home"))
        rounds = [changed(job, "first", folder, **KEPT), later_round(job, "second", folder, **KEPT)]
        for each in rounds:
            assert start_training(each, folder, 2).wait(300) == 0, (folder / "job.log").read_text()[-3000:]
        return [weights_digest(each.output) for each in rounds]

    return train
