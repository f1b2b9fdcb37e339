"""Training in ranks: in two ranks of one machine, in two of two machines, killed, on a full disk.

There is no ssh daemon where tests run, so `pdsh` and `ssh` are stand-ins on the PATH that run what they are given here,
and the two machines are both this one. Everything else is real: the launcher, the exported environment, two per-node
launchers, a process group over both.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dt2it_pipeline.engines.launch.ranks import (
    REMOTE_ENVIRONMENT,
    ranks_command,
    write_remote_environment,
)
from dt2it_pipeline.engines.launch.worker import error_file, read_summary
from dt2it_pipeline.reward.foreign import import_checkpoint
from dt2it_pipeline.reward.reward_model import RewardModel
from dt2it_pipeline.reward.training.job import TrainJob
from dt2it_pipeline.reward.training.train import weights_digest
from dt2it_pipeline.storage import atomic
from dt2it_pipeline_tests.support.trainer_layouts import adapter, make_head, value_head
from dt2it_pipeline_tests.support.training_jobs import (
    changed,
    environment,
    log_of,
    poisoned,
    small_job,
    start,
    start_training,
    train_several,
)

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(900)]

FEW = {"max_steps": 4}
ADAPTERS = {"lora": {"rank": 4, "alpha": 8.0}}
ZERO2, ZERO3 = {"deepspeed_config": "zero2_cpu"}, {"deepspeed_config": "zero3_cpu"}
EVERYTHING = {
    "validation_fraction": 0.2, "eval_steps": 1, "keep": "best", "micro_batch_tokens": 120, "tensorboard": True,
    "loss": {"kind": "margin", "center_rewards_coefficient": 0.01},
}  # fmt: skip
DROPOUT = {"lora": {"rank": 4, "alpha": 8.0, "dropout": 0.2}}
# 24 steps, or some less where pairs are held out. One keeps its last weights, the other its best, and starts from an
# adapter of another trainer.
LONG = {
    name: {"epochs": 8.0, "save_steps": 3} | settings
    for name, settings in {
        "zero2": ZERO2 | EVERYTHING | {"keep": "last"},
        "zero3-lora": ZERO3 | EVERYTHING | DROPOUT,
    }.items()
}
IN_TWO = {
    "zero2": FEW,
    "zero3": FEW | ZERO3,
    "separate": FEW | {"shared_prefix": False},
    "vision encoder": FEW | {"cache_vision": False},
    "checkpointing": FEW | {"gradient_checkpointing": True},
    "tokens": FEW | {"micro_batch_tokens": 100, "micro_batch_size": 64},
    "compiled": FEW | ZERO3 | {"attention": "sdpa", "compile": True},
    "lora-zero2": FEW | ADAPTERS,
    "lora-zero3": FEW | ADAPTERS | ZERO3,
    "merged-zero3": FEW | ADAPTERS | ZERO3,
    "adapter-zero2": FEW | ADAPTERS,
    "adapter-zero3": FEW | ADAPTERS | ZERO3,
    **{f"whole-{name}": settings for name, settings in LONG.items()},
}
# ZeRO-3 from files in bfloat16, and from the same values in float32.
STORED = {"half": torch.bfloat16, "whole": torch.float32}
TYPES = {
    f"{kind}-{stored}": FEW | ZERO3 | settings
    for stored in STORED for kind, settings in {"full": {}, "lora": ADAPTERS}.items()
}  # fmt: skip
IN_ONE = {"alone": FEW, "lora-alone": FEW | ADAPTERS}
ON_ADAPTER = ("adapter-zero2", "adapter-zero3", "whole-zero3-lora")


@pytest.fixture(scope="module")
def trained(base: Any, tables: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint of every variant, and with how two trainings on a poisoned pair ended."""
    folder = tmp_path_factory.mktemp("trained")
    job = small_job(base("qwen3_vl"), tables, folder)
    bad, guilty = poisoned(job, folder)
    (folder / "guilty").write_text(guilty)
    poisonous = [
        changed(bad, f"poisoned-{name}", folder, micro_batch_size=2, **stage)
        for name, stage in (("zero2", ZERO2), ("zero3", ZERO3))
    ]
    import_checkpoint(with_head(adapter(Path(job.base_model), folder / "adapter")), folder / "merged")
    for stored, kept in STORED.items():
        rounded(job, folder / f"base-{stored}", kept)
    # What fails stands before what must not be disturbed by it.
    several = poisonous + [variant(job, name, folder, folder) for name in (*IN_TWO, *TYPES)]
    train_several(several, folder / "two.json", 2)
    train_several([changed(job, name, folder, **settings) for name, settings in IN_ONE.items()], folder / "one.json", 1)
    return folder


