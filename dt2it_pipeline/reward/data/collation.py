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

from dt2it_pipeline.reward.data.encoding import EncodedPrompt
from dt2it_pipeline.reward.data.images import ImageRegistry
from dt2it_pipeline.reward.modeling.batch import Batch


@dataclass(frozen=True, slots=True)
class PackedExample:
    """One row of a batch: a prompt and n >= 1 responses to it, each with the end of its turn (int32 [its tokens])."""

    prompt: EncodedPrompt
    responses: tuple[np.ndarray, ...]

    def __len__(self) -> int:
        return len(self.prompt.tokens) + sum(len(r) for r in self.responses)


def unpack(examples: Sequence[PackedExample]) -> list[PackedExample]:
    """The concatenated layout: every response in a row of its own, behind the whole prompt."""
    return [PackedExample(example.prompt, (response,)) for example in examples for response in example.responses]


def collate(
    examples: Sequence[PackedExample], pad_token: int = 0, padding: Literal["right", "left"] = "right"
) -> Batch:
    """Lay examples out as rows, padded to the longest.

    Args:
        examples: one for each row; at least one.
        pad_token: id that fills the padding; no score depends on it.
        padding: which end is filled. `left` lets all rows end in the last column, as batches for generation do; it
            needs a mask where `right` may do without.
    """
    rows = len(examples)
    length = max(len(e) for e in examples)
    ids = np.full((rows, length), pad_token, dtype=np.int64)
    positions = np.zeros((3, rows, length), dtype=np.int64)
    segment = np.full((rows, length), -1, dtype=np.int16)
    most = max(len(e.responses) for e in examples)
    score_grid = np.zeros((rows, most), dtype=np.int64)
    score_positions: list[int] = []
    score_order: list[int] = []
    image_tokens: list[np.ndarray] = []
    for row, example in enumerate(examples):
        prompt = example.prompt
        start = length - len(example) if padding == "left" else 0
        at = start + len(prompt.tokens)
        ids[row, start:at] = prompt.tokens
        positions[:, row, start:at] = prompt.positions
        segment[row, start:at] = 0
        if len(prompt.image_token_positions):
            image_tokens.append(prompt.image_token_positions.astype(np.int64) + row * length + start)
        for number, tokens in enumerate(example.responses):
            stop = at + len(tokens)
            ids[row, at:stop] = tokens
            positions[:, row, at:stop] = np.arange(prompt.next_position, prompt.next_position + len(tokens))
            segment[row, at:stop] = number + 1
            at = stop
            score_grid[row, number:] = row * length + at - 1
            score_positions.append(row * length + at - 1)
            score_order.append(row * most + number)
    return Batch(
        input_ids=torch.from_numpy(ids),
        position_ids=torch.from_numpy(positions),
        segment=torch.from_numpy(segment),
        is_causal=most == 1 and (padding == "right" or min(len(e) for e in examples) == length),
        score_positions=torch.tensor(score_positions),
        score_grid=torch.from_numpy(score_grid),
        score_order=torch.tensor(score_order),
        image_token_positions=torch.from_numpy(
            np.concatenate(image_tokens) if image_tokens else np.zeros(0, dtype=np.int64)
        ),
        images=tuple(index for e in examples for index in e.prompt.images),
        common_prefix=_common_prefix([e.prompt for e in examples]) if padding == "right" else 0,
    )


def _common_prefix(prompts: Sequence[EncodedPrompt]) -> int:
    """How many tokens all prompts begin with alike, before the first image of any."""
    count = min(int(p.image_token_positions[0]) if len(p.image_token_positions) else len(p.tokens) for p in prompts)
    first = prompts[0].tokens[:count]
    differs = np.zeros(count, dtype=bool)
    for prompt in prompts[1:]:
        differs |= prompt.tokens[:count] != first
    return int(differs.argmax()) if differs.any() else count


def with_pixels(batch: Batch, registry: ImageRegistry, *, once: bool = True) -> Batch:
    """The batch with its images decoded for the vision encoder; with `once`, an image in several rows is encoded once.

    Raises:
        MediaError: a file has become unreadable since it was checked.
    """
    if not batch.images:
        return batch
    unique = list(dict.fromkeys(batch.images)) if once else list(batch.images)
    pixels, grids = registry.patches([registry.decode(index) for index in unique])
    feature_rows = None
    if len(unique) < len(batch.images):
        starts = dict(zip(unique, np.cumsum([0, *(registry.images[i].tokens for i in unique)])[:-1], strict=True))
        spans = [np.arange(starts[i], starts[i] + registry.images[i].tokens) for i in batch.images]
        feature_rows = torch.from_numpy(np.concatenate(spans))
    return replace(batch, pixels=pixels, grids=grids, feature_rows=feature_rows)
