"""Batches made ahead of their step: the same values whoever made them, and faults that cost their pairs alone."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dt2it_pipeline.reward.data.collation import PackedExample, collate
from dt2it_pipeline.reward.data.encoding import EncodedPrompt
from dt2it_pipeline.reward.data.vision_features import FeatureTable
from dt2it_pipeline.reward.errors import TrainingError
from dt2it_pipeline.reward.training import batches, training_data
from dt2it_pipeline.reward.training.batches import loader_workers
from dt2it_pipeline.reward.training.job import TrainJob
from dt2it_pipeline.reward.training.train import run, weights_digest
from dt2it_pipeline.storage import atomic
from dt2it_pipeline_tests.support.training_jobs import changed, log_of

SEEN = {"cache_vision": False}  # images are read at every step


def test_default_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    assert [loader_workers(None, True, ranks) for ranks in (1, 2, 4, 16)] == [8, 7, 3, 0]
    assert loader_workers(None, False, 1) == 0
    assert loader_workers(5, False, 1) == 5


def with_media(job: TrainJob, folder: Path) -> TrainJob:
    """The job with a copy of its images, which a test may damage, and without the vision encoder's cache."""
    shutil.copytree(job.media_root, folder / "media")
    job = job.model_copy(update={"media_root": folder / "media"})
    return job.model_copy(update={"settings": job.settings.model_copy(update={"cache_vision": False})})


def shown_by(job: TrainJob) -> dict[str, set[str]]:
    """Pairs that show each image, by its path."""
    prompts = {row["prompt_id"]: row for row in atomic.read_parquet(job.prompts, "prompts").to_pylist()}
    found: dict[str, set[str]] = {}
    for pair in atomic.read_parquet(job.pairs, "pairs").to_pylist():
        for medium in prompts[pair["prompt_id"]]["media"]:
            found.setdefault(medium["path"], set()).add(pair["pair_id"])
    return found


def damage(file: Path) -> None:
    """Cut a file behind its header."""
    file.write_bytes(file.read_bytes()[:70])


@pytest.mark.heavy
@pytest.mark.parametrize("cached", [False, True])
def test_processes_that_read_ahead_change_nothing(job: TrainJob, tmp_path: Path, cached: bool) -> None:
    settings = {"cache_vision": cached, "validation_pairs": 5, "eval_steps": 2, "micro_batch_tokens": 120}
    made = [changed(job, f"workers{n}", tmp_path, loader_workers=n, **settings) for n in (0, 2)]
    for each in made:
        run(each, [].append)
    assert weights_digest(made[0].output) == weights_digest(made[1].output)
    for name in ("training_log", "validation_log"):
        assert log_of(made[0].output, name) == log_of(made[1].output, name)


def test_features_that_a_thread_reads_ahead_change_nothing(
    job: TrainJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"cache_vision": True, "validation_pairs": 5, "eval_steps": 2, "micro_batch_size": 2, "max_steps": 4}
    gather, readers = FeatureTable.gather, []

    def noted(*given: Any) -> torch.Tensor:
        readers.append(threading.current_thread().name)
        return gather(*given)

    monkeypatch.setattr(FeatureTable, "gather", noted)
    digests = []
    for threads in (0, 1):
        monkeypatch.setattr(batches, "threads_for", lambda _, threads=threads: threads)
        made = changed(job, f"threads{threads}", tmp_path, **settings)
        readers.clear()
        run(made, [].append)
        assert readers and all(name.startswith("read-ahead" if threads else "MainThread") for name in readers)
        digests.append(weights_digest(made.output))
    assert digests[0] == digests[1]


@pytest.mark.heavy
def test_a_killed_process_ends_the_training_with_its_setting(
    job: TrainJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "_start", _die)
    expected = r"one of 2 processes that read images ahead ended .*training\.loader_workers"
    with pytest.raises(TrainingError, match=expected):
        run(changed(job, "out", tmp_path, loader_workers=2, **SEEN), [].append)
    assert not (tmp_path / "out").exists()


