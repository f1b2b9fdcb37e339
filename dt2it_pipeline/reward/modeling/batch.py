"""What one forward pass of the reward model takes: packed sequences as tensors.

A row is an example, a prompt with every response to it, one after the other; or, where attention can keep them apart,
it is several of them. data/collation.py lays examples out in this way.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from dt2it_pipeline.engines.device import copied


@dataclass(frozen=True, slots=True)
class Batch:
    """Tensors of one forward pass; B rows of L columns, N responses. A flat position is row * L + column."""

    input_ids: torch.Tensor  # int64 [B, L]
    position_ids: torch.Tensor  # int64 [3, B, L]
    segment: torch.Tensor  # int16 [B, L]: -1 padding, 0 prompt, k response k of its example
    example: torch.Tensor  # int32 [B, L]: number of a prompt with its responses in the row
    is_causal: bool  # causal attention is all that the rows need: one response each, no padding before it
    score_positions: torch.Tensor  # int64 [N], flat positions where scores are read, by row and response
    score_grid: torch.Tensor  # int64 [B, most responses of a row]: the same by row, the last one repeated
    score_order: torch.Tensor  # int64 [N], flat places of the responses in score_grid
    image_token_positions: torch.Tensor  # int64 [image tokens], flat positions
    images: tuple[int, ...]  # indices in the registry, in the order of their tokens
    common_prefix: int = 0  # columns of text with which all rows begin alike, before any image
    pixels: torch.Tensor | None = None  # patches for the vision encoder, where features are not computed ahead
    # int64 [images in pixels, 3]: patches in time, height and width. It stays in main memory, where it is read.
    grids: torch.Tensor | None = None
    # int64 [image tokens]: row of the vision encoder's output for each image token; None: in the same order
    feature_rows: torch.Tensor | None = None

    @property
    def tokens(self) -> int:
        """Cells, padding included."""
        return self.input_ids.numel()

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device, but for `grids`."""
        if self.input_ids.device == device:
            return self
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "grids"}
        moved: dict[str, Any] = {k: copied(v, device) for k, v in values.items() if isinstance(v, torch.Tensor)}
        return replace(self, **moved)
