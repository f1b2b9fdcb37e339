"""Who makes the optimiser of a training: PyTorch's AdamW where the file asks for AdamW, DeepSpeed where it must.

And how ZeRO-3 loads a model; test_memory.py measures what that takes.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dt2it_pipeline.config.sections.training import TrainingSettings
from dt2it_pipeline.reward.training.deepspeed_engine import deepspeed_config, take_optimizer
from dt2it_pipeline.reward.training.job import TrainJob
from dt2it_pipeline.reward.training.train import run


def groups() -> list[dict[str, Any]]:
    return [{"params": [torch.nn.Parameter(torch.ones(2, 2))], "weight_decay": 0.1}]


@pytest.mark.parametrize("name", ["zero2", "zero3", "zero2_cpu", "zero2_one_gpu", "zero3_cpu"])
def test_adamw_is_pytorchs_and_leaves_the_configuration(name: str) -> None:
    config = deepspeed_config(TrainingSettings(deepspeed_config=name, learning_rate=0.25), ranks=1)
    optimizer = take_optimizer(config, groups())
    assert type(optimizer) is torch.optim.AdamW
    assert "optimizer" not in config
    (group,) = optimizer.param_groups
    assert (group["lr"], tuple(group["betas"]), group["eps"], group["weight_decay"]) == (0.25, (0.9, 0.999), 1e-8, 0.1)
    assert not group["fused"]  # only on a GPU


@pytest.mark.parametrize("change", [
    {"optimizer": {"type": "Lion", "params": {}}}, {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}
])  # fmt: skip
def test_other_optimisers_are_left_to_deepspeed(change: dict[str, Any]) -> None:
    config = deepspeed_config(TrainingSettings(deepspeed_config="zero2"), ranks=1) | change
    assert take_optimizer(config, groups()) is None
    assert "optimizer" in config


def test_no_operator_of_deepspeed_is_compiled_whatever_architecture_is_named(
    job: TrainJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSpeed 0.19 cannot read an architecture with a suffix, and takes nvcc where it compiles."""
    from deepspeed.ops.op_builder.builder import OpBuilder

    def compiles(builder: Any, *_: Any, **__: Any) -> None:
        raise AssertionError(f"{builder.name} is compiled")

    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0a")
    monkeypatch.setattr(OpBuilder, "load", compiles)
    settings = job.settings.model_copy(update={"max_steps": 1, "deepspeed_config": "zero2"})
    assert run(job.model_copy(update={"settings": settings}), [].append)["steps"] == 1
    settings = settings.model_copy(update={"deepspeed_config": "zero3"})
    assert run(job.model_copy(update={"settings": settings}), [].append)["steps"] == 1


@pytest.mark.parametrize("name", ["zero2", "zero3", "zero2_cpu"])
def test_exchange_overlaps_with_computing_where_there_is_one(name: str) -> None:
    settings = TrainingSettings(deepspeed_config=name)
    one, eight = (deepspeed_config(settings, ranks)["zero_optimization"] for ranks in (1, 8))
    assert one == eight | {"overlap_comm": False} and eight["overlap_comm"] is (name != "zero2_cpu")


@pytest.mark.parametrize(("precision", "norms", "name"), [
    ("float32", 2, "zero2_cpu"), ("bfloat16", 1, "zero2_cpu"), ("bfloat16", 1, "zero2")
])  # fmt: skip
def test_deepspeed_waits_for_the_device_in_clipping_alone(
    job: TrainJob, monkeypatch: pytest.MonkeyPatch, precision: str, norms: int, name: str
) -> None:
    """Where a pass waits, a GPU has nothing to do until the next one is prepared. In float32, a step asks twice."""
    from deepspeed.accelerator import get_accelerator
    from deepspeed.runtime.zero import stage_1_and_2

    waited: list[str] = []
    monkeypatch.setattr(get_accelerator(), "synchronize", lambda *_: waited.append("synchronize"))
    asked = stage_1_and_2.is_invalid_grad_norm
    monkeypatch.setattr(stage_1_and_2, "is_invalid_grad_norm", lambda norm: waited.append("norm") or asked(norm))
    overflow = stage_1_and_2.DeepSpeedZeroOptimizer.has_overflow
    monkeypatch.setattr(
        stage_1_and_2.DeepSpeedZeroOptimizer, "has_overflow",
        lambda *given, **named: waited.append("overflow") or overflow(*given, **named),
    )  # fmt: skip
    changes = {"micro_batch_size": 2, "max_steps": 4, "precision": precision, "deepspeed_config": name}
    settings = job.settings.model_copy(update=changes)
    run(job.model_copy(update={"settings": settings}), [].append)
    assert waited == ["norm"] * 4 * norms
