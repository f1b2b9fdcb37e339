"""Output of the frozen vision encoder, computed ahead of training and scoring: each image once, in fixed runs.

The encoder and the projector behind it take no gradient, so that what they make of an image never changes.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from dt2it_pipeline.engines.device import copied, read_ahead, threads_for
from dt2it_pipeline.media.errors import MediaError
from dt2it_pipeline.reward.data.images import ImageRegistry
from dt2it_pipeline.reward.data.patches import Patches, read_patches
from dt2it_pipeline.reward.modeling.model import RewardNetwork

_CHUNK_PATCHES = 8192  # patches that the vision encoder sees at once


class Ranks(Protocol):
    """What data preparation needs of the process group; `distributed.Group` and `distributed.Alone` have it."""

    rank: int
    size: int
    leader: int  # lowest rank of this machine

    def barrier(self) -> None:
        """Wait for all ranks."""

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, by rank."""


class Features(Protocol):
    """Vision encoder output of images: `FeatureTable`, or `kept_features.KeptFeatures`."""

    def gather(self, registry: ImageRegistry, images: Sequence[int]) -> torch.Tensor:
        """Feature rows of images, one image after the other: [their tokens, levels * hidden]."""


class FeatureTable:
    """Vision encoder output of images, computed ahead: [tokens of all images, levels * hidden]."""

    def __init__(self, rows: torch.Tensor, starts: Mapping[int, int]) -> None:
        self.rows = rows
        self.starts = starts

    def gather(self, registry: ImageRegistry, images: Sequence[int]) -> torch.Tensor:
        """Feature rows of images, one image after the other: [their tokens, levels * hidden]."""
        spans = [np.arange(self.starts[p], self.starts[p] + registry.images[p].tokens) for p in images]
        return self.rows.index_select(0, copied(torch.from_numpy(np.concatenate(spans)), self.rows.device))


def feature_bytes(model: RewardNetwork, registry: ImageRegistry, images: Sequence[int]) -> int:
    """Memory that the features of these images need, in bytes."""
    width = model.levels * model.config.text_config.hidden_size
    size = next(model.model.visual.parameters()).element_size()
    return sum(registry.images[p].tokens for p in images) * width * size


def chunks(registry: ImageRegistry, images: Sequence[int]) -> list[list[int]]:
    """Split images into runs that the vision encoder encodes together; depends on nothing but the list."""
    out: list[list[int]] = []
    room = 0
    for index in images:
        patches = int(np.prod(registry.images[index].grid))
        if not out or patches > room:
            out.append([])
            room = _CHUNK_PATCHES
        out[-1].append(index)
        room -= patches
    return out


def encode_patches(
    model: RewardNetwork, registry: ImageRegistry, read: Patches, device: torch.device
) -> tuple[dict[int, torch.Tensor], dict[int, MediaError]]:
    """Features of each image that was read, [tokens, levels * hidden], and the images that could not be decoded."""
    if read.pixels is None or read.grids is None:
        return {}, read.faults
    pixels = read.pixels.to(device, non_blocking=True)
    parts = model.encode_images(pixels, read.grids).split([registry.images[index].tokens for index in read.images])
    return dict(zip(read.images, parts, strict=True)), read.faults


def encode_images(
    model: RewardNetwork, registry: ImageRegistry, images: Sequence[int], device: torch.device
) -> tuple[FeatureTable, dict[int, MediaError]]:
    """Features of images in memory on `device`, and the images that could not be decoded."""
    read = functools.partial(read_patches, registry, device=device)
    ahead = read_ahead(chunks(registry, images), read, threads_for(device))
    return feature_table(model, registry, (patches for _, patches in ahead), device)


def feature_table(
    model: RewardNetwork, registry: ImageRegistry, read: Iterable[Patches], device: torch.device
) -> tuple[FeatureTable, dict[int, MediaError]]:
    """Features of images that have been read, in their order, and the images that could not be decoded."""
    parts: list[torch.Tensor] = []
    starts: dict[int, int] = {}
    broken: dict[int, MediaError] = {}
    total = 0
    for patches in read:
        features, bad = encode_patches(model, registry, patches, device)
        broken |= bad
        for index, part in features.items():
            starts[index] = total
            total += len(part)
            parts.append(part)
    width = model.levels * model.config.text_config.hidden_size
    return FeatureTable(torch.cat(parts) if parts else torch.zeros(0, width, device=device), starts), broken


def survey_images(
    model: RewardNetwork,
    registry: ImageRegistry,
    images: Sequence[int],
    *,
    most_bytes: float,
    work: Path,
    ranks: Ranks,
    device: torch.device,
) -> tuple[FeatureTable | None, dict[int, MediaError]]:
    """Compute the frozen vision encoder's features of all images, shared among the ranks, where they fit.

    What the vision encoder sees together depends on `images` alone, so a resumed run gets the same features to the last
    bit. Features lie in one file that all ranks of the machine map; it is unlinked at once, so that nothing is left
    behind.

    Args:
        model: whose vision encoder is used; it is frozen.
        registry: has the images.
        images: indices in the registry.
        most_bytes: memory for features of all images; 0 for none.
        work: folder for the file.
        ranks: the process group.
        device: where the vision encoder lies.

    Returns:
        The features, and the images that could not be decoded. None and no images where the features would exceed
        `most_bytes`: then nothing is decoded.
    """
    faults: dict[int, MediaError] = {}
    if not images or not most_bytes or feature_bytes(model, registry, images) > most_bytes:
        return None, faults
    width = model.levels * model.config.text_config.hidden_size
    starts: dict[int, int] = {}
    total = 0
    for index in images:
        starts[index] = total
        total += registry.images[index].tokens
    file = work / "features.bin"
    if ranks.rank == 0:
        file.unlink(missing_ok=True)
        with file.open("wb") as handle:
            # Reserved, not sparse: on a full disk this is an error here, where a write through the map would be SIGBUS.
            os.posix_fallocate(handle.fileno(), 0, total * width * next(model.model.visual.parameters()).element_size())
    ranks.barrier()
    dtype = next(model.model.visual.parameters()).dtype
    rows = torch.from_file(str(file), shared=True, size=total * width, dtype=dtype).view(total, width)
    own = chunks(registry, images)[ranks.rank :: ranks.size]
    for _, patches in read_ahead(own, functools.partial(read_patches, registry, device=device), threads_for(device)):
        features, broken = encode_patches(model, registry, patches, device)
        faults |= broken
        if features:  # one copy from the device for all, which is waited for once
            read = torch.cat(list(features.values())).to("cpu", dtype).split([len(part) for part in features.values()])
            for index, part in zip(features, read, strict=True):
                rows[starts[index] : starts[index] + len(part)] = part
    for found in ranks.gather(faults):
        faults |= found
    ranks.barrier()
    if ranks.rank == 0:
        file.unlink(missing_ok=True)
    return FeatureTable(rows, starts), faults
