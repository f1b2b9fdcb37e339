"""The recipes at full size: everything that they describe is built, short of downloading weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dt2it_pipeline.config.recipe import Recipe, load_recipe
from dt2it_pipeline.definitions import build_defs
from dt2it_pipeline.engines.launch.ranks import ranks_command
from dt2it_pipeline.ingest.manifest import load_catalogue
from dt2it_pipeline.reward.training.deepspeed_engine import deepspeed_config
from dt2it_pipeline.reward.training.schedule import Schedule, cosine_with_warmup, micro_batches

MODELS = {"qwen3_vl_8b": "Qwen/Qwen3-VL-8B-Instruct", "qwen2_5_vl_7b": "Qwen/Qwen2.5-VL-7B-Instruct"}


@pytest.fixture(params=sorted(MODELS))
def recipe(request: pytest.FixtureRequest) -> Recipe:
    return load_recipe(f"configs/recipes/{request.param}.yaml")


def test_settings_are_those_of_the_paper(recipe: Recipe) -> None:
    training = recipe.training
    assert training.base_model == MODELS[recipe.name]
    assert (training.learning_rate, training.warmup_ratio, training.epochs) == (1e-5, 0.1, 1)
    assert (training.global_batch_size, training.precision, training.gradient_checkpointing) == (512, "bfloat16", True)
    assert (training.max_length, training.max_pixels, training.deepspeed_config) == (7168, 268_324, "zero2")
    assert (recipe.scoring.max_length, recipe.scoring.pixel_limit) == (12_288, 1_310_720)
    assert (recipe.curation.flip_fraction, recipe.rounds, len(recipe.annotation.judges)) == (0.5, 3, 2)


def test_definitions_and_manifests_load(recipe: Recipe, tmp_path: Path) -> None:
    keys = {key.to_user_string() for key in build_defs(recipe, tmp_path).resolve_all_asset_keys()}
    assert {"raw_preferences", "debiased_pairs", "reward_model", "curated_pairs", "benchmark_scores"} <= keys
    assert {manifest.kind for manifest in load_catalogue(recipe.datasets)} == {
        "prompts", "preferences", "t2i", "benchmark"
    }  # fmt: skip


@pytest.mark.parametrize("config", ["zero2", "zero3"])
def test_deepspeed_takes_the_configuration(recipe: Recipe, config: str) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    settings = recipe.training.model_copy(update={"deepspeed_config": config})
    made = deepspeed_config(settings, ranks=8)
    parsed = DeepSpeedConfig(json.loads(json.dumps(made)))
    assert parsed.zero_optimization_stage == int(config[-1])
    assert parsed.bfloat16_config.enabled
    assert parsed.gradient_clipping == settings.max_grad_norm
    assert parsed.optimizer_params["lr"] == 1e-5
    assert "torch_adam" not in parsed.optimizer_params  # fused Adam on a GPU


@pytest.mark.parametrize("name", ["one_gpu_24gb", "one_gpu_80gb", "arxiv_2604_19544"])
def test_other_recipes_load_with_their_manifests(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(f"configs/recipes/{name}.yaml")
    assert recipe.name == name
    kinds = {manifest.kind for manifest in load_catalogue(recipe.datasets)}
    assert kinds == {"prompts", "preferences", "t2i", "benchmark"}
    assert "reward_model" in {key.to_user_string() for key in build_defs(recipe, tmp_path).resolve_all_asset_keys()}


def test_the_published_run_has_the_settings_of_the_full_size() -> None:
    published, ours = (load_recipe(f"configs/recipes/{name}.yaml") for name in ("arxiv_2604_19544", "qwen3_vl_8b"))
    for section in ("sampling", "training", "scoring", "curation", "annotation", "evaluation"):
        assert getattr(published, section) == getattr(ours, section)
    assert {"evalmuse", "hpdv2_train", "rlaif_v", "vlfeedback", "povid", "wildvision_battle", "mm_rlhf"} < set(
        published.datasets
    )


def test_one_epoch_over_d0(recipe: Recipe) -> None:
    """470K pairs (the paper's D0) at 512 a step: every pair once, every rank the same number of passes."""
    training = recipe.training
    schedule = Schedule(470_000, training.global_batch_size, training.epochs, training.max_steps, recipe.seed)
    assert schedule.steps == 918
    rates = [cosine_with_warmup(step, schedule.steps, training.warmup_ratio) for step in range(schedule.steps)]
    assert int(np.argmax(rates)) in (91, 92)
    assert rates[-1] < 1e-4
    pairs, lengths = schedule.step(0), np.random.default_rng(0).integers(500, 7168, size=470_000)
    most = training.micro_batch_size, training.micro_batch_tokens
    runs = [
        micro_batches(pairs, lengths, rank, training.processes, *most, lengths, one_row=True)
        for rank in range(training.processes)
    ]
    assert len({len(run) for run in runs}) == 1
    assert all(lengths[part].sum() <= 8192 for run in runs for part in run)
    assert sorted(np.concatenate([part for run in runs for part in run])) == sorted(pairs)
    command = ranks_command(["dt2it_pipeline.engines.launch.worker", "job.json"], training.processes)
    assert command[-2:] == ["dt2it_pipeline.engines.launch.worker", "job.json"]
