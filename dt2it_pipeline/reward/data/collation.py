"""Shared-prefix batches: a prompt with its images and videos once, and behind it every response to it.

    [prompt with images][response 1][response 2] ... [padding]

A response sees the prompt and itself; positions of every response start where the prompt ended. Each response gets
the score that it would get alone (equal to 1e-5 in float32), while prompt and images are computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import torch

from dt2it_pipeline.reward.data.encoding import EncodedPrompt
from dt2it_pipeline.reward.data.images import ImageRegistry


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a batch: a prompt and n >= 1 responses to it, each with the end of its turn."""

    prompt: EncodedPrompt
    responses: tuple[np.ndarray, ...]

    def __len__(self) -> int:
        return len(self.prompt.tokens) + sum(len(r) for r in self.responses)


@dataclass(frozen=True, slots=True)
class Batch:
    """Tensors of one forward pass; B rows of L columns, N responses."""

    input_ids: torch.Tensor  # int64 [B, L]
    position_ids: torch.Tensor  # int64 [3, B, L]
    segment: torch.Tensor  # int16 [B, L]: -1 padding, 0 prompt, k response k of the row
    plain: bool  # causal attention is all that the rows need: one response each, no padding before it
    ends: torch.Tensor  # int64 [N], flat places where scores are read, in the order of sequences and responses
    end_grid: torch.Tensor  # int64 [B, most responses of a row]: the same by row, the last repeated
    end_order: torch.Tensor  # int64 [N], flat places of the responses in end_grid
    image_token_positions: torch.Tensor  # int64 [image tokens], flat places
    images: tuple[int, ...]  # on the shelf, in the order of their tokens
    common: int = 0  # columns of text with which all rows begin alike, before any image
    pixels: torch.Tensor | None = None  # patches for the vision_encoder, where features are not computed ahead
    grids: torch.Tensor | None = None  # int64 [images in pixels, 3]
    feature_rows: torch.Tensor | None = (
        None  # int64 [image tokens]: row of the vision encoder's output for each image token
    )

    @property
    def tokens(self) -> int:
        """Cells, padding included."""
        return self.input_ids.numel()

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        if self.input_ids.device == device:
            return self
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        values |= {k: v.to(device) for k, v in values.items() if isinstance(v, torch.Tensor)}
        return Batch(**values)


def split(rows: Sequence[Row]) -> list[Row]:
    """The concatenated layout: every response in a row of its own, behind the whole prompt."""
    return [Row(row.prompt, (response,)) for row in rows for response in row.responses]


def collate(sequences: Sequence[Row], pad_token: int = 0, padding: Literal["right", "left"] = "right") -> Batch:
    """Lay sequences out as rows, padded to the longest.

    Args:
        sequences: the rows.
        pad_token: id that fills the padding; no score depends on it.
        padding: which end is filled. `left` lets all rows end in the last column, as batches for generation do; it
            needs a mask where `right` may do without.
    """
    rows = len(sequences)
    length = max(len(s) for s in sequences)
    ids = np.full((rows, length), pad_token, dtype=np.int64)
    positions = np.zeros((3, rows, length), dtype=np.int64)
    segment = np.full((rows, length), -1, dtype=np.int16)
    most = max(len(s.responses) for s in sequences)
    end_grid = np.zeros((rows, most), dtype=np.int64)
    ends: list[int] = []
    end_order: list[int] = []
    slots: list[np.ndarray] = []
    for row, sequence in enumerate(sequences):
        prompt = sequence.prompt
        start = length - len(sequence) if padding == "left" else 0
        at = start + len(prompt.tokens)
        ids[row, start:at] = prompt.tokens
        positions[:, row, start:at] = prompt.positions
        segment[row, start:at] = 0
        if len(prompt.image_token_positions):
            slots.append(prompt.image_token_positions.astype(np.int64) + row * length + start)
        for number, tokens in enumerate(sequence.responses):
            stop = at + len(tokens)
            ids[row, at:stop] = tokens
            positions[:, row, at:stop] = np.arange(prompt.next_position, prompt.next_position + len(tokens))
            segment[row, at:stop] = number + 1
            at = stop
            end_grid[row, number:] = row * length + at - 1
            ends.append(row * length + at - 1)
            end_order.append(row * most + number)
    return Batch(
        input_ids=torch.from_numpy(ids),
        position_ids=torch.from_numpy(positions),
        segment=torch.from_numpy(segment),
        plain=most == 1 and (padding == "right" or min(len(s) for s in sequences) == length),
        ends=torch.tensor(ends),
        end_grid=torch.from_numpy(end_grid),
        end_order=torch.tensor(end_order),
        image_token_positions=torch.from_numpy(np.concatenate(slots)) if slots else torch.zeros(0, dtype=torch.int64),
        images=tuple(p for s in sequences for p in s.prompt.images),
        common=_common_start([s.prompt for s in sequences]) if padding == "right" else 0,
    )


def _common_start(prompts: Sequence[EncodedPrompt]) -> int:
    """How many tokens all prompts begin with alike, before the first image of any."""
    count = min(int(p.image_token_positions[0]) if len(p.image_token_positions) else len(p.tokens) for p in prompts)
    first = prompts[0].tokens[:count]
    differs = np.zeros(count, dtype=bool)
    for prompt in prompts[1:]:
        differs |= prompt.tokens[:count] != first
    return int(differs.argmax()) if differs.any() else count


def with_pixels(batch: Batch, shelf: ImageRegistry, *, once: bool = True) -> Batch:
    """The batch with its images decoded for the vision encoder; with `once`, an image in several rows is encoded once.

    Raises:
        ImageError: a file has become unreadable since it was checked.
    """
    if not batch.images:
        return batch
    unique = list(dict.fromkeys(batch.images)) if once else list(batch.images)
    pixels, grids = shelf.patches([shelf.decode(index) for index in unique])
    feature_rows = None
    if len(unique) < len(batch.images):
        starts = dict(zip(unique, np.cumsum([0, *(shelf.images[i].tokens for i in unique)])[:-1], strict=True))
        spans = [np.arange(starts[i], starts[i] + shelf.images[i].tokens) for i in batch.images]
        feature_rows = torch.from_numpy(np.concatenate(spans))
    changed: dict[str, Any] = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return Batch(**changed | {"pixels": pixels, "grids": grids, "feature_rows": feature_rows})
