"""Who makes the optimiser of a training: PyTorch's AdamW where the file asks for AdamW, DeepSpeed where it must."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dt2it_pipeline.config.sections.training import TrainingSettings
from dt2it_pipeline.reward.training.deepspeed_engine import deepspeed_config, take_optimizer


def groups() -> list[dict[str, Any]]:
    return [{"params": [torch.nn.Parameter(torch.ones(2, 2))], "weight_decay": 0.1}]


@pytest.mark.parametrize("name", ["zero2", "zero3", "zero2_cpu", "zero3_cpu"])
def test_adamw_is_pytorchs_and_leaves_the_configuration(name: str) -> None:
    config = deepspeed_config(TrainingSettings(deepspeed_config=name, learning_rate=0.25))
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
    config = deepspeed_config(TrainingSettings(deepspeed_config="zero2")) | change
    assert take_optimizer(config, groups()) is None
    assert "optimizer" in config
