"""Packed batches: a prompt with its images and videos once, and behind it every response to it.

    [prompt with images][response 1][response 2] ... [padding]

A response sees the prompt and itself; positions of every response start where the prompt ended. Each response gets
the score that it would get alone (equal to 1e-5 in float32), while prompt and images are computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from dt2it_pipeline.media.errors import MediaError
from dt2it_pipeline.reward.data.encoding import EncodedPrompt
from dt2it_pipeline.reward.data.images import ImageRegistry
from dt2it_pipeline.reward.modeling.batch import Batch

_ROW_MULTIPLE = 128  # tokens; the block size of FlexAttention


@dataclass(frozen=True, slots=True)
class PackedExample:
    """One row of a batch: a prompt and n >= 1 responses to it, each with the end of its turn (int32 [its tokens])."""

    prompt: EncodedPrompt
    responses: tuple[np.ndarray, ...]

    def __len__(self) -> int:
        return len(self.prompt.tokens) + sum(len(r) for r in self.responses)


def row_length(tokens: int) -> int:
    """Cells of the one row that holds so many tokens of several examples.

    >>> row_length(128), row_length(129)
    (128, 256)
    """
    return -(-tokens // _ROW_MULTIPLE) * _ROW_MULTIPLE


def unpack(examples: Sequence[PackedExample]) -> list[PackedExample]:
    """The concatenated layout: every response in a row of its own, behind the whole prompt."""
    return [PackedExample(example.prompt, (response,)) for example in examples for response in example.responses]


def collate(
    examples: Sequence[PackedExample],
    pad_token: int = 0,
    padding: Literal["right", "left"] = "right",
    *,
    one_row: bool = False,
) -> Batch:
    """Lay examples out as rows, padded to the longest; or all of them in one row, which is hardly padded.

    Args:
        examples: at least one.
        pad_token: id that fills the padding; no score depends on it.
        padding: which end is filled. `left` lets all rows end in the last column, as batches for generation do; it
            needs a mask where `right` may do without.
        one_row: put all examples into one row, one after the other, up to a multiple of 128 tokens. It suits attention
            that skips blocks which nobody sees (`flex`); others compute all pairs of columns of the row.
    """
    lengths = np.array([len(e) for e in examples])
    if one_row:
        rows, length = 1, row_length(int(lengths.sum()))
        starts = np.cumsum(lengths) - lengths
        most = sum(len(e.responses) for e in examples)
    else:
        rows, length = len(examples), int(lengths.max())
        starts = np.arange(rows) * length + (length - lengths if padding == "left" else 0)
        most = max(len(e.responses) for e in examples)
    ids = np.full(rows * length, pad_token, dtype=np.int64)
    positions = np.zeros((3, rows * length), dtype=np.int64)
    segment = np.full(rows * length, -1, dtype=np.int16)
    whose = np.full(rows * length, -1 if one_row else 0, dtype=np.int32)
    grid: list[list[int]] = [[] for _ in range(rows)]  # flat score positions of each row
    image_tokens: list[np.ndarray] = []
    for number, (example, start) in enumerate(zip(examples, starts.tolist(), strict=True)):
        prompt = example.prompt
        at = start + len(prompt.tokens)
        ids[start:at] = prompt.tokens
        positions[:, start:at] = prompt.positions
        segment[start:at] = 0
        if one_row:
            whose[start : start + len(example)] = number
        if len(prompt.image_token_positions):
            image_tokens.append(prompt.image_token_positions.astype(np.int64) + start)
        for response, tokens in enumerate(example.responses):
            stop = at + len(tokens)
            ids[at:stop] = tokens
            positions[:, at:stop] = np.arange(prompt.next_position, prompt.next_position + len(tokens))
            segment[at:stop] = response + 1
            at = stop
            grid[0 if one_row else number].append(at - 1)
    apart = one_row and len(examples) > 1
    return Batch(
        input_ids=torch.from_numpy(ids.reshape(rows, length)),
        position_ids=torch.from_numpy(positions.reshape(3, rows, length)),
        segment=torch.from_numpy(segment.reshape(rows, length)),
        example=torch.from_numpy(whose.reshape(rows, length)),
        is_causal=most == 1 and not apart and (padding == "right" or one_row or bool((lengths == length).all())),
        score_positions=torch.tensor([place for row in grid for place in row]),
        score_grid=torch.tensor([row + row[-1:] * (most - len(row)) for row in grid]),
        score_order=torch.tensor(
            [row * most + place for row, places in enumerate(grid) for place in range(len(places))]
        ),
        image_token_positions=torch.from_numpy(
            np.concatenate(image_tokens) if image_tokens else np.zeros(0, dtype=np.int64)
        ),
        images=tuple(index for e in examples for index in e.prompt.images),
        common_prefix=0 if one_row or padding == "left" else _common_prefix([e.prompt for e in examples]),
    )


def _common_prefix(prompts: Sequence[EncodedPrompt]) -> int:
    """How many tokens all prompts begin with alike, before the first image of any."""
    count = min(int(p.image_token_positions[0]) if len(p.image_token_positions) else len(p.tokens) for p in prompts)
    first = prompts[0].tokens[:count]
    differs = np.zeros(count, dtype=bool)
    for prompt in prompts[1:]:
        differs |= prompt.tokens[:count] != first
    return int(differs.argmax()) if differs.any() else count


def with_pixels(
    batch: Batch, registry: ImageRegistry, *, once: bool = True, faults: dict[int, MediaError] | None = None
) -> Batch:
    """The batch with its images decoded for the vision encoder.

    Args:
        batch: as `collate` gives it.
        registry: has its images.
        once: an image in several rows is encoded once.
        faults: takes the images that cannot be read, by index; they are black then, in their own size.

    Raises:
        MediaError: a file has become unreadable since it was checked, and `faults` is not given.
    """
    if not batch.images:
        return batch
    unique = list(dict.fromkeys(batch.images)) if once else list(batch.images)
    decoded = [_decode(registry, index, faults) for index in unique]
    pixels, grids = registry.patches(decoded)
    if faults is not None:
        found = [tuple(grid) for grid in grids.tolist()]
        changed = [n for n, index in enumerate(unique) if found[n] != registry.images[index].grid]
        for number in changed:
            name = registry.images[unique[number]].path.name
            faults[unique[number]] = MediaError("unreadable image", f"{name}: of another size than before")
            decoded[number] = registry.blank(unique[number])
        if changed:
            pixels, grids = registry.patches(decoded)
    feature_rows = None
    if len(unique) < len(batch.images):
        starts = dict(zip(unique, np.cumsum([0, *(registry.images[i].tokens for i in unique)])[:-1], strict=True))
        spans = [np.arange(starts[i], starts[i] + registry.images[i].tokens) for i in batch.images]
        feature_rows = torch.from_numpy(np.concatenate(spans))
    return replace(batch, pixels=pixels, grids=grids, feature_rows=feature_rows)


def _decode(registry: ImageRegistry, index: int, faults: dict[int, MediaError] | None) -> torch.Tensor:
    try:
        return registry.decode(index)
    except MediaError as error:
        if faults is None:
            raise
        faults[index] = error
        return registry.blank(index)
