"""Attention of the vision encoder's blocks: every patch sees the patches of its own frame, or of its own window.

The attention of transformers (5.19, `Qwen3VLVisionAttention.forward` and `Qwen2_5_VLVisionAttention.forward`) reads the
lengths of these segments from a tensor, `torch.split(tensor, lengths.tolist(), dim=2)`, and then attends to one segment
after the other. Under torch.compile that line breaks the graph, and each number of segments is a graph of its own. On a
GPU it waits for the device, three times a block. Here attention is one operator, opaque to torch.compile, so that a
block is one graph for any number of images. The operator reads lengths that lie in main memory, and attends to all
segments of a length at once. Numbers are those of transformers.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dt2it_pipeline.engines.device import copied


class VisionAttention(nn.Module):
    """Takes the place of the attention of a vision block of transformers, whose class is changed to this one.

    Attributes are those of transformers; weights keep their names.
    """

    num_heads: int
    scaling: float
    qkv: nn.Linear
    proj: nn.Linear

    def forward(
        self,
        hidden_states: torch.Tensor,
        cu_seqlens: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        **_: Any,
    ) -> torch.Tensor:
        """Attend within segments.

        Args:
            hidden_states: [patches, hidden].
            cu_seqlens: int [segments + 1], first patch of each segment and the number of patches. In main memory, it is
                read without waiting for the device.
            position_embeddings: cosines and sines, [patches, head size] each.

        Returns:
            [patches, hidden].
        """
        patches = hidden_states.shape[0]
        query, key, value = self.qkv(hidden_states).reshape(patches, 3, self.num_heads, -1).unbind(1)
        cos, sin = (part.unsqueeze(-2).float() for part in position_embeddings)
        out = attend(_rotated(query, cos, sin), _rotated(key, cos, sin), value, cu_seqlens, self.scaling)
        mixed: torch.Tensor = self.proj(out.reshape(patches, -1))
        return mixed


def replace_attention(vision_encoder: Any) -> None:
    """Give every block of a vision encoder of transformers the attention of this module, in place."""
    for block in vision_encoder.blocks:
        block.attn.__class__ = VisionAttention


def segment_inputs(vision_encoder: Any, grids: torch.Tensor, device: torch.device) -> dict[str, torch.Tensor]:
    """What a vision encoder computes of the sizes of its images before its first block, as keywords of its call.

    It is computed in main memory and copied from there. The encoder itself would wait for the device several times.

    Args:
        vision_encoder: of transformers.
        grids: patches per image in time, height and width, int64 [images, 3].
        device: of the vision encoder.
    """
    from transformers.vision_utils import (
        get_vision_cu_seqlens,
        get_vision_interpolation_indices_and_weights,
        get_vision_position_ids,
        get_vision_window_index,
    )

    grids, config = grids.cpu(), vision_encoder.config
    merge = config.spatial_merge_size
    read_here = {"cu_seqlens": get_vision_cu_seqlens(grids)}
    moved = {"position_ids": get_vision_position_ids(grids, merge)}
    if hasattr(vision_encoder, "pos_embed"):  # Qwen3-VL; its table of positions is interpolated
        moved["interp_indices"], moved["interp_weights"] = get_vision_interpolation_indices_and_weights(
            grids,
            num_grid_per_side=vision_encoder.num_grid_per_side,
            mode=vision_encoder.interpolation_mode,
            align_corners=vision_encoder.interpolation_align_corners,
            spatial_merge_size=merge,
        )
    else:  # Qwen2.5-VL; most blocks attend within windows
        moved["window_index"], read_here["cu_window_seqlens"] = get_vision_window_index(
            grids, spatial_merge_size=merge, window_size=vision_encoder.window_size, patch_size=config.patch_size
        )
    return read_here | {name: copied(value, device) for name, value in moved.items()}


def _rotated(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding, computed in float32: states [patches, heads, size], the rest [patches, 1, size]."""
    first, second = states.float().chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (states.float() * cos + turned * sin).to(states.dtype)


