"""Which head a folder holds: every layout that trainers leave, and what is refused."""

from __future__ import annotations

import doctest
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dt2it_pipeline.reward.checkpoints import checkpoint
from dt2it_pipeline.reward.checkpoints.checkpoint import CheckpointError
from dt2it_pipeline.reward.checkpoints.heads import find_head, serving_fault
from dt2it_pipeline.reward.reward_model import RewardModel
from dt2it_pipeline.reward.scoring.scorer import Scorer
from dt2it_pipeline_tests.support.commands import failing
from dt2it_pipeline_tests.support.trainer_layouts import (
    BIAS,
    WITH_BIAS,
    WITHOUT_BIAS,
    Layout,
    llamafactory,
    make_head,
    ms_swift,
    older_ms_swift,
    value_head,
    with_weights,
)

FAMILIES = ("qwen3_vl", "qwen2_5_vl")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", [*WITHOUT_BIAS, *WITH_BIAS], ids=lambda layout: layout.__name__)
def test_the_head_in_the_files_is_the_head_in_use(
    base: Callable[..., Path], tmp_path: Path, layout: Layout, family: str
) -> None:
    folder = layout(base(family), tmp_path / "theirs", make_head())
    model = RewardModel.from_pretrained(folder)
    assert torch.equal(model.head.weight, make_head())
    assert model.card.get("dropped_bias", 0.0) == (BIAS if layout in WITH_BIAS else 0.0)
    expected = RewardModel.from_pretrained(base(family), new_head_seed=0)
    assert all(
        torch.equal(value, model.model.state_dict()[name]) for name, value in expected.model.state_dict().items()
    )
    # A seed is for models without a head alone.
    assert torch.equal(RewardModel.from_pretrained(folder, new_head_seed=1).head.weight, make_head())


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "model.",
        "base_model.model.",
        "_orig_mod.module.",
        "model.language_model.",
        "language_model.",
        "pretrained_model.",
    ],
)
def test_what_stands_before_the_name_of_a_head_does_not_matter(tmp_path: Path, prefix: str) -> None:
    for name in ("score", "v_head.summary"):
        save_file({f"{prefix}{name}.weight": make_head()}, tmp_path / "one.safetensors")
        head = find_head(tmp_path, 32)
        assert head is not None and torch.equal(head.weight, make_head())


def test_a_configuration_as_qwen2_5_vl_was_first_published_is_read(base: Callable[..., Path], tmp_path: Path) -> None:
    """Its language model's settings stand at the top."""
    folder = ms_swift(base("qwen2_5_vl"), tmp_path / "x", make_head())
    config = json.loads((folder / "config.json").read_text())
    config |= {name: value for name, value in config.pop("text_config").items() if name != "model_type"}
    (folder / "config.json").write_text(json.dumps(config))
    model = RewardModel.from_pretrained(folder)
    expected = RewardModel.from_pretrained(base("qwen2_5_vl"), new_head_seed=0)
    assert torch.equal(model.head.weight, make_head())
    assert all(
        torch.equal(value, model.model.state_dict()[name]) for name, value in expected.model.state_dict().items()
    )


def test_the_examples_of_plain_names_hold() -> None:
    assert doctest.testmod(checkpoint) == doctest.TestResults(failed=0, attempted=2)


def test_a_base_model_gives_no_score(base: Callable[..., Path], tmp_path: Path) -> None:
    message = (
        r"has no head, so it gives no score: looked for score\.weight and v_head\.summary\.weight in files "
        r"value_head\.safetensors, .*value_head\.bin.*; there are model\.safetensors\. .*dt2it train.*kind: likelihood"
    )
    with pytest.raises(CheckpointError, match=message):
        RewardModel.from_pretrained(base())
    with pytest.raises(CheckpointError, match=message):
        Scorer(base(), tmp_path, max_length=64, max_pixels=4096, tokens_per_batch=64)
    called = shutil.copytree(base(), tmp_path / "called")  # by its config.json alone
    config = json.loads((called / "config.json").read_text()) | {"architectures": ["Qwen3VLForSequenceClassification"]}
    (called / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        RewardModel.from_pretrained(called)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "q?", "responses": ["a", "b"]}) + "\n")
    printed = failing("score", tmp_path / "rows.jsonl", "--model", base(), "--output", tmp_path / "scores.jsonl")
    assert "has no head, so it gives no score" in " ".join(printed.split())
    assert not (tmp_path / "scores.jsonl").exists()


