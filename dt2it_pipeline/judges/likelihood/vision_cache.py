"""A vision encoder that encodes every image once.

A likelihood judge meets the same image many times: under both responses of a pair, under every pair of a prompt, and
as a baseline of many prompts. The vision encoder's output depends on the image alone, so it is kept. Images are
compared in main memory, and those alone that are new go to the device.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from dt2it_pipeline.engines.device import copied

# Features that stay in the device's memory. A token of an 8 B model has 4 levels of 4096 bfloat16 numbers, so that this
# is 32,768 tokens, or 25 images of the most pixels that other judges see: small beside the 16 GiB of its weights.
KEPT_BYTES = 2**30


class RememberingVisionEncoder(nn.Module):
    """Stands in for the vision encoder of a Qwen-VL model of transformers: same call, same output.

    Args:
        vision_encoder: the model's own; called as `vision_encoder(pixel_values, grid_thw=...)`.
    """

    def __init__(self, vision_encoder: Any) -> None:
        super().__init__()
        self.vision_encoder = vision_encoder
        self._known: OrderedDict[bytes, tuple[torch.Tensor, ...]] = OrderedDict()
        self._bytes = 0

    @property
    def dtype(self) -> torch.dtype:
        """Type in which the vision encoder computes."""
        dtype: torch.dtype = self.vision_encoder.dtype
        return dtype

    @property
    def spatial_merge_size(self) -> int:
        """Patches merged into one token, per side."""
        return int(self.vision_encoder.spatial_merge_size)

    def forward(self, pixel_values: torch.Tensor, grid_thw: torch.Tensor, **options: Any) -> Any:
        """Features of images on the device, from `pixel_values` [patches of all, values] and `grid_thw` [images, 3].

        Pixels are best in main memory, whatever the device.
        """
        device, grid_thw = next(self.vision_encoder.parameters()).device, grid_thw.cpu()
        images = pixel_values.split(grid_thw.prod(-1).tolist())
        keys = [_key(pixels, grid) for pixels, grid in zip(images, grid_thw, strict=True)]
        new = {key: index for index, key in enumerate(keys) if key not in self._known}
        here = {key: self._known[key] for key in keys if key in self._known}
        for key in here:
            self._known.move_to_end(key)
        if new:
            chosen = list(new.values())
            grids = grid_thw[chosen]
            pixels = copied(torch.cat([images[i] for i in chosen]), device)
            output = self.vision_encoder(pixels, grid_thw=copied(grids, device), **options)
            sizes = (grids.prod(-1) // self.spatial_merge_size**2).tolist()
            deepstack = getattr(output, "deepstack_features", None) or ()  # Qwen3-VL has them, Qwen2.5-VL has not
            levels = [level.split(sizes) for level in (output.pooler_output, *deepstack)]
            for place, key in enumerate(new):
                here[key] = tuple(level[place] for level in levels)
                self._remember(key, here[key])
        joined = [torch.cat([here[key][level] for key in keys]) for level in range(len(here[keys[0]]))]
        return SimpleNamespace(pooler_output=joined[0], deepstack_features=joined[1:])

    def _remember(self, key: bytes, features: tuple[torch.Tensor, ...]) -> None:
        size = _bytes_of(features)
        if size > KEPT_BYTES:
            return
        while self._bytes + size > KEPT_BYTES:
            _, old = self._known.popitem(last=False)
            self._bytes -= _bytes_of(old)
        # A part of a batch's features would keep the memory of the whole batch; a copy is free when it is dropped.
        self._known[key] = tuple(level.clone() for level in features)
        self._bytes += size


def _bytes_of(features: tuple[torch.Tensor, ...]) -> int:
    return sum(level.nbytes for level in features)


def _key(pixels: torch.Tensor, grid: torch.Tensor) -> bytes:
    digest = hashlib.blake2b(repr(grid.tolist()).encode(), digest_size=16)
    digest.update(pixels.contiguous().cpu().float().numpy().tobytes())
    return digest.digest()
