from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from dt2it_pipeline.reward.checkpoints.checkpoint import CheckpointError
from dt2it_pipeline.reward.data.collation import PackedExample, collate, with_pixels
from dt2it_pipeline.reward.reward_model import RewardModel
from dt2it_pipeline.reward.scoring.scorer import Scorer
from dt2it_pipeline.storage import atomic
from dt2it_pipeline_tests.support.tiny import make_prompt
from dt2it_pipeline_tests.support.tolerance import float32_tolerance, score_tolerance

HEADS = {"qwen3_vl": "score.weight", "qwen2_5_vl": "language_model.score.weight"}


@pytest.mark.numerics
@pytest.mark.parametrize("family", list(HEADS))
def test_saved_checkpoint_scores_the_same_and_is_laid_out_for_vllm(
    setup: Callable[..., Any], media: tuple[Path, Any], tmp_path: Path, family: str
) -> None:
    model, prompt_encoder, registry = setup(family)
    model.card["system_prompt"] = "You judge."
    with atomic.atomic_directory(tmp_path / "checkpoint") as folder:
        model.save_pretrained(folder)
    config = json.loads((tmp_path / "checkpoint" / "config.json").read_text())
    assert config["num_labels"] == 1
    assert config["problem_type"] == "regression"
    assert config["architectures"][0].endswith("VLForSequenceClassification")
    names = load_file(tmp_path / "checkpoint" / "model.safetensors")
    assert names[HEADS[family]].shape == (1, 32)
    assert not any("lm_head" in name for name in names)
    assert (tmp_path / "checkpoint" / "tokenizer.json").exists()

    again = RewardModel.from_pretrained(tmp_path / "checkpoint")
    assert again.card == model.card
    prompts = prompt_encoder.prompts([make_prompt(media[1][:1], "what colour")])
    batch = with_pixels(
        collate([PackedExample(prompts[0], tuple(prompt_encoder.responses(["red", "blue"])))]), registry
    )
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    # Weights of the same values may lie elsewhere in memory, which decides how a processor adds.
    assert torch.allclose(model(batch), again(batch), atol=score_tolerance(model, batch.input_ids.shape[1]), rtol=0)


@pytest.mark.parametrize("family", list(HEADS))
def test_several_files_hold_what_one_holds_and_transformers_reads_them(
    setup: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    model, _, _ = setup(family)
    for folder in ("one", "several"):
        (tmp_path / folder).mkdir()
    model.save_pretrained(tmp_path / "one")
    monkeypatch.setattr("dt2it_pipeline.reward.checkpoints.checkpoint._SHARD_BYTES", 40_000)
    model.save_pretrained(tmp_path / "several")
    whole = load_file(tmp_path / "one" / "model.safetensors")
    files = sorted((tmp_path / "several").glob("*.safetensors"))
    parts = [load_file(file) for file in files]
    assert len(parts) > 3 and all(file.name.endswith(f"-of-{len(parts):05d}.safetensors") for file in files)
    for part in parts:
        assert len(part) == 1 or sum(value.nbytes for value in part.values()) <= 40_000
        assert all(torch.equal(value, whole[name]) for name, value in part.items())
    index = json.loads((tmp_path / "several" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {name: file.name for file, part in zip(files, parts, strict=True) for name in part}
    assert index["weight_map"].keys() == whole.keys()
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in whole.values())
    again = RewardModel.from_pretrained(tmp_path / "several").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())


@pytest.mark.numerics
@pytest.mark.parametrize("family", list(HEADS))
def test_patches_by_a_matrix_product_are_those_of_the_convolution(setup: Callable[..., Any], family: str) -> None:
    model, *_ = setup(family)
    first = model.model.visual.patch_embed.proj
    patches = torch.randn(5, first.in_channels, *first.kernel_size, generator=torch.Generator().manual_seed(0))
    products = first.weight[0].numel()
    terms = (patches.flatten(1).norm(dim=1).max() * first.weight.flatten(1).norm(dim=1).max()).item()
    found, expected = first(patches).flatten(1), nn.Conv3d.forward(first, patches).flatten(1)
    assert torch.allclose(found, expected, atol=float32_tolerance(products) * terms, rtol=0)


def test_fresh_head_depends_on_the_seed_alone(base: Callable[..., Path]) -> None:
    heads = [RewardModel.from_pretrained(base(), new_head_seed=seed).head.weight for seed in (1, 1, 2)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def damaged(base: Path, folder: Path, **changes: Any) -> Path:
    shutil.copytree(base, folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_other_architectures_are_refused(base: Callable[..., Path], tmp_path: Path) -> None:
    folder = damaged(base(), tmp_path / "x", model_type="llama", architectures=["LlamaForCausalLM"])
    with pytest.raises(CheckpointError, match="LlamaForCausalLM"):
        RewardModel.from_pretrained(folder)


def test_missing_weights_are_refused(base: Callable[..., Path], tmp_path: Path) -> None:
    folder = damaged(base(), tmp_path / "x")
    weights = load_file(folder / "model.safetensors") | {"score.weight": torch.zeros(1, 32)}
    save_file({k: v for k, v in weights.items() if "visual.blocks.0" not in k}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks .* weights"):
        RewardModel.from_pretrained(folder)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no model folder"):
        RewardModel.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize("length", [4, 3000])
def test_a_damaged_weight_file_is_named(base: Callable[..., Path], tmp_path: Path, length: int) -> None:
    folder = damaged(base(), tmp_path / "x")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a whole safetensors file.*again"):
        RewardModel.from_pretrained(folder)
    weights.unlink()
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        RewardModel.from_pretrained(folder, new_head_seed=0)


def test_a_checkpoint_with_a_tokenizer_alone_names_what_is_missing(base: Callable[..., Path], tmp_path: Path) -> None:
    """TRL's RewardTrainer writes no image processor."""
    folder = damaged(base(), tmp_path / "x")
    (folder / "processor_config.json").unlink()
    model = RewardModel.from_pretrained(folder, new_head_seed=0)
    with pytest.raises(CheckpointError, match=r"x has neither processor_config\.json nor .*: copy the one"):
        Scorer(model, tmp_path, max_length=64, max_pixels=4096, tokens_per_batch=64)
    shutil.copyfile(base() / "processor_config.json", folder / "processor_config.json")
    Scorer(RewardModel.from_pretrained(folder, new_head_seed=0), tmp_path, max_length=64, max_pixels=4096,
           tokens_per_batch=64)  # fmt: skip


def test_other_damage_is_named(base: Callable[..., Path], tmp_path: Path) -> None:
    folder = damaged(base(), tmp_path / "x")
    (folder / "tokenizer.json").unlink()
    model = RewardModel.from_pretrained(folder, new_head_seed=0)
    with pytest.raises(CheckpointError, match="no usable processor files"):
        Scorer(model, tmp_path, max_length=64, max_pixels=4096, tokens_per_batch=64)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"cannot read .*config\.json"):
        RewardModel.from_pretrained(folder)