def test_a_head_of_another_kind_is_named(base: Callable[..., Path], tmp_path: Path) -> None:
    weights = load_file(base() / "model.safetensors")
    folder = with_weights(base(), tmp_path / "x", weights | {"reward_head.0.weight": torch.zeros(8, 32)})
    with pytest.raises(CheckpointError, match=r"no part of the backbone: reward_head\.0\.weight\. "):
        RewardModel.from_pretrained(folder)


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ({"score.weight": torch.zeros(3, 32)}, r"score\.weight has 3 labels .* num_labels 1"),
        ({"score.weight": torch.zeros(1, 64)}, r"score\.weight has shape \(1, 64\), the backbone needs \(1, 32\)"),
        ({"score.weight": torch.zeros(32)}, r"score\.weight has shape \(32,\)"),
        ({"score.weight": make_head(), "score.bias": torch.zeros(2)}, r"score\.bias has shape \(2,\)"),
        ({"score.weight": torch.full((1, 32), float("nan"))}, "not finite"),
        (
            {"score.weight": make_head()} | value_head(make_head(seed=8)),
            r"several heads that differ: score\.weight in ",
        ),
    ],
)
def test_a_head_that_does_not_fit_is_refused(
    base: Callable[..., Path], tmp_path: Path, added: dict[str, torch.Tensor], message: str
) -> None:
    folder = with_weights(base(), tmp_path / "x", load_file(base() / "model.safetensors") | added)
    for seed in (None, 0):
        with pytest.raises(CheckpointError, match=message):
            RewardModel.from_pretrained(folder, new_head_seed=seed)


def test_heads_in_two_files_must_agree(base: Callable[..., Path], tmp_path: Path) -> None:
    folder = ms_swift(base(), tmp_path / "x", make_head())
    save_file(value_head(make_head()), folder / "value_head.safetensors")
    assert torch.equal(RewardModel.from_pretrained(folder).head.weight, make_head())
    save_file(value_head(make_head(seed=8)), folder / "value_head.safetensors")
    with pytest.raises(CheckpointError, match=r"score\.weight in model\.safetensors, v_head\.summary\.weight in value"):
        RewardModel.from_pretrained(folder)


class Surprise:
    def __reduce__(self) -> Any:
        return print, ("executed",)


@pytest.mark.parametrize("content", [b"not a pickle", {"v_head.summary.weight": Surprise()}, [1], {"a": 1}])
def test_nothing_but_tensors_is_unpickled(
    base: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], content: Any
) -> None:
    folder = shutil.copytree(base(), tmp_path / "x")
    if isinstance(content, bytes):
        (folder / "value_head.bin").write_bytes(content)
    else:
        torch.save(content, folder / "value_head.bin")
    with pytest.raises(CheckpointError, match=r"value_head\.bin (cannot be read|does not hold tensors).*safetensors"):
        RewardModel.from_pretrained(folder)
    assert "executed" not in capsys.readouterr().out


def test_quantised_weights_are_refused(base: Callable[..., Path], tmp_path: Path) -> None:
    weights = load_file(base() / "model.safetensors") | {"score.weight": make_head()}
    folder = with_weights(base(), tmp_path / "x", weights, quantization_config={"quant_method": "awq"})
    with pytest.raises(CheckpointError, match="quantised weights are not supported"):
        RewardModel.from_pretrained(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_our_layout_is_served(base: Callable[..., Path], tmp_path: Path, family: str) -> None:
    (tmp_path / "ours").mkdir()
    RewardModel.from_pretrained(base(family), new_head_seed=0).save_pretrained(tmp_path / "ours")
    assert serving_fault(tmp_path / "ours") is None
    assert "has no head" in str(serving_fault(base(family)))
    for layout in (ms_swift, older_ms_swift, llamafactory):
        folder = layout(base(family), tmp_path / layout.__name__, make_head())
        assert f"dt2it convert {folder} DESTINATION" in str(serving_fault(folder))
