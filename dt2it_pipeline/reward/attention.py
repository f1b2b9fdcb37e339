"""Attention over shared-prefix sequences: who sees whom, in the form that each attention implementation takes.

Segments say what a column holds: -1 padding, 0 prompt, k >= 1 response k. A token sees the tokens before it of its own
segment and of the prompt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from dt2it_pipeline.reward.batch import Batch

TAKE_MASKS = ("sdpa", "eager", "flex_attention")  # implementations of transformers that a shared prefix can go through


def layer_mask(batch: Batch, implementation: str, dtype: torch.dtype, window: int | None = None) -> Any:
    """Mask for the decoder layers in the form that `implementation` takes; None where plain causal attention does.

    `sdpa` and `eager` take an additive mask [B, 1, L, L]. `flex_attention` takes a block mask, which skips blocks that
    nobody sees and never holds L x L numbers; it is the better choice on CUDA for long prompts with many responses
    (https://pytorch.org/blog/flexattention). Not measured: this was developed without a GPU, so `sdpa` is the default
    everywhere, and of `flex_attention` only the numbers were checked, on a CPU.

    Args:
        batch: for its segments.
        implementation: a name of transformers.
        dtype: type of the additive mask.
        window: sliding-window layers see this many tokens back, by column; single responses only.
    """
    if batch.plain and window is None:
        return None
    if implementation == "flex_attention" and window is None:
        return block_mask(batch.segment)
    length = batch.segment.shape[1]
    columns = torch.arange(length, device=batch.segment.device)
    seen = sees(batch.segment, columns.expand_as(batch.segment))
    if window is not None:
        seen &= columns > columns.unsqueeze(1) - window
    return torch.zeros(seen.shape, device=seen.device, dtype=dtype).masked_fill_(~seen, float("-inf")).unsqueeze(1)


def sees(segment: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Which columns the tokens at columns `rows` [B, R] of their sequences see: bool [B, R, L]."""
    own = segment.gather(1, rows).unsqueeze(2)
    columns = torch.arange(segment.shape[1], device=segment.device)
    return ((own == segment.unsqueeze(1)) | (segment == 0).unsqueeze(1)) & (columns <= rows.unsqueeze(2))


def block_mask(segment: torch.Tensor) -> Any:
    """The same as a block mask of FlexAttention, for segments [B, L]."""
    from torch.nn.attention.flex_attention import create_block_mask

    def seen(row: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        there = segment[row, key]
        return (query >= key) & ((segment[row, query] == there) | (there == 0))

    rows, length = segment.shape
    return create_block_mask(seen, rows, None, length, length, device=str(segment.device))


def last_layer(
    layer: Any, hidden: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor], batch: Batch
) -> torch.Tensor:
    """The last decoder layer of Qwen3-VL, computed only where a score is read: keys and values of all tokens, the rest
    of the ends.

    Returns [responses, hidden], the same numbers as running the whole layer and picking the ends.
    """
    from transformers.models.qwen3_vl.modeling_qwen3_vl import rotate_half

    attention = layer.self_attn
    rows, length, width = hidden.shape
    slots = batch.end_grid  # [rows, most ends of a row], flat positions; rows with fewer ends repeat their last
    normed = layer.input_layernorm(hidden)
    picked = normed.reshape(-1, width)[slots]  # [rows, ends, hidden]
    heads = (-1, attention.head_dim)
    query = attention.q_norm(attention.q_proj(picked).view(*slots.shape, *heads)).transpose(1, 2)
    key = attention.k_norm(attention.k_proj(normed).view(rows, length, *heads)).transpose(1, 2)
    value = attention.v_proj(normed).view(rows, length, *heads).transpose(1, 2)
    cos, sin = rotary
    key = key * cos.unsqueeze(1) + rotate_half(key) * sin.unsqueeze(1)
    cos, sin = (part.reshape(-1, part.shape[-1])[slots].unsqueeze(1) for part in (cos, sin))
    query = query * cos + rotate_half(query) * sin
    within = slots - torch.arange(rows, device=slots.device).unsqueeze(1) * length  # column of each end in its row
    seen = sees(batch.segment, within).unsqueeze(1)
    out = nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=seen, scale=attention.scaling, enable_gqa=query.shape[1] != key.shape[1]
    )
    out = attention.o_proj(out.transpose(1, 2).reshape(*slots.shape, -1))
    picked = hidden.reshape(-1, width)[slots] + out
    picked = picked + layer.mlp(layer.post_attention_layernorm(picked))
    return picked.reshape(-1, width)[batch.end_order]
