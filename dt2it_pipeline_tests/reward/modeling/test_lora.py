from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dt2it_pipeline.config.sections.training import LoraSettings
from dt2it_pipeline.reward.data.collation import PackedExample, collate, with_pixels
from dt2it_pipeline.reward.errors import TrainingError
from dt2it_pipeline.reward.modeling.lora import add_adapters
from dt2it_pipeline.reward.reward_model import RewardModel
from dt2it_pipeline.reward.training.deepspeed_engine import TrainedWeights
from dt2it_pipeline.reward.training.job import TrainJob
from dt2it_pipeline.reward.training.train import run
from dt2it_pipeline_tests.support.tiny import make_prompt
from dt2it_pipeline_tests.support.tolerance import score_tolerance
from dt2it_pipeline_tests.support.training_jobs import changed, log_of

SETTINGS = LoraSettings(rank=4, alpha=6.0)


@pytest.mark.numerics
@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
def test_merged_weights_give_the_scores_of_the_adapted_model(
    setup: Callable[..., Any], media: tuple[Path, Any], tmp_path: Path, family: str
) -> None:
    model, prompt_encoder, registry = setup(family)
    prompt = prompt_encoder.prompts([make_prompt(media[1][:1], "what colour is the circle")])[0]
    row = PackedExample(prompt, tuple(prompt_encoder.responses(["red", "it looks green to me"])))
    batch = with_pixels(collate([row]), registry)
    names = set(model.state_dict())
    before = model(batch)
    add_adapters(model, SETTINGS, seed=1)
    assert torch.equal(model(batch), before)  # B starts at zero
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name.split(".")[-3] for name in trained if "lora_" in name} == {"lora_A", "lora_B"}
    assert {name for name in trained if "lora_" not in name} == {"head.weight"}
    assert len([name for name in trained if "lora_A" in name]) == 7 * len(model.model.language_model.layers)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    adapted = model(batch)
    assert (adapted - before).abs().min() > 1e-3
    weights = TrainedWeights(model, SETTINGS)
    assert set(weights.sizes) == names
    model.save_pretrained(tmp_path, weights)
    within = score_tolerance(model, batch.input_ids.shape[1])
    assert torch.allclose(RewardModel.from_pretrained(tmp_path)(batch), adapted, atol=within, rtol=0)


def test_only_named_layers_are_adapted(setup: Callable[..., Any]) -> None:
    model, _, _ = setup()
    add_adapters(model, LoraSettings(target_modules=("q_proj", "v_proj")), seed=1)
    layers = {name.split(".lora_")[0].rpartition(".")[2] for name in model.state_dict() if ".lora_" in name}
    assert layers == {"q_proj", "v_proj"}


def test_an_unknown_layer_is_named_with_those_that_exist(setup: Callable[..., Any]) -> None:
    model, _, _ = setup()
    with pytest.raises(TrainingError, match=r"target_modules: .*no linear layer query; it has down_proj, gate_proj"):
        add_adapters(model, LoraSettings(target_modules=("query",)), seed=1)


def test_training_changes_adapted_layers_and_head_alone(job: TrainJob, tmp_path: Path) -> None:
    this = changed(job, "out", tmp_path, lora={"rank": 4, "alpha": 8.0, "target_modules": ["q_proj"]}, epochs=6.0)
    run(this, [].append)
    log = log_of(this.output)
    assert log[-1]["loss"] < log[0]["loss"]
    base = RewardModel.from_pretrained(job.base_model, new_head_seed=job.seed).state_dict()
    made = RewardModel.from_pretrained(this.output).state_dict()
    assert made.keys() == base.keys()
    different = {name for name in base if not torch.equal(base[name], made[name])}
    assert {name.split(".")[-2] for name in different} == {"q_proj", "head"}
