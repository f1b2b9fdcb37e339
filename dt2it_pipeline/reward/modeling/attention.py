"""Attention over packed sequences: who sees whom, in the form that each attention implementation takes.

Segments say what a column holds: -1 padding, 0 prompt, k >= 1 response k of its prompt. A row holds one prompt with its
responses, or several, numbered by `Batch.example`. A token sees the tokens before it of its own segment and of its
prompt.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from dt2it_pipeline.reward.modeling.batch import Batch
from dt2it_pipeline.reward.modeling.compilation import compiled

FLEX = "flex"  # our own, as transformers 5.19 does not let the Qwen-VL families use its `flex_attention`
BLOCKS = "sdpa_blocks"  # PyTorch's, over blocks of queries and what these see
TAKE_MASKS = ("sdpa", "eager", FLEX, BLOCKS)  # implementations that a shared prefix can go through
_QUERIES = 128  # in a block; shorter ones save little more and cost calls
# Bytes of shared memory that PyTorch's block sizes for Ampere and Ada take in float32 at head size 128. An A100 has
# 163 KiB. An RTX 3090, an RTX 4090 or an L4 has 99, which is enough for bfloat16 (96 KiB, backward 67 to 84).
_FLOAT32_NEEDS = 148_224
SMALL_BLOCKS = "small_blocks"  # attribute of an attention module whose kernels did not fit the GPU
# Blocks in float32 (True) and in other types, one stage each. At head size 128 they take 37 and 40 KiB, and 33 and 32
# in the backward pass (compiled for compute capability 8.6). PyTorch's own of that pass in float32 are small already.
_SMALL = {
    False: {"fwd_BLOCK_M": 64, "fwd_BLOCK_N": 64, "num_stages": 1}
    | {"bwd_BLOCK_M1": 32, "bwd_BLOCK_N1": 32, "bwd_BLOCK_M2": 32, "bwd_BLOCK_N2": 32},
    True: {"fwd_BLOCK_M": 32, "fwd_BLOCK_N": 32, "num_stages": 1},
}
_NOT_CAUSAL = ("eager", FLEX)  # without a mask, every token sees every other


def layer_mask(batch: Batch, implementation: str, dtype: torch.dtype, window: int | None = None) -> Any:
    """Mask for the decoder layers in the form that `implementation` takes; None where plain causal attention does.

    `sdpa` and `eager` take an additive mask [B, 1, L, L], and so does `sdpa_blocks`, which `in_blocks` then cuts up.
    `flex` (FlexAttention, arXiv 2412.05496) takes a block mask, which skips blocks that nobody sees and never holds
    L x L numbers. Which one suits a device says device.py.

    Args:
        batch: for its segments.
        implementation: `flex`, or a name of transformers.
        dtype: type of the additive mask.
        window: sliding-window layers see this many tokens back, by column; single responses only.
    """
    if batch.is_causal and window is None and implementation not in _NOT_CAUSAL:
        return None
    if implementation == FLEX and window is None:
        return block_mask(batch.segment, batch.example)
    length = batch.segment.shape[1]
    columns = torch.arange(length, device=batch.segment.device)
    seen = sees(batch.segment, batch.example, columns.expand_as(batch.segment))
    if window is not None:
        seen &= columns > columns.unsqueeze(1) - window
    return torch.zeros(seen.shape, device=seen.device, dtype=dtype).masked_fill_(~seen, float("-inf")).unsqueeze(1)


def choose_attention(language_model: Any, implementation: str, *, small_blocks: bool) -> None:
    """Have a language model of transformers compute attention in this way from now on.

    Args:
        language_model: of the backbone.
        implementation: its name in transformers.
        small_blocks: FlexAttention works in blocks that fit any GPU.
    """
    if language_model.config._attn_implementation != implementation:
        language_model.config._attn_implementation = implementation
    for layer in language_model.layers:
        setattr(layer.self_attn, SMALL_BLOCKS, small_blocks)


def register() -> None:
    """Make `flex` and `sdpa_blocks` known to transformers; the latter takes the masks that it makes for `sdpa`, too."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(FLEX, _flex)
    AttentionInterface.register(BLOCKS, _sdpa_blocks)
    AttentionMaskInterface.register(BLOCKS, sdpa_mask)