def with_head(folder: Path) -> Path:
    save_file(value_head(make_head()), folder / "value_head.safetensors")
    return folder


def rounded(job: TrainJob, folder: Path, kept: torch.dtype) -> None:
    """The job's base model with weights of the precision of bfloat16, in files of a type."""
    shutil.copytree(job.base_model, folder)
    values = load_file(folder / "model.safetensors")
    stored = {key: value.to(torch.bfloat16).to(kept) for key, value in values.items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})


def variant(job: TrainJob, name: str, folder: Path, trained: Path) -> TrainJob:
    """The job with the settings of a variant and its base model, of which others than the first lie in `trained`."""
    made = changed(job, name, folder, **(IN_TWO | TYPES)[name])
    base = "adapter" if name in ON_ADAPTER else "merged" if name.startswith("merged") else ""
    base = f"base-{name.partition('-')[2]}" if name in TYPES else base
    return made.model_copy(update={"base_model": str(trained / base)}) if base else made


def test_zero_stages_ranks_and_layouts_agree(trained: Path) -> None:
    for first, others in (
        ("zero2", ("zero3", "alone", "separate", "vision encoder", "checkpointing", "tokens", "compiled")),
        ("lora-zero2", ("lora-zero3", "lora-alone")),
        ("merged-zero3", ("adapter-zero2", "adapter-zero3")),
    ):
        losses = [row["loss"] for row in log_of(trained / first)]
        weights = RewardModel.from_pretrained(trained / first).state_dict()
        for name in others:
            assert [row["loss"] for row in log_of(trained / name)] == pytest.approx(losses, abs=1e-5), name
            made = RewardModel.from_pretrained(trained / name).state_dict()
            assert all(torch.allclose(made[key], value, atol=1e-4) for key, value in weights.items()), name


def test_an_adapter_that_is_merged_while_it_is_divided_is_the_merged_model(trained: Path) -> None:
    assert weights_digest(trained / "adapter-zero3") == weights_digest(trained / "merged-zero3")
    first, second = (
        json.loads((trained / f"{name}-zero3" / "config.json").read_text()) for name in ("adapter", "merged")
    )
    assert first == second
    assert weights_digest(trained / "adapter-zero3") != weights_digest(trained / "lora-zero3")


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_zero3_trains_the_same_whatever_type_the_files_have(trained: Path, kind: str) -> None:
    """Weights in bfloat16 are converted one by one, as each is divided; those in float32 are divided as they are."""
    half, whole = (trained / f"{kind}-{stored}" for stored in STORED)
    assert weights_digest(half) == weights_digest(whole)
    assert (half / "config.json").read_text() == (whole / "config.json").read_text()


@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_nan_of_one_pair_is_named_over_two_ranks(trained: Path, stage: str) -> None:
    job_pairs = atomic.read_parquet(trained / "pairs.parquet", "pairs").column("pair_id").to_pylist()
    for rank in (0, 1):
        message = json.loads((trained / f"poisoned-{stage}.rank{rank}.json").read_text())["error"]
        assert [name for name in job_pairs if name in message] == [(trained / "guilty").read_text()]
        assert "embed_tokens.weight" in message
    assert not (trained / f"poisoned-{stage}").exists()


def test_a_full_disk_ends_both_ranks_and_leaves_nothing_half_written(job: TrainJob, tmp_path: Path) -> None:
    file = tmp_path / "job.json"
    job.write(file)
    # Room for everything but the state to resume from.
    ranks = start("dt2it_pipeline_tests.support.small_disk", file, 2, SMALL_DISK_BYTES=str(150 * 1024))
    assert ranks.wait(300) != 0
    assert "TrainingError: cannot write the state to resume from" in error_file(file).read_text()
    printed = file.with_suffix(".log").read_text()
    assert "error: cannot write the state to resume from" in printed
    assert "training then goes on from step 0" in printed
    assert not list(job.work.glob("checkpoints/step-*"))
    assert not job.output.exists()


