"""Training as a whole, in one process; test_two_ranks.py has it in several."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from dt2it_pipeline.reward.checkpoints.processor_files import pixel_limit
from dt2it_pipeline.reward.errors import TrainingError
from dt2it_pipeline.reward.reward_model import RewardModel
from dt2it_pipeline.reward.too_long import left_out
from dt2it_pipeline.reward.training import trainer
from dt2it_pipeline.reward.training.job import TrainJob
from dt2it_pipeline.reward.training.train import run
from dt2it_pipeline.storage import atomic, records, schemas
from dt2it_pipeline_tests.support.tolerance import bfloat16_norm_tolerance, bfloat16_tolerance, stored_operations
from dt2it_pipeline_tests.support.training_jobs import changed, log_of, poisoned, with_settings


def test_one_process_trains_and_sets_bad_pairs_aside(
    job: TrainJob, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    shutil.copytree(job.media_root, tmp_path / "media")
    prompts = atomic.read_parquet(job.prompts, "prompts").to_pylist()
    shown = list(dict.fromkeys(p["media"][0]["path"] for p in prompts if p["media"]))
    cut = tmp_path / "media" / shown[0]
    cut.write_bytes(cut.read_bytes()[:70])
    (tmp_path / "media" / shown[1]).unlink()
    pairs = atomic.read_parquet(job.pairs, "pairs").to_pylist()
    long = records.make_pair(prompts[0]["prompt_id"], "red " * 600, "no", source="test")
    stray = records.make_pair("p-unknown", "yes", "no", source="test")
    atomic.write_parquet(schemas.table([*pairs, long, stray], "pairs"), tmp_path / "pairs.parquet")
    job = job.model_copy(update={"media_root": tmp_path / "media", "pairs": tmp_path / "pairs.parquet"})
    job = with_settings(job, max_length=512)

    reports: list[Mapping[str, Any]] = []
    summary = run(job, reports.append)
    weights = sum(value.numel() for value in load_file(Path(job.base_model) / "model.safetensors").values())
    (estimate,) = [one.message for one in caplog.records if "training takes about" in one.message]
    assert f"({weights / 1e6:,.1f} million parameters, {job.settings.precision}, ZeRO stage 2, 1 rank(s))" in estimate
    assert summary["peak_memory_gib"] > 0 and "peak_gpu_memory_gib" not in summary
    assert reports[-1]["done"] == reports[-1]["total"] == summary["steps"]
    out = job.output
    aside = atomic.read_parquet(out / "quarantine.parquet", "quarantine").to_pylist()
    assert {row["reason"] for row in aside} == {
        "unreadable image", "missing image", "prompt not in the table", "longer than max_length"
    }  # fmt: skip
    assert summary["pairs"] + summary["pairs_quarantined"] == len(pairs) + 2 and summary["pairs_too_long"] == 1
    log = [json.loads(line) for line in (out / "training_log.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == summary["steps"]
    assert log[-1]["loss"] < log[0]["loss"]
    assert {"step", "loss", "accuracy", "learning_rate", "grad_norm", "pairs_per_second"} <= log[0].keys()
    card = json.loads((out / "reward_model.json").read_text())
    assert card["system_prompt"] == "You judge." and '"You judge."' in (out / "chat_template.jinja").read_text()
    assert job.settings.max_pixels > card["max_pixels"] == pixel_limit(out) == 65_536  # the base model's own limit


def test_without_a_limit_the_context_of_the_base_model_is_the_limit(job: TrainJob, tmp_path: Path) -> None:
    prompt = atomic.read_parquet(job.prompts, "prompts").to_pylist()[0]["prompt_id"]
    pairs = atomic.read_parquet(job.pairs, "pairs").to_pylist()[:4]
    long = [records.make_pair(prompt, "red " * words, "no", source="test") for words in (600, 5000)]  # of 4,096 tokens
    atomic.write_parquet(schemas.table([*pairs, *long], "pairs"), tmp_path / "pairs.parquet")
    job = with_settings(job, max_length=None, max_steps=1).model_copy(update={"pairs": tmp_path / "pairs.parquet"})
    summary = run(job, [].append)
    assert (summary["pairs"], summary["pairs_too_long"]) == (5, 1)
    found = left_out(atomic.read_parquet(job.output / "quarantine.parquet", "quarantine"))
    assert found is not None and (found.count, found.limit) == (1, 4096) and found.longest > 5000


def test_nothing_to_train_on_is_one_clear_error(job: TrainJob, tmp_path: Path) -> None:
    job = with_settings(job, max_length=16)
    with pytest.raises(TrainingError, match=r"no pair to train on: 24 in .* 24 quarantined \(longer than max_length\)"):
        run(job, [].append)
    assert not job.output.exists()


def test_an_empty_table_is_one_clear_error(job: TrainJob, tmp_path: Path) -> None:
    atomic.write_parquet(schemas.table([], "pairs"), tmp_path / "none.parquet")
    with pytest.raises(TrainingError, match=r"no pair to train on: 0 in .*none\.parquet, 0 quarantined"):
        run(job.model_copy(update={"pairs": tmp_path / "none.parquet"}), [].append)
    assert not job.output.exists()


@pytest.mark.numerics
def test_bfloat16_follows_float32(job: TrainJob, tmp_path: Path) -> None:
    """As on a GPU, but on this CPU: half-precision weights, score in float32, several passes a step."""
    settings = {"micro_batch_size": 1, "max_steps": 2, "logging_steps": 1}
    for precision in ("float32", "bfloat16"):
        run(changed(job, precision, tmp_path, precision=precision, **settings), [].append)
    first, second = log_of(tmp_path / "float32")
    half_first, half_second = log_of(tmp_path / "bfloat16")
    model = RewardModel.from_pretrained(job.base_model, new_head_seed=job.seed)
    forward = stored_operations(model.config)

    # A pair's loss moves by at most half its margin: half the errors of two scores, each as large as the head's norm.
    within = (
        bfloat16_tolerance(forward) * float(model.head.weight.detach().norm()) / math.sqrt(8)
    )  # a mean over 8 pairs
    assert half_first["loss"] == pytest.approx(first["loss"], abs=within, rel=0)
    within = bfloat16_norm_tolerance(3 * forward)  # the way back is twice as long
    assert half_first["grad_norm"] == pytest.approx(first["grad_norm"], rel=within)
    # Adam's first step moves every weight by the learning rate, in the direction of its gradient's sign. Where rounding
    # decides a sign, weights end up elsewhere, which no count of roundings bounds: what the step changes shows by half.
    changed_by = abs(second["grad_norm"] - first["grad_norm"])
    assert changed_by > 4 * within * second["grad_norm"]
    assert half_second["grad_norm"] == pytest.approx(second["grad_norm"], abs=changed_by / 2, rel=within)


def test_nan_stops_the_run_and_names_pairs(job: TrainJob, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(job.base_model, tmp_path / "base")
    weights = load_file(tmp_path / "base" / "model.safetensors")
    weights["model.language_model.norm.weight"][3] = float("nan")
    save_file(weights, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrainingError, match="not a number at step 1") as caught:
        run(job.model_copy(update={"base_model": str(tmp_path / "base")}), [].append)
    ids = atomic.read_parquet(job.pairs, "pairs").column("pair_id").to_pylist()
    assert any(name in str(caught.value) for name in ids)
    assert "language_model.norm.weight" in str(caught.value)
    assert not job.output.exists()


def test_nan_of_one_pair_is_named_where_batches_accumulate(job: TrainJob, tmp_path: Path) -> None:
    job, guilty = poisoned(job, tmp_path)
    with pytest.raises(TrainingError, match="loss is not a number") as caught:
        run(changed(job, "out", tmp_path, micro_batch_size=2), [].append)
    ids = atomic.read_parquet(job.pairs, "pairs").column("pair_id").to_pylist()
    assert [name for name in ids if name in str(caught.value)] == [guilty]
    assert "embed_tokens.weight" in str(caught.value)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_gradient_that_is_not_finite_stops_the_run(
    job: TrainJob, monkeypatch: pytest.MonkeyPatch, precision: str, value: float
) -> None:
    """Though every loss is."""
    started = trainer.Trainer.fit

    def fit(self: Any) -> Any:
        self.model.head.weight.register_hook(lambda gradient: gradient * value)
        return started(self)

    monkeypatch.setattr(trainer.Trainer, "fit", fit)
    settings = job.settings.model_copy(update={"precision": precision, "max_steps": 2})
    with pytest.raises(TrainingError, match="gradient is not a number at step 1"):
        run(job.model_copy(update={"settings": settings}), [].append)


def test_another_base_model_does_not_go_on_from_the_state_of_the_one_before(job: TrainJob, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(job.base_model, tmp_path / "base")
    job = changed(job, "out", tmp_path, max_steps=2, save_steps=1)
    job = job.model_copy(update={"base_model": str(tmp_path / "base")})
    assert run(job, [].append)["resumed_from_step"] == 0
    shutil.rmtree(job.output)
    assert run(job, [].append)["resumed_from_step"] == 1
    shutil.rmtree(job.output)
    weights = load_file(tmp_path / "base" / "model.safetensors")
    weights["model.language_model.norm.weight"] *= 1.5
    save_file(weights, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    assert run(job, [].append)["resumed_from_step"] == 0