@dataclass(frozen=True)
class QueryBlock:
    """Queries `start` to `stop` of a mask, the runs of columns that any of them sees, and their part of the mask."""

    start: int
    stop: int
    runs: tuple[tuple[int, int], ...]
    mask: torch.Tensor  # [B, 1, queries, columns of all runs]


def in_blocks(mask: torch.Tensor) -> torch.Tensor | tuple[QueryBlock, ...]:
    """An additive mask [B, 1, Q, L] as blocks of queries without the columns that are hidden from all of a block.

    A dense mask has every pair of columns computed, also what comes later and other responses: more than half of them.
    Where there is no more than one block, the mask itself is returned.
    """
    queries = mask.shape[2]
    if queries < 2 * _QUERIES:
        return mask
    seen = (mask[:, 0] == 0).any(dim=0)  # [Q, L]
    blocks = []
    for start in range(0, queries, _QUERIES):
        stop = min(start + _QUERIES, queries)
        columns = seen[start:stop].any(dim=0).nonzero().flatten()
        breaks = (columns.diff() > 1).nonzero().flatten() + 1
        runs = tuple((int(run[0]), int(run[-1]) + 1) for run in columns.tensor_split(breaks.cpu()))
        blocks.append(QueryBlock(start, stop, runs, _columns(mask[:, :, start:stop], runs, dim=3).contiguous()))
    return tuple(blocks)


