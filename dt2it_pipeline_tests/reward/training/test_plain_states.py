"""States that DeepSpeed has written are read without running anything, and a training goes on from them as before."""

from __future__ import annotations

import json
import os
import pathlib
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from dt2it_pipeline.reward.errors import TrainingError
from dt2it_pipeline.reward.training.checkpointing import nothing_run
from dt2it_pipeline.reward.training.job import TrainJob
from dt2it_pipeline.reward.training.train import run, weights_digest
from dt2it_pipeline.storage import finished_work
from dt2it_pipeline_tests.support.training_jobs import changed, small_job

OFFLOADED = {
    "zero_optimization": {"offload_optimizer": {"device": "cpu"}},
    "zero_force_ds_cpu_optimizer": False,  # DeepSpeed's own would be compiled first
    "zero_allow_untested_optimizer": True,
    "optimizer": {"type": "AdamW", "params": {"torch_adam": True}},
}
CONFIGS: dict[str, dict[str, Any]] = {
    "zero0": {"zero_optimization": {"stage": 0}},
    "zero1": {"zero_optimization": {"stage": 1}},
    "zero2": {"zero_optimization": {"stage": 2}},
    "zero3": {"zero_optimization": {"stage": 3}},
    "zero2-offload": OFFLOADED | {"zero_optimization": {"stage": 2, **OFFLOADED["zero_optimization"]}},
    "zero3-offload": OFFLOADED
    | {"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}, **OFFLOADED["zero_optimization"]}},
    "scheduler": {"zero_optimization": {"stage": 2}, "scheduler": {"type": "WarmupLR", "params": {}}},
}
NOT_TRAINED = [
    ("zero0", "bfloat16"),  # DeepSpeed has no such training with sums in float32
    # With an offloaded optimizer or a scheduler, a state holds the classes of its stage in the same precision.
    ("zero2-offload", "bfloat16"),
    ("zero3-offload", "float32"),
    ("scheduler", "bfloat16"),
]
ADAPTERS = {"lora": {"rank": 4, "alpha": 8.0}}


@pytest.fixture
def configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project with a DeepSpeed file for every stage."""
    folder = tmp_path / "project" / "configs" / "deepspeed"
    folder.mkdir(parents=True)
    for name, config in CONFIGS.items():
        common = {"optimizer": {"type": "AdamW", "params": {"betas": [0.9, 0.999], "eps": 1e-8}}}
        if config["zero_optimization"]["stage"] == 3:
            config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] = True
        (folder / f"{name}.json").write_text(json.dumps(common | config))
    monkeypatch.setenv("DT2IT_PROJECT", str(tmp_path / "project"))


def stop(progress: Mapping[str, Any]) -> None:
    """After six of nine steps; the last state is of the fourth."""
    if progress.get("unit") == "steps" and progress["done"] == 6:
        raise KeyboardInterrupt


@pytest.mark.parametrize(("config", "settings"), [
    (name, {"precision": precision} | adapters)
    for name in CONFIGS
    for precision, adapters in (("float32", ADAPTERS), ("bfloat16", {}))
    if (name, precision) not in NOT_TRAINED
])  # fmt: skip
def test_a_training_goes_on_from_a_state_of_every_stage(
    job: TrainJob, tmp_path: Path, configs: None, config: str, settings: dict[str, Any]
) -> None:
    whole, stopped = (changed(job, n, tmp_path, deepspeed_config=config, **settings) for n in ("whole", "stopped"))
    run(whole, [].append)
    with pytest.raises(KeyboardInterrupt):
        run(stopped, stop)
    assert run(stopped, [].append)["resumed_from_step"] == 4
    assert weights_digest(stopped.output) == weights_digest(whole.output)


class Harm:
    """Runs a function when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.arguments


def zipped(value: Any, file: Path) -> None:
    torch.save(value, file)


def in_the_old_form(value: Any, file: Path) -> None:
    torch.save(value, file, _use_new_zipfile_serialization=False)


def bare(value: Any, file: Path) -> None:
    file.write_bytes(pickle.dumps(value))


@pytest.fixture(scope="module")
def kept(base: Callable[[str], Path], tables: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> TrainJob:
    """A training that was stopped and has a state."""
    job = small_job(base("qwen3_vl"), tables, tmp_path_factory.mktemp("kept"))
    with pytest.raises(KeyboardInterrupt):
        run(job, stop)
    return job


@pytest.mark.parametrize("write", [zipped, in_the_old_form, bare])
@pytest.mark.parametrize("pattern", ["*model_states.pt", "*optim_states.pt"])
def test_nothing_in_a_state_is_run(kept: TrainJob, tmp_path: Path, pattern: str, write: Callable[..., None]) -> None:
    """The marker names the files as they are now: whoever can write the one can write the other."""
    (state,) = kept.work.glob("checkpoints/step-*")
    file, ran = next(state.glob(pattern)), tmp_path / "ran"
    before, marker = file.read_bytes(), (state / "complete.json").read_bytes()
    content = torch.load(file, weights_only=False)
    write(content | {"more": Harm(os.system, f"touch {ran}")}, file)
    torch.load(file, weights_only=False) if write is not bare else pickle.loads(file.read_bytes())
    assert ran.exists()  # so it would be run
    ran.unlink()
    try:
        digests = finished_work.synced_digests(state, sorted(state.glob("*.pt")))
        finished_work.finish(state / "complete.json", digests, json.loads(marker))
        named = ": it names posix.system, which no training state holds" if write is not bare else ""
        with pytest.raises(TrainingError) as raised:
            run(kept, [].append)
    finally:
        file.write_bytes(before)
        (state / "complete.json").write_bytes(marker)
    assert str(raised.value) == (
        f"the state to resume from is not used: {file} is not a file as DeepSpeed writes it{named}. Nothing in it was "
        f"run. Remove {state.parent} to train from the beginning"
    )
    assert not ran.exists()


class Reading:
    """Reads a file through its checkpoint engine, and past it, as DeepSpeed reads its universal checkpoints."""

    checkpoint_engine: Any = None


@pytest.mark.parametrize(("value", "name"), [
    (Harm(eval, "1"), "eval"), (Harm(getattr, "a", "upper"), "getattr"), (pathlib.PurePosixPath("a"), "pathlib.Pure")
])  # fmt: skip
def test_a_class_that_no_state_holds_is_named(tmp_path: Path, value: Any, name: str) -> None:
    torch.save({"module": value}, tmp_path / "state.pt")
    engine = Reading()
    with nothing_run(engine), pytest.raises(TrainingError, match=rf"state\.pt is not .*: it names {name}"):
        engine.checkpoint_engine.load(str(tmp_path / "state.pt"))


@pytest.mark.parametrize("content", [b"", b"abc", bytes(range(256)) * 8])
def test_what_is_no_pickle_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state.pt").write_bytes(content)
    engine = Reading()
    with nothing_run(engine), pytest.raises(TrainingError, match=r"state\.pt is not a file as DeepSpeed writes it\. "):
        engine.checkpoint_engine.load(str(tmp_path / "state.pt"))


def test_a_program_of_torchscript_is_not_run(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Identity()).save(str(tmp_path / "state.pt"))
    engine = Reading()
    with nothing_run(engine), pytest.raises(TrainingError, match=r"state\.pt is not a file as DeepSpeed writes it\. "):
        engine.checkpoint_engine.load(str(tmp_path / "state.pt"))


def test_what_is_read_past_the_checkpoint_engine_is_not_run_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"fp32": Harm(os.system, f"touch {tmp_path / 'ran'}")}, tmp_path / "fp32.pt")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with nothing_run(Reading()), pytest.raises(pickle.UnpicklingError, match="posix"):
        torch.load(tmp_path / "fp32.pt", weights_only=False)
    assert not (tmp_path / "ran").exists()
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1" and "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
    torch.load(tmp_path / "fp32.pt", weights_only=False)
    assert (tmp_path / "ran").exists()


def test_what_a_state_of_a_gpu_holds_is_read(tmp_path: Path) -> None:
    """The classes that DeepSpeed writes there, and the types that torch writes for values of a GPU."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    scaler = DynamicLossScaler(2.0**16, 1000, 1, 2, False, dtype=torch.float16)
    weight = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    state = {"loss_scaler": scaler, "device": torch.device("cuda", 0), "dtype": torch.bfloat16, "weight": weight}
    torch.save(state, tmp_path / "state.pt")
    engine = Reading()
    with nothing_run(engine):
        found = engine.checkpoint_engine.load(str(tmp_path / "state.pt"), map_location="cpu")
    assert vars(found["loss_scaler"]) == vars(scaler) and type(found["loss_scaler"]) is DynamicLossScaler
    assert (found["device"], found["dtype"]) == (torch.device("cuda", 0), torch.bfloat16)
    assert torch.equal(found["weight"], weight)