def _die(number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.heavy
def test_the_state_goes_on_with_another_number_of_processes(job: TrainJob, tmp_path: Path) -> None:
    def stop(progress: Mapping[str, Any]) -> None:
        if progress.get("unit") == "steps" and progress["done"] == 6:
            raise KeyboardInterrupt

    whole, stopped = (changed(job, name, tmp_path, **SEEN) for name in ("whole", "stopped"))
    run(whole, [].append)
    with pytest.raises(KeyboardInterrupt):
        run(stopped, stop)
    again = changed(stopped, "stopped", tmp_path, loader_workers=1)
    assert run(again, [].append)["resumed_from_step"] == 4
    assert weights_digest(again.output) == weights_digest(whole.output)


def test_a_damaged_image_costs_its_pairs_alone(job: TrainJob, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its header is whole, so that only its step finds out."""
    job = with_media(job, tmp_path)
    shown = shown_by(job)
    name = min(shown, key=lambda path: (len(shown[path]), path))
    damage(job.media_root / name)
    summary = run(job, [].append)
    rows = atomic.read_parquet(job.output / "quarantine.parquet", "quarantine").to_pylist()
    assert {row["pair_id"] for row in rows} == shown[name]
    assert {row["reason"] for row in rows} == {"unreadable image"} and all(name in row["detail"] for row in rows)
    assert (summary["pairs"], summary["pairs_quarantined"]) == (24 - len(rows), len(rows))
    named = [row_id for record in caplog.records for row_id in getattr(record, "row_ids", ())]
    assert sorted(named) == sorted(shown[name])  # each once, however often the state is saved
    cached = run(changed(job, "cached", tmp_path, cache_vision=True), [].append)  # finds out before the first step
    assert (cached["pairs"], cached["pairs_quarantined"]) == (summary["pairs"], len(rows))
    quarantined = atomic.read_parquet(tmp_path / "cached" / "quarantine.parquet", "quarantine").to_pylist()
    assert quarantined == rows


def test_a_damaged_image_gives_no_gradient(job: TrainJob, tmp_path: Path) -> None:
    """Neither its pixels nor its pairs' labels count: whatever lies in the file's place, weights are the same."""
    job = with_media(job, tmp_path)
    shown = shown_by(job)
    name = max(shown, key=lambda path: (len(shown[path]), path))
    content = (job.media_root / name).read_bytes()
    damage(job.media_root / name)
    run(changed(job, "cut", tmp_path), [].append)
    Image.new("RGB", (320, 16), "red").save(job.media_root / name)  # whole, but of another size than was prepared
    shutil.copytree(tmp_path / "work-cut" / "prepared", tmp_path / "work-other" / "prepared")
    run(changed(job, "other", tmp_path), [].append)
    assert weights_digest(tmp_path / "cut") == weights_digest(tmp_path / "other")
    details = {
        row["detail"]
        for row in atomic.read_parquet(tmp_path / "other" / "quarantine.parquet", "quarantine").to_pylist()
    }
    assert details == {f"unreadable image: {name}: of another size than before"}
    (job.media_root / name).write_bytes(content)
    run(changed(job, "whole", tmp_path), [].append)
    assert weights_digest(tmp_path / "whole") != weights_digest(tmp_path / "cut")


def test_what_was_left_out_stays_out_when_a_run_goes_on(job: TrainJob, tmp_path: Path) -> None:
    """The file is readable again after the state was written, whether the run stops there or not."""
    job = with_media(job, tmp_path)
    shown = shown_by(job)
    name = max(shown, key=lambda path: (len(shown[path]), path))
    file = job.media_root / name
    content = file.read_bytes()

    def mend(at: int, stop: bool = False) -> Callable[[Mapping[str, Any]], None]:
        def report(progress: Mapping[str, Any]) -> None:
            if progress.get("unit") == "steps" and progress["done"] == at:
                file.write_bytes(content)
                if stop:
                    raise KeyboardInterrupt

        return report

    # Three steps an epoch: all pairs have had their turn by step 4, whose state is the last one of the run that stops.
    damage(file)
    whole = changed(job, "whole", tmp_path)
    run(whole, mend(6))
    damage(file)
    stopped = changed(job, "stopped", tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(stopped, mend(6, stop=True))
    state = json.loads(next((tmp_path / "work-stopped").glob("checkpoints/step-*4/complete.json")).read_text())
    assert len(state["left_out"]) == len(shown[name])
    assert {reason for _, reason, _ in state["left_out"]} == {"unreadable image"}
    damage(file)
    assert run(stopped, mend(6))["resumed_from_step"] == 4
    assert weights_digest(stopped.output) == weights_digest(whole.output)
    tables = [atomic.read_parquet(each.output / "quarantine.parquet", "quarantine") for each in (whole, stopped)]
    assert tables[0].equals(tables[1]) and tables[0].num_rows == len(shown[name])


def test_storage_that_is_gone_is_one_clear_error(
    job: TrainJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = with_media(job, tmp_path)
    job = changed(job, "out", tmp_path, global_batch_size=16)
    prompts = atomic.read_parquet(job.prompts, "prompts").to_pylist()
    with_images = {row["prompt_id"] for row in prompts if row["media"]}
    pairs = atomic.read_parquet(job.pairs, "pairs")
    kept = [name in with_images for name in pairs.column("prompt_id").to_pylist()]
    atomic.write_parquet(pairs.filter(kept), tmp_path / "pairs.parquet")
    start = training_data.TrainingData.start

    def gone(self: Any, *given: Any) -> None:
        shutil.rmtree(job.media_root)
        start(self, *given)

    monkeypatch.setattr(training_data.TrainingData, "start", gone)
    with pytest.raises(TrainingError, match=r"none of the 16 pairs at step 1 can be read \(missing image: .*step 0"):
        run(job.model_copy(update={"pairs": tmp_path / "pairs.parquet"}), [].append)


def test_pinned_batches_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no GPU here to pin memory for: every tensor is asked, and nothing else changes."""
    np_ids = np.arange(4, dtype=np.int32)
    prompt = EncodedPrompt(np_ids, np_ids[None].repeat(3, 0), 4, np_ids[:0], ())
    batch = collate([PackedExample(prompt, (np_ids, np_ids[:2]))])
    asked: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: asked.append(self) or self.clone())
    pinned = batches.LoadedBatch(np_ids, batch, {}).pin_memory()
    tensors = [getattr(batch, f.name) for f in dataclasses.fields(batch)]
    assert len(asked) == sum(isinstance(value, torch.Tensor) for value in tensors)
    assert torch.equal(pinned.batch.input_ids, batch.input_ids) and pinned.batch.is_causal == batch.is_causal


def test_sizes_of_images_stay_where_they_are_read() -> None:
    """On the device, every pass would wait for all that the device was given before."""
    ids = np.arange(4, dtype=np.int32)
    prompt = EncodedPrompt(ids, ids[None].repeat(3, 0), 4, ids[:0], ())
    batch = collate([PackedExample(prompt, (ids, ids[:2]))])
    batch = dataclasses.replace(batch, grids=torch.tensor([[1, 4, 4]]), pixels=torch.zeros(16, 8))
    moved = batch.to(torch.device("meta"))
    assert moved.grids is batch.grids
    tensors = {f.name: getattr(moved, f.name) for f in dataclasses.fields(moved) if f.name != "grids"}
    assert {value.device.type for value in tensors.values() if isinstance(value, torch.Tensor)} == {"meta"}
