"""Images for scoring, read while the GPU computes: decoded, scaled and cut into patches by threads, in order.

Pillow and PyTorch let go of Python's lock while they work, so that threads suffice and nothing is copied between
processes.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from dt2it_pipeline.media.errors import MediaError
from dt2it_pipeline.reward.data.images import ImageRegistry

_MOST_THREADS = 4
_Item = TypeVar("_Item")
_Read = TypeVar("_Read")


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
            out.pixels, out.grids = out.pixels.pin_memory(), out.grids.pin_memory()
    return out


def threads_for(device: torch.device) -> int:
    """Threads that read ahead: none on a CPU, which has nothing to wait for."""
    return 0 if device.type == "cpu" else min(_MOST_THREADS, os.cpu_count() or 1)


def read_ahead(items: Iterable[_Item], read: Callable[[_Item], _Read], threads: int) -> Iterator[tuple[_Item, _Read]]:
    """Items with what `read` makes of each, in their order, up to `threads` + 1 of them ahead of whoever takes them.

    An error of `read` comes where its item would. Results do not depend on `threads`; with 0 nothing is read ahead.
    """
    if not threads:
        for item in items:
            yield item, read(item)
        return
    waiting: deque[tuple[_Item, Future[_Read]]] = deque()
    with ThreadPoolExecutor(threads, "read-ahead") as pool:
        try:
            for item in items:
                waiting.append((item, pool.submit(read, item)))
                if len(waiting) > threads:
                    first, made = waiting.popleft()
                    yield first, made.result()
            while waiting:
                first, made = waiting.popleft()
                yield first, made.result()
        finally:
            for _, made in waiting:
                made.cancel()
