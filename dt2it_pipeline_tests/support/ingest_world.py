"""Sources for tests: images, and rows written to a file that a manifest describes."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dt2it_pipeline.ingest.manifest import Manifest
from dt2it_pipeline.ingest.rows import Item
from dt2it_pipeline.ingest.sources import items_of
from dt2it_pipeline.storage.artifacts import Artifact

RNG = np.random.default_rng(0)
PIXELS = np.kron(RNG.integers(0, 255, (6, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)  # 48 x 64


def encoded(image: Image.Image, kind: str = "PNG", **more: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **more)
    return buffer.getvalue()


def sideways() -> bytes:
    """A JPEG whose pixels lie on their side and whose EXIF says so."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(Image.fromarray(PIXELS), "JPEG", exif=exif, quality=95)


def transparent(kind: str) -> Image.Image:
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 255))
    image.putpixel((1, 1), (0, 0, 0, 0))
    image.putpixel((2, 2), (0, 0, 0, 128))
    if kind == "P":
        palette = Image.new("P", (4, 4), 0)
        palette.putpalette([255, 0, 0, 0, 0, 0])
        palette.putpixel((1, 1), 1)
        palette.info["transparency"] = 1
        return palette
    return image.convert(kind)


def image(path: Path, colour: Any = "red", kind: str = "PNG", size: tuple[int, int] = (8, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, format=kind)
    return path


def numbered_image(path: Path, number: int) -> Path:
    """A small image that differs from those of other numbers."""
    return image(path, (number % 256, number // 256 % 256, 7))


def source(folder: Path, rows: Sequence[Any], adapter: str, kind: str = "preferences", **more: Any) -> Manifest:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    fields = {"path": str(folder / "rows.jsonl"), "media_root": str(folder / "root"), "licence": "MIT"} | more
    return Manifest(name="s", kind=kind, adapter=adapter, **fields)


def items(folder: Path, rows: Sequence[Any], adapter: str, kind: str = "preferences", **more: Any) -> list[Item]:
    return list(items_of(source(folder, rows, adapter, kind, **more), folder))


def reasons(artifact: Artifact) -> list[str]:
    return artifact["quarantine"]["reason"].to_pylist()


LONG = (
    "The image shows a small red boat on a calm lake in front of snowy mountains, with two people in it. The sky is "
    "clear but for a few clouds, so that the light falls from the left; a wooden jetty leads from the shore to it."
)
