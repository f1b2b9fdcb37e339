"""Images for scoring: decoded, scaled and cut into patches, by threads while the GPU computes (engines/device.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from dt2it_pipeline.media.errors import MediaError
from dt2it_pipeline.reward.data.images import ImageRegistry


@dataclass
class Patches:
    """What was read of some images: patches of those that can be decoded, and what is wrong with the others."""

    images: list[int] = field(default_factory=list)  # indices in the registry, of those decoded
    pixels: torch.Tensor | None = None  # [patches of all, values of a patch]
    grids: torch.Tensor | None = None  # int64 [images, 3]
    faults: dict[int, MediaError] = field(default_factory=dict)


def read_patches(registry: ImageRegistry, images: Sequence[int], device: torch.device) -> Patches:
    """Read images for the vision encoder; for a GPU, into memory from which it copies by itself."""
    out = Patches()
    decoded = []
    for index in images:
        try:
            decoded.append(registry.decode(index))
        except MediaError as error:
            out.faults[index] = error
        else:
            out.images.append(index)
    if decoded:
        out.pixels, out.grids = registry.patches(decoded)
        if device.type == "cuda":
            out.pixels = out.pixels.pin_memory()
    return out