@pytest.mark.parametrize("name", list(LONG))
def test_killed_training_ends_in_the_same_weights(trained: Path, job: TrainJob, tmp_path: Path, name: str) -> None:
    """Killed twice, each time a random while after the state of a random step was whole: within a step, an evaluation,
    the next state, or the start where that step had been passed before. Then started once more.
    """
    whole, job = trained / f"whole-{name}", variant(job, f"whole-{name}", tmp_path, trained)
    generator = random.Random(name)
    marks = job.work / "checkpoints"
    for wanted in sorted(generator.sample(range(10), 2)):
        before = killed_behind(job, tmp_path, wanted, pause=generator.uniform(0, 0.2))
    (marks / "step-00000999").mkdir()  # half written: no marker

    ended, file = start_training(job, tmp_path, 2).wait(300), tmp_path / "job.json"
    assert ended == 0, file.with_suffix(".log").read_text()[-3000:]
    assert (read_summary(file) or {})["resumed_from_step"] == before
    assert weights_digest(job.output) == weights_digest(whole)
    for log in ("training_log", "validation_log"):
        assert log_of(job.output, log) == log_of(whole, log)


def killed_behind(job: TrainJob, folder: Path, step: int, pause: float) -> int:
    """Start the training, kill it `pause` seconds after a state of more than `step` steps is whole; that state's steps.

    The pause may let it write another state, or catch it while it does.
    """
    marks = job.work / "checkpoints"
    ranks = start_training(job, folder, 2)
    deadline = time.monotonic() + 200
    while whole_state(marks) <= step and ranks.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(pause)
    os.killpg(ranks.pid, signal.SIGKILL)
    ranks.wait()
    assert not job.output.exists(), "the training ended before it was killed"
    assert whole_state(marks) > step
    return whole_state(marks)


def whole_state(marks: Path) -> int:
    """Steps of the newest state with its marker, 0 when there is none."""
    found = (int(mark.parent.name.removeprefix("step-")) for mark in marks.glob("*/complete.json"))
    return max(found, default=0)


PDSH = """#!{python}
import subprocess, sys
at = sys.argv.index("-w")
hosts, command = sys.argv[at + 1].split(","), sys.argv[at + 2 :]
clean = {{"PATH": {path!r}, "HOME": "/nonexistent"}}  # what ssh would start with
shells = [
    subprocess.Popen(["sh", "-c", " ".join(command).replace("%n", str(n))], env=clean) for n in range(len(hosts))
]
sys.exit(max(shell.wait() for shell in shells))
"""
SSH = """#!/bin/sh
case "$*" in *"hostname -I") echo 127.0.0.1 ;; *) hostname ;; esac
"""


def test_two_machines_train_as_one_with_two_ranks(trained: Path, job: TrainJob, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    for name, text in {"pdsh": PDSH.format(python=sys.executable, path=path), "ssh": SSH}.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    (tmp_path / "hosts").write_text("localhost slots=1\n127.0.0.1 slots=1\n")
    variables = environment() | {"PATH": path, "DS_ACCELERATOR": "cpu", REMOTE_ENVIRONMENT: str(tmp_path / "env")}
    write_remote_environment(tmp_path / "env", variables, {"DS_ACCELERATOR": "cpu"})
    changed(job, "out", tmp_path, **IN_TWO["vision encoder"]).write(tmp_path / "job.json")
    module = ["dt2it_pipeline.engines.jobs", str(tmp_path / "job.json")]
    line = ranks_command(module, 1, hostfile=tmp_path / "hosts")
    done = subprocess.run(line, env=variables, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = re.search(r'"ranks": (\d+)', done.stdout)
    assert ranks is not None
    assert ranks[1] == "2"
    assert "node_rank=1" in done.stdout + done.stderr
    assert weights_digest(tmp_path / "out") == weights_digest(trained / "vision encoder")


def test_a_rank_may_have_images_where_the_other_has_none(job: TrainJob, tmp_path: Path) -> None:
    """Ranks gather divided weights together, and the vision encoder runs for images alone. A third has none."""
    one_by_one = FEW | {"cache_vision": False, "micro_batch_size": 1}
    train_several(
        [changed(job, name, tmp_path, **one_by_one | stage) for name, stage in (("two", ZERO2), ("three", ZERO3))],
        tmp_path / "jobs.json", 2,
    )  # fmt: skip
    first, second = (log_of(tmp_path / name) for name in ("two", "three"))
    assert [row["loss"] for row in second] == pytest.approx([row["loss"] for row in first], abs=1e-5)