def _sdpa_blocks(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **options: Any
) -> tuple[torch.Tensor, None]:
    """Attention of one layer, as transformers calls it: query [B, heads, Q, size] to output [B, Q, heads, size]."""
    attend = functools.partial(
        nn.functional.scaled_dot_product_attention,
        scale=options.get("scaling"),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    if attention_mask is None:
        out = attend(query, key, value, is_causal=True)
    elif isinstance(attention_mask, torch.Tensor):
        out = attend(query, key, value, attn_mask=attention_mask)
    else:
        parts = [
            attend(
                query[:, :, block.start : block.stop],
                _columns(key, block.runs, dim=2),
                _columns(value, block.runs, dim=2),
                attn_mask=block.mask,
            )
            for block in attention_mask
        ]
        out = torch.cat(parts, dim=2)
    return out.transpose(1, 2).contiguous(), None


def _columns(whole: torch.Tensor, runs: tuple[tuple[int, int], ...], dim: int) -> torch.Tensor:
    """The columns of all runs along `dim`; a view where there is one run."""
    parts = [whole.narrow(dim, start, stop - start) for start, stop in runs]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _flex(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **options: Any
) -> tuple[torch.Tensor, None]:
    """Attention of one layer, as transformers calls it: query [B, heads, L, size] to output [B, L, heads, size]."""
    attend = _flex_kernel(query.is_cuda and not torch.compiler.is_compiling())
    grouped = query.shape[1] != key.shape[1]
    small = getattr(module, SMALL_BLOCKS, False)
    kernel = _kernel_options(query.dtype, query.device, small_blocks=small) if query.is_cuda else None
    out = attend(
        query, key, value, block_mask=attention_mask, scale=options.get("scaling"), enable_gqa=grouped,
        kernel_options=kernel,
    )  # fmt: skip
    return out.transpose(1, 2).contiguous(), None


def _kernel_options(dtype: torch.dtype, device: torch.device, *, small_blocks: bool = False) -> Any:
    """Of FlexAttention on a GPU, for its type of numbers."""
    # For fewer than 128 tokens, which batches in one row never have, PyTorch takes its kernel for decoding, compiled
    # apart; that of PyTorch 2.14 refuses blocks of 128 queries where four heads share a key.
    options: dict[str, Any] = {"FORCE_USE_FLEX_ATTENTION": True}
    if small_blocks:
        return options | _SMALL[dtype == torch.float32]
    if dtype == torch.float32 and _shared_memory(device) < _FLOAT32_NEEDS:
        options |= {"fwd_BLOCK_M": 64, "fwd_num_stages": 2}  # 72 KiB; with fewer stages alone it is 113
    return options


@torch.compiler.assume_constant_result
def _shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that a block of a GPU may have."""
    # What PyTorch does not know, as of an AMD GPU, counts as small. Its type stubs do not have this attribute.
    return int(getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 0))


def _flex_kernel(alone: bool) -> Any:
    """FlexAttention for a layer that is not compiled as a whole, on a GPU (`alone`), or as a compiled layer takes it.

    On a CPU a layer that is not compiled gets it without its fused kernel: for tests.
    """
    return _compiled_flex() if alone else flex_attention


@functools.cache
def _compiled_flex() -> Any:
    return compiled(flex_attention)


def sees(segment: torch.Tensor, example: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Which columns the tokens at columns `rows` [B, R] of their sequences see: bool [B, R, L].

    Args:
        segment: of a batch, [B, L].
        example: of a batch, [B, L].
        rows: columns, int64.
    """
    own, whose = (kind.gather(1, rows).unsqueeze(2) for kind in (segment, example))
    columns = torch.arange(segment.shape[1], device=segment.device)
    there = segment.unsqueeze(1)
    return ((own == there) | (there == 0)) & (whose == example.unsqueeze(1)) & (columns <= rows.unsqueeze(2))


def block_mask(segment: torch.Tensor, example: torch.Tensor) -> BlockMask:
    """The same as a block mask of FlexAttention, for segments and examples [B, L].

    Which blocks are empty, partly seen or wholly seen follows from the first and last example and segment in each, so
    that L x L numbers never exist. A block may be called partly seen where it is empty: that costs time alone.
    """

    def seen(row: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        there = segment[row, key]
        same = example[row, query] == example[row, key]
        return (query >= key) & same & ((segment[row, query] == there) | (there == 0))

    partly, wholly = _blocks(segment, example)
    length = segment.shape[1]
    return BlockMask.from_kv_blocks(
        *_listed(partly), *_listed(wholly), BLOCK_SIZE=_QUERIES, mask_mod=seen, seq_lengths=(length, length)
    )


def _blocks(segment: torch.Tensor, example: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Blocks of a block mask that are seen partly, and those seen wholly: bool [B, 1, blocks, blocks] each."""
    short = -segment.shape[1] % _QUERIES
    # The last block is filled up with tokens of nobody, so that it is never wholly seen by or from these.
    blocks = [
        nn.functional.pad(kind.int(), (0, short), value=-2).unflatten(1, (-1, _QUERIES)) for kind in (segment, example)
    ]
    (low, high), (first, last) = ((kind.amin(-1), kind.amax(-1)) for kind in blocks)
    prompts = (blocks[0] == 0).any(-1)
    alone = first == last  # one example in the block
    one = alone & (low == high)  # and one segment

    def query(each: torch.Tensor) -> torch.Tensor:
        return each[:, None, :, None]

    def key(each: torch.Tensor) -> torch.Tensor:
        return each[:, None, None, :]

    places = torch.arange(low.shape[1], device=segment.device)
    before = places[:, None] > places[None, :]
    shared = (query(first) <= key(last)) & (key(first) <= query(last))
    meet = (query(low) <= key(high)) & (key(low) <= query(high))
    some = (before | (places[:, None] == places[None, :])) & shared & (meet | key(prompts))
    same = query(alone) & key(one) & (query(first) == key(first)) & (query(first) >= 0)
    wholly = before & same & ((key(low) == 0) | (query(one) & (query(low) == key(low))))
    return some & ~wholly, wholly


def _listed(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Blocks as FlexAttention lists them: how many keys' blocks each queries' block has, and which, these first."""
    dense = blocks.int()
    order = torch.argsort(dense, dim=-1, descending=True, stable=True)
    return dense.sum(-1, dtype=torch.int32).contiguous(), order.int().contiguous()


class _CommonPrefixCache:
    """Keys and values of the columns with which all rows begin; a layer takes it for a cache of transformers."""

    def __init__(self) -> None:
        self.kept: tuple[torch.Tensor, ...] = ()

    def update(self, *given: Any) -> tuple[torch.Tensor, ...]:
        """Keep the first call's keys and values; put them before those of the second."""
        both = given[:2]  # [rows, heads, columns, size] each; the number of the layer follows
        if not self.kept:
            self.kept = both
            return both
        return tuple(
            torch.cat([kept.expand(len(own), -1, -1, -1), own], dim=2)
            for kept, own in zip(self.kept, both, strict=True)
        )


def layer_with_common_prefix(
    layer: Any, start: torch.Tensor, rest: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor], masks: Sequence[Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """A decoder layer over rows that begin alike: their common prefix once, then the rest of every row.

    Nothing in those columns depends on what follows, so the numbers are those of running whole rows.

    Args:
        layer: of transformers.
        start: hidden states of the common prefix, [1, common, hidden].
        rest: of all other columns, [rows, L - common, hidden].
        rotary: for whole rows.
        masks: of the common columns among themselves, and of the others over all columns.

    Returns:
        `start` and `rest` behind the layer.
    """
    common = start.shape[1]
    cache = _CommonPrefixCache()
    first = tuple(part[..., :1, :common, :] for part in rotary)
    after = tuple(part[..., common:, :] for part in rotary)
    out = []
    for hidden, seen, turned in zip((start, rest), masks, (first, after), strict=True):
        done = layer(hidden, attention_mask=seen, position_embeddings=turned, position_ids=None, past_key_values=cache)
        out.append(done[0] if isinstance(done, tuple) else done)
    return out[0], out[1]


def last_layer(
    layer: Any, hidden: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor], batch: Batch
) -> torch.Tensor:
    """The last decoder layer, computed only where a score is read: keys and values of all tokens, the rest of those.

    For families that normalise query and key per head (Qwen3-VL).

    Args:
        layer: of transformers.
        hidden: states before the layer, [rows, L, hidden].
        rotary: cosines and sines of the positions, [rows, L, head size] each.
        batch: for its segments and score positions.

    Returns:
        [responses, hidden], the same numbers as running the whole layer and picking the score positions.
    """
    from transformers.models.qwen3_vl.modeling_qwen3_vl import rotate_half

    attention = layer.self_attn
    rows, length, width = hidden.shape
    places = batch.score_grid  # [rows, most responses of a row], flat positions
    normed = layer.input_layernorm(hidden)
    picked = normed.reshape(-1, width)[places]  # [rows, most responses, hidden]
    heads = (-1, attention.head_dim)
    query = attention.q_norm(attention.q_proj(picked).view(*places.shape, *heads)).transpose(1, 2)
    key = attention.k_norm(attention.k_proj(normed).view(rows, length, *heads)).transpose(1, 2)
    value = attention.v_proj(normed).view(rows, length, *heads).transpose(1, 2)
    cos, sin = rotary
    key = key * cos.unsqueeze(1) + rotate_half(key) * sin.unsqueeze(1)
    cos, sin = (part.reshape(-1, part.shape[-1])[places].unsqueeze(1) for part in (cos, sin))
    query = query * cos + rotate_half(query) * sin
    within = places - torch.arange(rows, device=places.device).unsqueeze(1) * length  # columns
    seen = sees(batch.segment, batch.example, within).unsqueeze(1)
    out = nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=seen, scale=attention.scaling, enable_gqa=query.shape[1] != key.shape[1]
    )
    out = attention.o_proj(out.transpose(1, 2).reshape(*places.shape, -1))
    picked = hidden.reshape(-1, width)[places] + out
    picked = picked + layer.mlp(layer.post_attention_layernorm(picked))
    return picked.reshape(-1, width)[batch.score_order]
