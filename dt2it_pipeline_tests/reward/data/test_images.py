from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dt2it_pipeline.media.errors import MediaError
from dt2it_pipeline.media.opening import open_image
from dt2it_pipeline.media.store import store_image
from dt2it_pipeline.reward.data.images import ImageRegistry
from dt2it_pipeline_tests.support.ingest_world import PIXELS, encoded, sideways, transparent


def medium(path: str, kind: str = "image") -> dict[str, str]:
    return {"kind": kind, "sha256": f"hash of {path} {kind}", "path": path}


@pytest.fixture
def registry(setup: Callable[..., Any], tmp_path: Path) -> ImageRegistry:
    root = tmp_path / "root"
    root.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (64, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / "good.png")
    whole = (root / "good.png").read_bytes()
    (root / "cut.png").write_bytes(whole[: len(whole) // 2])
    (root / "text.png").write_text("not an image")
    (tmp_path / "outside.png").write_bytes(whole)
    Image.new("RGB", (1, 1000)).save(root / "narrow.png")
    Image.new("LA", (32, 32)).save(root / "grey.png")
    _, prompt_encoder, _ = setup()
    return ImageRegistry(prompt_encoder.processor.image_processor, root, 1024)


@pytest.mark.parametrize(
    ("path", "kind", "reason"),
    [
        ("absent.png", "image", "missing image"),
        ("text.png", "image", "unreadable image"),
        ("../outside.png", "image", "path outside the media root"),
        ("narrow.png", "image", "image too narrow"),
        ("good.png", "video", "medium not supported"),
    ],
)
def test_a_bad_image_has_a_reason(registry: ImageRegistry, path: str, kind: str, reason: str) -> None:
    for _ in range(2):  # remembered, and still an error
        with pytest.raises(MediaError) as caught:
            registry.add(medium(path, kind))
        assert caught.value.reason == reason


def test_a_truncated_image_fails_when_decoded(registry: ImageRegistry) -> None:
    index = registry.add(medium("cut.png"))
    with pytest.raises(MediaError, match=r"cut\.png"):
        registry.decode(index)


def test_grid_is_that_of_the_processor_and_respects_max_pixels(registry: ImageRegistry) -> None:
    index = registry.add(medium("good.png"))
    assert registry.add(medium("good.png")) == index
    patches, grids = registry.patches([registry.decode(index)])
    image = registry.images[index]
    assert tuple(grids[0].tolist()) == image.grid
    assert len(patches) == int(np.prod(image.grid)) == image.tokens * 4
    assert image.grid[1] * image.grid[2] * 64 <= 1024


def test_grey_with_alpha_becomes_rgb(registry: ImageRegistry) -> None:
    assert registry.decode(registry.add(medium("grey.png"))).shape == (3, 32, 32)


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P", "sideways", "sixteen"])
def test_our_model_and_vllm_see_the_same_pixels(tmp_path: Path, kind: str, setup: Callable[..., Any]) -> None:
    if kind == "sideways":
        content = sideways()
    elif kind == "sixteen":
        content = encoded(Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257))
    else:
        content = encoded(transparent(kind).resize((64, 48)))
    stored = store_image(content, tmp_path, tmp_path / "media").row
    (tmp_path / "media/as_it_came").write_bytes(content)  # a user's own file, which no import has seen
    _, prompt_encoder, _ = setup()
    registry = ImageRegistry(prompt_encoder.processor.image_processor, tmp_path / "media", 4096)
    seen = [
        registry.decode(registry.add(stored | {"path": path, "sha256": path})).permute(1, 2, 0).numpy()
        for path in (stored["path"], "as_it_came")
    ]
    chat = np.asarray(open_image(tmp_path / "media" / stored["path"]))
    assert all(np.array_equal(pixels, chat) for pixels in seen)
    assert registry.images[0].grid == registry.images[1].grid
    _, grids = registry.patches([registry.decode(1)])
    assert tuple(grids[0].tolist()) == registry.images[1].grid
