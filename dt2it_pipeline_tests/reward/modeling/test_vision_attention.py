"""The vision encoder's attention gives the numbers of transformers, and a block is one graph for any images."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dt2it_pipeline.reward.families import FAMILIES
from dt2it_pipeline.reward.modeling.compilation import _without_base
from dt2it_pipeline.reward.modeling.vision_attention import (
    VisionAttention,
    _by_length,
    _gradients,
    attend,
    segment_inputs,
)
from dt2it_pipeline.reward.reward_model import RewardModel

IMAGES = {  # the first has another number of patches than a head, or PyTorch takes one for the other
    "one": [[1, 4, 6]],
    "two": [[1, 4, 4], [1, 6, 8]],
    "apart": [[1, 4, 4], [1, 6, 6], [1, 4, 4]],
    "alike": [[1, 12, 8]] * 5,
    "video": [[3, 4, 6], [1, 8, 8]],
    "only a video": [[4, 6, 4]],
}


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def pixels_of(grids: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(int(grids.prod(-1).sum()), 3 * 2 * 8 * 8, generator=generator)


def upstream(model: RewardModel) -> RewardModel:
    """The model with the attention of transformers."""
    module: Any = importlib.import_module(type(model.model.visual).__module__)
    kind = getattr(module, f"{model.family.classes}VisionAttention")
    for block in model.model.visual.blocks:
        assert type(block.attn) is VisionAttention
        block.attn.__class__ = kind
    return model


def encoded(model: RewardModel, grids: torch.Tensor, **given: Any) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """What the vision encoder makes of pixels, DeepStack levels included, and the gradients of pixels and weights."""
    encoder, pixels = model.model.visual, pixels_of(grids).requires_grad_(True)
    encoder.zero_grad()
    out = encoder(pixels, grid_thw=grids, return_dict=True, **given)
    levels = [out.pooler_output, *(getattr(out, "deepstack_features", None) or ())]
    sum((level * torch.linspace(-1, 1, level.numel()).view_as(level)).sum() for level in levels).backward()
    assert pixels.grad is not None
    gradients = [pixels.grad, *(weight.grad for weight in encoder.parameters() if weight.grad is not None)]
    return [level.detach() for level in levels], gradients


def apart(some: list[torch.Tensor], others: list[torch.Tensor]) -> float:
    """Largest difference, relative to the largest value of its tensor."""
    pairs = zip(some, others, strict=True)
    return max(float((one - other).abs().max() / other.abs().max()) for one, other in pairs)


@pytest.mark.numerics
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("images", IMAGES)
def test_numbers_are_those_of_transformers(base: Callable[..., Path], family: str, images: str) -> None:
    grids = torch.tensor(IMAGES[images])
    ours = RewardModel.from_pretrained(base(family), new_head_seed=0).eval()
    theirs = upstream(RewardModel.from_pretrained(base(family), new_head_seed=0).eval())
    (levels, gradients), (wanted, wanted_gradients) = encoded(ours, grids), encoded(theirs, grids)
    assert len(levels) == ours.levels and len(gradients) == len(wanted_gradients) > 20
    assert all(float(level.std()) > 0.01 for level in wanted)
    assert apart(levels, wanted) < 1e-5
    assert apart(gradients, wanted_gradients) < 5e-5
    features = ours.encode_images(pixels_of(grids), grids)
    assert apart([features], [torch.cat(wanted, dim=-1)]) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_computed_ahead_is_what_the_encoder_computes(base: Callable[..., Path], family: str) -> None:
    grids = torch.tensor(IMAGES["video"])
    model = RewardModel.from_pretrained(base(family), new_head_seed=0).eval()
    ready = segment_inputs(model.model.visual, grids, torch.device("cpu"))
    assert "cu_seqlens" in ready and len(ready) == 4
    assert apart(encoded(model, grids, **ready)[0], encoded(model, grids)[0]) == 0


def test_what_scoring_has_kept_serves_a_training(base: Callable[..., Path]) -> None:
    """Scoring runs in inference mode, whose tensors may not stand in a backward pass."""
    grids = torch.tensor(IMAGES["apart"])
    model = RewardModel.from_pretrained(base(), new_head_seed=0).eval()
    _by_length.cache_clear()
    with torch.inference_mode():
        features = model.encode_images(pixels_of(grids), grids)
    assert _by_length.cache_info().currsize == 1
    levels, _ = encoded(model, grids)
    assert apart([features], [torch.cat(levels, dim=-1)]) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_block_is_one_graph_for_any_images(base: Callable[..., Path], family: str) -> None:
    """Without kernels: what is checked is that tracing meets nothing that it cannot take, and when it traces anew."""
    plain = RewardModel.from_pretrained(base(family), new_head_seed=0).eval()
    traced = RewardModel.from_pretrained(base(family), new_head_seed=0).eval()
    for block in traced.model.visual.blocks:
        whole = torch.compile(block.forward, dynamic=True, fullgraph=True, backend="eager")
        block.forward = _without_base(whole)
    for images in IMAGES.values():
        grids = torch.tensor(images)
        found, wanted = (model.encode_images(pixels_of(grids), grids) for model in (traced, plain))
        assert apart([found], [wanted]) < 1e-5
    counted = torch._dynamo.utils.counters
    assert not counted["graph_break"]
    assert counted["stats"]["unique_graphs"] == 1
    for images in IMAGES.values():
        grids = torch.tensor(images)
        (levels, gradients), (wanted_levels, wanted_gradients) = encoded(traced, grids), encoded(plain, grids)
        assert apart(levels, wanted_levels) < 1e-5 and apart(gradients, wanted_gradients) < 5e-5
    assert not counted["graph_break"]


def test_the_attention_of_transformers_breaks_the_graph(base: Callable[..., Path]) -> None:
    """Where this fails, transformers has mended its own, and ours may go."""
    model = upstream(RewardModel.from_pretrained(base(), new_head_seed=0).eval())
    for block in model.model.visual.blocks:
        block.forward = torch.compile(block.forward, dynamic=True, backend="eager")
    for count in (1, 2, 3):
        grids = torch.tensor([[1, 4, 4]] * count)
        model.encode_images(pixels_of(grids), grids)
    counted = torch._dynamo.utils.counters
    assert counted["graph_break"] and counted["stats"]["unique_graphs"] > 3


def test_the_operator_keeps_the_rules_of_custom_operators() -> None:
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(12, 2, 8, generator=generator, requires_grad=True) for _ in range(3)]
    fixed = [state.detach() for state in states]
    for bounds in ([0, 12], [0, 4, 8, 12], [0, 4, 6, 10, 12], [0, 4, 4, 12]):
        given = torch.tensor(bounds, dtype=torch.int32)
        torch.library.opcheck(attend, (*states, given, 0.3))
        torch.library.opcheck(_gradients, (torch.ones(12, 2, 8), *fixed, given, 0.3))


@pytest.mark.parametrize("bounds", [[0], [0, 4], [2, 10], [0, 4, 12]])
def test_segments_that_do_not_hold_all_patches_are_refused(bounds: list[int]) -> None:
    states = torch.randn(10, 2, 8)
    with pytest.raises(ValueError, match=f"segments from {bounds[0]} to {bounds[-1]} do not hold all 10 patches"):
        attend(states, states, states, torch.tensor(bounds), 0.3)


def test_under_autocast_it_gives_the_type_that_it_was_given() -> None:
    states, bounds = torch.randn(10, 2, 8), torch.tensor([0, 4, 6, 10])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = attend(states, states, states, bounds, 0.3)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, attend(states, states, states, bounds, 0.3), atol=0.05, rtol=0.05)
