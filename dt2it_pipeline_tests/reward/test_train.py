"""Training as a whole: fast in one process, and under the DeepSpeed launcher in two (marked heavy)."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from dt2it_pipeline import records, store
from dt2it_pipeline.engines import lean_imports
from dt2it_pipeline.engines.deepspeed_launcher import deepspeed_command, rank_environment
from dt2it_pipeline.recipe import TrainingSettings
from dt2it_pipeline.reward.train import TrainingError, run, weights_digest

SMALL = {
    "pairs_per_step": 8, "micro_batch_pairs": 4, "epochs": 3.0, "report_every": 2, "checkpoint_every": 2,
    "learning_rate": 2e-3, "system_prompt": "You judge.",
}  # fmt: skip


@pytest.fixture
def job(base: Callable[..., Path], tables: dict[str, str], tmp_path: Path) -> dict[str, Any]:
    return {
        "base_model": str(base()), "pairs": tables["pairs"], "prompts": tables["prompts"],
        "media_root": tables["media_root"], "output": str(tmp_path / "out"), "work": str(tmp_path / "work"),
        "settings": TrainingSettings(**SMALL).model_dump(), "seed": 5, "name": "test",
    }  # fmt: skip


@pytest.fixture(autouse=True)
def _keep_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests of this process may need what a training process hides."""
    monkeypatch.setattr(lean_imports, "skip_unused", lambda: None)


def command(job: Mapping[str, Any], path: Path, processes: int) -> list[str]:
    path.write_text(json.dumps(job))
    module = ["dt2it_pipeline.reward.train", str(path)]
    return deepspeed_command(module, processes) if processes > 1 else [sys.executable, "-m", *module]


def train(job: Mapping[str, Any], tmp_path: Path, processes: int) -> subprocess.CompletedProcess[str]:
    environment = os.environ | rank_environment(2) | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command(job, tmp_path / "job.json", processes), env=environment, capture_output=True, text=True, timeout=300
    )


def digest(folder: str) -> str:
    return weights_digest(Path(folder))


def test_one_process_trains_and_sets_bad_pairs_aside(job: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(job["media_root"], tmp_path / "media")
    prompts = store.read_parquet(job["prompts"], "prompts").to_pylist()
    cut = tmp_path / "media" / next(p["media"][0]["path"] for p in prompts if p["media"])
    cut.write_bytes(cut.read_bytes()[:70])
    pairs = store.read_parquet(job["pairs"], "pairs").to_pylist()
    long = records.make_pair(prompts[0]["prompt_id"], "red " * 600, "no", source="test")
    stray = records.make_pair("p-unknown", "yes", "no", source="test")
    store.write_parquet(records.table([*pairs, long, stray], "pairs"), tmp_path / "pairs.parquet")
    job |= {"media_root": str(tmp_path / "media"), "pairs": str(tmp_path / "pairs.parquet")}

    reports: list[Mapping[str, Any]] = []
    summary = run(job, reports.append)
    assert reports[-1]["step"] == reports[-1]["steps"] == summary["steps"]
    out = Path(job["output"])
    aside = store.read_parquet(out / "set_aside.parquet", "set_aside").to_pylist()
    assert {row["reason"] for row in aside} == {
        "picture unreadable", "prompt not in the table", "longer than max_tokens"
    }  # fmt: skip
    assert summary["pairs"] + summary["pairs_set_aside"] == len(pairs) + 2
    log = [json.loads(line) for line in (out / "training_log.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == summary["steps"]
    assert log[-1]["loss"] < log[0]["loss"]
    assert {"step", "loss", "accuracy", "learning_rate", "grad_norm", "pairs_per_second"} <= log[0].keys()
    card = json.loads((out / "reward_model.json").read_text())
    assert card["system_prompt"] == "You judge."


def test_nothing_to_train_on_is_one_clear_error(job: dict[str, Any], tmp_path: Path) -> None:
    job["settings"] = job["settings"] | {"max_tokens": 16}
    with pytest.raises(TrainingError, match=r"no pair to train on: 24 in .* 24 set aside \(longer than max_tokens\)"):
        run(job, [].append)
    assert not Path(job["output"]).exists()


def test_nan_stops_the_run_and_names_pairs(job: dict[str, Any], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(job["base_model"], tmp_path / "base")
    weights = load_file(tmp_path / "base" / "model.safetensors")
    weights["model.language_model.norm.weight"][3] = float("nan")
    save_file(weights, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrainingError, match="not a number at step 1") as caught:
        run(job | {"base_model": str(tmp_path / "base")}, [].append)
    ids = store.read_parquet(job["pairs"], "pairs").column("pair_id").to_pylist()
    assert any(name in str(caught.value) for name in ids)
    assert "language_model.norm.weight" in str(caught.value)
    assert not Path(job["output"]).exists()


@pytest.mark.heavy
@pytest.mark.parametrize("config", ["zero2_cpu", "zero3_cpu"])
def test_killed_training_ends_in_the_same_weights(job: dict[str, Any], tmp_path: Path, config: str) -> None:
    job["settings"] = job["settings"] | {"deepspeed_config": config}
    whole = job | {"output": str(tmp_path / "whole"), "work": str(tmp_path / "work-whole")}
    done = train(whole, tmp_path, processes=2)
    assert done.returncode == 0, done.stderr[-3000:]

    environment = os.environ | rank_environment(2) | {"OMP_NUM_THREADS": "1"}
    launcher = subprocess.Popen(
        command(job, tmp_path / "killed.json", 2), env=environment, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    marks = Path(job["work"]) / "checkpoints"
    deadline = time.monotonic() + 200
    while not list(marks.glob("*/complete.json")) and launcher.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(launcher.pid, signal.SIGKILL)
    launcher.wait()
    assert list(marks.glob("*/complete.json"))
    assert not Path(job["output"]).exists()
    (marks / "step-00000999").mkdir()  # half written: no marker

    done = train(job, tmp_path, processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    resumed = re.search(r'"resumed_from_step": (\d+)', done.stdout)
    assert resumed is not None
    assert int(resumed[1]) > 0
    assert digest(job["output"]) == digest(whole["output"])
    logs = [
        (Path(folder) / "training_log.jsonl").read_text().splitlines() for folder in (job["output"], whole["output"])
    ]
    timeless = [[{**json.loads(line), "pairs_per_second": 0} for line in log] for log in logs]
    assert timeless[0] == timeless[1]


@pytest.mark.heavy
def test_zero_stages_ranks_and_layouts_agree(job: dict[str, Any], tmp_path: Path) -> None:
    variants: dict[str, tuple[dict[str, Any], int]] = {
        "zero2": ({}, 2),
        "zero3": ({"deepspeed_config": "zero3_cpu"}, 2),
        "alone": ({}, 1),
        "separate": ({"shared_prefix": False}, 2),
        "tower": ({"cache_vision": False}, 2),
        "checkpointing": ({"gradient_checkpointing": True}, 2),
    }
    losses = {}
    for name, (changes, processes) in variants.items():
        settings = job["settings"] | {"max_steps": 4} | changes
        this = job | {"output": str(tmp_path / name), "work": str(tmp_path / f"w-{name}"), "settings": settings}
        done = train(this, tmp_path, processes)
        assert done.returncode == 0, (name, done.stderr[-3000:])
        log = (tmp_path / name / "training_log.jsonl").read_text().splitlines()
        losses[name] = [json.loads(line)["loss"] for line in log]
    for name, found in losses.items():
        assert found == pytest.approx(losses["zero2"], abs=1e-5), name