@dataclass(frozen=True)
class _Segments:
    """All segments of a length: `count` of `length` patches, from patch `start` on or, if not together, at `places`."""

    length: int
    count: int
    start: int
    places: torch.Tensor | None  # int64 [count * length]

    def take(self, whole: torch.Tensor) -> torch.Tensor:
        """Their part of `whole` [patches, heads, size] as [count, heads, length, size]."""
        size = self.count * self.length
        part = whole.narrow(0, self.start, size) if self.places is None else whole.index_select(0, self.places)
        return part.unflatten(0, (self.count, self.length)).transpose(1, 2)

    def put(self, part: torch.Tensor, whole: torch.Tensor) -> None:
        """Write what `take` gives, [count, heads, length, size], to its place in `whole`."""
        rows = part.transpose(1, 2).flatten(0, 1).to(whole.dtype)  # under autocast it may have another type
        if self.places is None:
            whole.narrow(0, self.start, len(rows)).copy_(rows)
        else:
            whole.index_copy_(0, self.places, rows)


@functools.lru_cache(maxsize=8)  # of a batch: its frames and its windows, for all blocks
def _by_length(bounds: tuple[int, ...], device: torch.device) -> tuple[_Segments, ...]:
    """The segments between `bounds`, which are first patches and at last the number of patches, by their length."""
    found: dict[int, list[int]] = {}
    for start, stop in itertools.pairwise(bounds):
        if stop > start:
            found.setdefault(stop - start, []).append(start)
    groups = []
    for length, starts in found.items():
        together = starts[-1] - starts[0] == length * (len(starts) - 1)
        places = None if together else (torch.tensor(starts)[:, None] + torch.arange(length)).flatten()
        groups.append(_Segments(length, len(starts), starts[0], None if places is None else copied(places, device)))
    return tuple(groups)


@torch.library.custom_op("dt2it::attend_within_segments", mutates_args=())
def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: torch.Tensor, scale: float
) -> torch.Tensor:
    """Attention of every patch over the patches of its segment.

    Args:
        query: [patches, heads, size]; `key` and `value` likewise.
        key: see there.
        value: see there.
        bounds: int [segments + 1], first patch of each segment and the number of patches.
        scale: of the products.

    Returns:
        [patches, heads, size].

    Raises:
        ValueError: segments hold fewer or more patches than there are.
    """
    if int(bounds[0]) or int(bounds[-1]) != len(query):  # else the rest would be whatever lay in memory
        raise ValueError(f"segments from {int(bounds[0])} to {int(bounds[-1])} do not hold all {len(query)} patches")
    out = query.new_empty(query.shape)
    for part in _by_length(tuple(bounds.tolist()), query.device):
        asked, keys, values = part.take(query), part.take(key), part.take(value)
        part.put(nn.functional.scaled_dot_product_attention(asked, keys, values, scale=scale), out)
    return out


@attend.register_fake
def _(query: torch.Tensor, key: Any, value: Any, bounds: Any, scale: float) -> torch.Tensor:
    return query.new_empty(query.shape)


@torch.library.custom_op("dt2it::attend_within_segments_backward", mutates_args=())
def _gradients(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of `attend` by query, key and value, from that by its output; each [patches, heads, size].

    The plain formulas, with all products of a segment in memory: the pipeline freezes the vision encoder.
    """
    found = tuple(states.new_empty(states.shape) for states in (query, key, value))
    for part in _by_length(tuple(bounds.tolist()), query.device):
        asked, keys, values, above = (part.take(states).float() for states in (query, key, value, gradient))
        weights = torch.softmax(asked @ keys.transpose(2, 3) * scale, dim=-1)
        by_weight = above @ values.transpose(2, 3)
        by_product = weights * (by_weight - (weights * by_weight).sum(-1, keepdim=True)) * scale
        parts = (by_product @ keys, by_product.transpose(2, 3) @ asked, weights.transpose(2, 3) @ above)
        for each, whole in zip(parts, found, strict=True):
            part.put(each.to(whole.dtype), whole)
    return found[0], found[1], found[2]


@_gradients.register_fake
def _(
    gradient: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: Any, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    *states, ctx.scale = inputs
    ctx.save_for_backward(*states)


def _backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
    return (*_gradients(gradient, *ctx.saved_tensors, ctx.scale), None, None)


attend.register_autograd(_backward, setup_context=_keep)
