"""The vision encoder that remembers images: how much it keeps, and that this changes nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dt2it_pipeline.judges.likelihood import vision_cache
from dt2it_pipeline.judges.likelihood.vision_cache import RememberingVisionEncoder
from dt2it_pipeline_tests.support.tiny import make_tiny

GRID = [1, 4, 4]
IMAGES = 6


@pytest.fixture(scope="module")
def vision_encoder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from dt2it_pipeline.engines.torchvision_shim import ensure_torchvision

    ensure_torchvision()
    from transformers import AutoModelForImageTextToText

    folder = make_tiny(tmp_path_factory.mktemp("model"), "qwen3_vl")
    return AutoModelForImageTextToText.from_pretrained(folder).eval().model.visual


def _pixels(vision_encoder: Any) -> list[torch.Tensor]:
    """Patches of different images."""
    config = vision_encoder.config
    values = config.in_channels * config.temporal_patch_size * config.patch_size**2
    return list(torch.randn(IMAGES, GRID[1] * GRID[2], values, generator=torch.Generator().manual_seed(0)))


def _encoded(encoder: Any, images: list[torch.Tensor]) -> SimpleNamespace:
    with torch.inference_mode():
        found: SimpleNamespace = encoder(torch.cat(images), grid_thw=torch.tensor([GRID] * len(images)))
    return found


def _kept(encoder: RememberingVisionEncoder) -> list[torch.Tensor]:
    return [level for levels in encoder._known.values() for level in levels]


def test_a_kept_part_holds_no_memory_but_its_own(vision_encoder: Any) -> None:
    """Else one image that is still known would keep the features of the whole batch."""
    encoder = RememberingVisionEncoder(vision_encoder)
    _encoded(encoder, _pixels(vision_encoder))
    assert len(encoder._known) == IMAGES and len(_kept(encoder)) > IMAGES  # several levels each
    assert [part.untyped_storage().nbytes() for part in _kept(encoder)] == [part.nbytes for part in _kept(encoder)]


@pytest.mark.parametrize("images", [0, 1, 3])
def test_what_is_kept_is_bounded_in_bytes(vision_encoder: Any, monkeypatch: pytest.MonkeyPatch, images: int) -> None:
    pixels = _pixels(vision_encoder)
    whole = RememberingVisionEncoder(vision_encoder)
    expected = _encoded(whole, pixels)
    each = sum(part.untyped_storage().nbytes() for part in _kept(whole)) // IMAGES
    monkeypatch.setattr(vision_cache, "KEPT_BYTES", images * each + each // 2)
    encoder = RememberingVisionEncoder(vision_encoder)
    for batch in (pixels, pixels[:2], pixels[1:]):  # all new, then known, forgotten and new ones side by side
        found = _encoded(encoder, batch)
        start = 1 if batch[0] is pixels[1] else 0
        tokens = len(expected.pooler_output) // IMAGES
        rows = slice(start * tokens, (start + len(batch)) * tokens)
        torch.testing.assert_close(found.pooler_output, expected.pooler_output[rows])
        for level, other in zip(found.deepstack_features, expected.deepstack_features, strict=True):
            torch.testing.assert_close(level, other[rows])
        held = sum(part.untyped_storage().nbytes() for part in _kept(encoder))
        assert held == encoder._bytes == images * each <= vision_cache.KEPT_BYTES
    again = pixels[: max(1, images)]
    _encoded(encoder, again)
    calls: list[int] = []
    handle = vision_encoder.register_forward_pre_hook(lambda *_: calls.append(1))
    _encoded(encoder, again)
    handle.remove()
    assert len(calls) == (images == 0)
