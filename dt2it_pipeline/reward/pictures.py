"""Pictures on their way to the frozen tower: found below the media root, checked, decoded, patched and encoded.

Input is hostile here: a file may be missing, truncated, huge or outside the root. Every fault is a PictureError with a
short fixed reason, so that the caller can set the row aside.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

    from dt2it_pipeline.reward.model import RewardModel

MOST_PIXELS = 200_000_000  # a larger picture is refused before it is decoded
_CHUNK_PATCHES = 8192  # patches that the tower sees at once when features are computed ahead


class PictureError(ValueError):
    """A picture cannot be used; `reason` is a short fixed phrase, the message says what was found."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)  # both, so that it can travel between processes
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture whose header has been read."""

    path: Path
    grid: tuple[int, int, int]  # patches in time, height and width
    tokens: int  # after the projector merged patches


class PictureShelf:
    """All pictures of a job, each once by content hash."""

    def __init__(self, image_processor: Any, media_root: str | Path, max_pixels: int) -> None:
        self.processor = image_processor
        self.root = Path(media_root).resolve()
        size = image_processor.size
        longest = min(int(size["longest_edge"]), max_pixels)
        self.size = {"shortest_edge": min(int(size["shortest_edge"]), longest), "longest_edge": longest}
        self.merge = int(image_processor.merge_size)
        self.pictures: list[Picture] = []
        self._by_key: dict[str, int | PictureError] = {}

    def add(self, medium: Mapping[str, Any]) -> int:
        """Index of a picture (a row of `media`), read from its header when it is new. Raises PictureError."""
        key = str(medium["sha256"] or medium["path"])
        known = self._by_key.get(key)
        if known is None:
            try:
                picture = self._open(medium)
            except PictureError as error:
                known = error
            else:
                known = len(self.pictures)
                self.pictures.append(picture)
            self._by_key[key] = known
        if isinstance(known, PictureError):
            raise known
        return known

    def _open(self, medium: Mapping[str, Any]) -> Picture:
        from PIL import Image
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

        if medium["kind"] != "image":
            raise PictureError("medium not supported", f"{medium['kind']!r}; only images are")
        path = (self.root / medium["path"]).resolve()
        if not path.is_relative_to(self.root):
            raise PictureError("picture outside the media root", str(medium["path"]))
        if not path.is_file():
            raise PictureError("picture missing", str(medium["path"]))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                with Image.open(path) as image:
                    width, height = image.size
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise PictureError("picture unreadable", f"{medium['path']}: {error}") from error
        if width * height > MOST_PIXELS:
            raise PictureError("picture too large", f"{medium['path']}: {width} x {height} pixels")
        factor = self.processor.patch_size * self.merge
        try:
            tall, wide = smart_resize(
                height, width, factor, min_pixels=self.size["shortest_edge"], max_pixels=self.size["longest_edge"]
            )
        except (ValueError, ZeroDivisionError) as error:
            raise PictureError("picture too narrow", f"{medium['path']}: {width} x {height} pixels") from error
        grid = (1, tall // self.processor.patch_size, wide // self.processor.patch_size)
        return Picture(path, grid, grid[1] * grid[2] // self.merge**2)

    def decode(self, index: int) -> torch.Tensor:
        """Pixels of one picture as uint8 [3, height, width]. Raises PictureError where the file is damaged."""
        import torch
        from PIL import Image

        picture = self.pictures[index]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with Image.open(picture.path) as image:
                    pixels = np.array(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise PictureError("picture unreadable", f"{picture.path.name}: {error}") from error
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def patches(self, decoded: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale, normalise and cut decoded pictures: patches [patches, values] and grids [pictures, 3]."""
        out = self.processor(images=list(decoded), size=self.size, return_tensors="pt")
        return out["pixel_values"], out["image_grid_thw"]


class FeatureTable:
    """Tower output of pictures, computed ahead: [tokens of all pictures, levels * hidden]."""

    def __init__(self, rows: torch.Tensor, starts: Mapping[int, int]) -> None:
        self.rows = rows
        self.starts = starts

    def gather(self, shelf: PictureShelf, pictures: Sequence[int]) -> torch.Tensor:
        """Feature rows of pictures, one after the other."""
        import torch

        spans = [np.arange(self.starts[p], self.starts[p] + shelf.pictures[p].tokens) for p in pictures]
        return self.rows.index_select(0, torch.from_numpy(np.concatenate(spans)).to(self.rows.device))


def feature_bytes(model: RewardModel, shelf: PictureShelf, pictures: Sequence[int]) -> int:
    """Memory that the features of these pictures need, in bytes."""
    width = model.levels * model.config.text_config.hidden_size
    size = next(model.model.visual.parameters()).element_size()
    return sum(shelf.pictures[p].tokens for p in pictures) * width * size


def chunks(shelf: PictureShelf, pictures: Sequence[int]) -> list[list[int]]:
    """Split pictures into runs that the tower encodes together; depends on nothing but the list."""
    out: list[list[int]] = []
    room = 0
    for index in pictures:
        patches = int(np.prod(shelf.pictures[index].grid))
        if not out or patches > room:
            out.append([])
            room = _CHUNK_PATCHES
        out[-1].append(index)
        room -= patches
    return out


def encode_chunk(
    model: RewardModel, shelf: PictureShelf, chunk: Sequence[int], device: torch.device
) -> tuple[dict[int, torch.Tensor], dict[int, PictureError]]:
    """Features of each picture of a chunk, [tokens, levels * hidden], and the pictures that could not be decoded."""
    decoded: dict[int, torch.Tensor] = {}
    faults: dict[int, PictureError] = {}
    for index in chunk:
        try:
            decoded[index] = shelf.decode(index)
        except PictureError as error:
            faults[index] = error
    if not decoded:
        return {}, faults
    pixels, grids = shelf.patches(list(decoded.values()))
    features = model.encode_pictures(pixels.to(device), grids.to(device))
    parts = features.split([shelf.pictures[index].tokens for index in decoded])
    return dict(zip(decoded, parts, strict=True)), faults
