"""The estimate of GPU memory: the counts agree with the model's, and the formula with arithmetic done by hand."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dt2it_pipeline.config import LoraSettings, TrainingSettings, model_path
from dt2it_pipeline.reward.reward_model import RewardModel
from dt2it_pipeline.reward.training.memory import Parameters, WeightsError, count_parameters, training_memory

BILLION = Parameters(language=1_000_000_000, vision=200_000_000, linear=3_000_000, file_bytes=2_400_000_000)


def test_counts_agree_with_the_model() -> None:
    found = count_parameters(Path(model_path("demo")))
    model = RewardModel.from_pretrained(model_path("demo"), new_head_seed=0)
    vision = sum(weight.numel() for name, weight in model.named_parameters() if "visual" in name)
    rest = sum(
        weight.numel() for name, weight in model.named_parameters() if "visual" not in name and "head" not in name
    )
    assert found.vision == vision
    assert found.language - rest in (0, model.config.text_config.vocab_size * model.config.text_config.hidden_size)
    assert found.total == found.language + found.vision


def test_linear_layers_are_those_that_lora_adapts(tmp_path: Path) -> None:
    save_file(
        {
            "model.language_model.layers.0.q_proj.weight": torch.zeros(8, 4),
            "model.language_model.layers.0.q_proj.bias": torch.zeros(8),
            "model.language_model.embed_tokens.weight": torch.zeros(10, 4),
            "model.visual.blocks.0.proj.weight": torch.zeros(3, 3),
        },
        tmp_path / "model.safetensors",
    )
    found = count_parameters(tmp_path)
    assert (found.language, found.vision, found.linear) == (32 + 8 + 40, 9, 12)


@pytest.mark.parametrize(
    ("settings", "stage", "expected"),
    [
        (TrainingSettings(processes=1, precision="bfloat16"), 2, (2.4e9, 4e9, 12e9)),
        (TrainingSettings(processes=8, precision="bfloat16"), 2, (2.4e9, 0.5e9, 1.5e9)),
        (TrainingSettings(processes=8, precision="bfloat16"), 3, (0.3e9, 0.5e9, 1.5e9)),
        (TrainingSettings(processes=8, precision="bfloat16"), 1, (2.4e9, 4e9, 1.5e9)),
        (TrainingSettings(processes=2), 0, (4.8e9, 4e9, 12e9)),
        (
            TrainingSettings(processes=1, precision="bfloat16", lora=LoraSettings(rank=10)),
            2,
            (2 * 1.23e9, 4 * 3e7, 12 * 3e7),
        ),
    ],
)
def test_the_formula(settings: TrainingSettings, stage: int, expected: tuple[float, float, float]) -> None:
    found = training_memory(BILLION, settings, stage)
    assert (found.weights, found.gradients, found.optimiser) == pytest.approx(expected)
    assert found.total == pytest.approx(sum(expected))


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 16, struct.pack("<Q", 4) + b"[1, ", struct.pack("<Q", 8) + b'{"a": 1}']
)
def test_damaged_weights_are_named(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(WeightsError, match="holds no"):
        count_parameters(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match=r"model\.safetensors cannot be read"):
        count_parameters(tmp_path)
