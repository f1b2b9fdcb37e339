"""Trains the base model: first its vision encoder as a classifier of single images, then the language model on
top.

The vision encoder's output is computed once per image for the second stage, in which the vision encoder stays as it is.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dt2it_pipeline.demo import language, rendering
from dt2it_pipeline.demo.conversations import Conversation, ConversationMaker
from dt2it_pipeline.demo.model_files import IMAGE_TOKENS, MERGE, PATCH, conversation_text

GRID = rendering.SIZE // PATCH
IGNORED = -100
DECIDING_WEIGHT = 5.0


def patches(images: np.ndarray) -> Tensor:
    """Images [N, 64, 64, 3] in uint8 to patches [N * 64, 384], equal to what the image processor returns."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
    side = GRID // MERGE
    cut = pixels.reshape(len(pixels), 3, side, MERGE, PATCH, side, MERGE, PATCH)
    cut = cut.permute(0, 2, 5, 3, 6, 1, 4, 7)  # image, merged row and column, row and column in it, channel, y, x
    # A still image fills both frames of a temporal patch.
    return cut.reshape(-1, 3, 1, PATCH, PATCH).expand(-1, -1, 2, -1, -1).reshape(-1, 3 * 2 * PATCH * PATCH)


def _attend_in_batches(self: Any, hidden_states: Tensor, position_embeddings: Any = None, **_: Any) -> Tensor:
    """Vision attention for images of one size: one batched call, where transformers makes one call per image."""
    from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb_vision

    count = len(hidden_states)
    query, key, value = self.qkv(hidden_states).reshape(count, 3, self.num_heads, -1).unbind(1)
    query, key = apply_rotary_pos_emb_vision(query, key, *position_embeddings)
    # float32: the backward pass of this attention is several times slower in bfloat16 on a CPU.
    query, key, value = (x.float().reshape(-1, GRID * GRID, *x.shape[1:]).transpose(1, 2) for x in (query, key, value))
    with torch.autocast("cpu", enabled=False):
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, scale=self.scaling)
    return self.proj(mixed.transpose(1, 2).reshape(count, -1))


class _VisionEncoder(nn.Module):
    """The vision encoder with batched attention, for images of 64 x 64 pixels."""

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.visual = visual
        for block in visual.blocks:
            block.attn.forward = _attend_in_batches.__get__(block.attn)

    def forward(self, images: np.ndarray) -> tuple[Tensor, Tensor]:
        """Returns merged features and deepstack features, both [N, 16, 128]."""
        grid = torch.tensor([[1, GRID, GRID]]).expand(len(images), -1)
        found = self.visual(patches(images), grid_thw=grid, return_dict=True)
        shape = (len(images), IMAGE_TOKENS, -1)
        return found.pooler_output.reshape(shape), found.deepstack_features[0].reshape(shape)

    def restore(self) -> None:
        """Give the vision encoder its own attention back."""
        for block in self.visual.blocks:
            del block.attn.forward


def schedule(optimizer: torch.optim.Optimizer, steps: int, warmup: int) -> torch.optim.lr_scheduler.LambdaLR:
    """A linear warm-up, then a cosine down to a fiftieth of the rate."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def descend(
    loss: torch.Tensor,
    parameters: list[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    rates: torch.optim.lr_scheduler.LambdaLR,
) -> None:
    """One step of training: gradients, clipped to norm 1, then the optimizer and its rate."""
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    rates.step()


def train_vision_encoder(visual: Any, steps: int, seed: int, batch: int = 32, learning_rate: float = 1e-3) -> None:
    """Teach the vision encoder colours and shapes; every one of its output tokens must know both.

    That is more than a classifier of pooled features needs, but it lets the language model look at any token.
    """
    rng = random.Random(seed)
    vision_encoder = _VisionEncoder(visual)
    heads = nn.ModuleList([nn.Linear(128, len(language.COLORS) + len(language.SHAPES)) for _ in range(2)])
    parameters = [*visual.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    rates = schedule(optimizer, steps, warmup=50)
    started = time.monotonic()
    visual.train()
    for step in range(steps):
        images, colors, shapes = rendering.draw_many(batch, rng)
        color = torch.tensor([language.COLORS.index(word) for word in colors])
        shape = torch.tensor([language.SHAPES.index(word) for word in shapes])
        loss, right = torch.zeros(()), 0.0
        # bfloat16 halves the time of a step where the CPU has instructions for it.
        with torch.autocast("cpu", dtype=torch.bfloat16):
            seen = vision_encoder(images)
        for head, features in zip(heads, seen, strict=True):
            logits_of_both = head(features.float())
            color_logits, shape_logits = logits_of_both.split((len(language.COLORS), len(language.SHAPES)), dim=-1)
            for logits, truth in ((color_logits, color), (shape_logits, shape)):
                targets = truth[:, None].expand(-1, IMAGE_TOKENS)
                loss = loss + nn.functional.cross_entropy(logits.transpose(1, 2), targets)
            right = float((shape_logits.mean(1).argmax(-1) == shape).float().mean())
        descend(loss, parameters, optimizer, rates)
        if step % 100 == 99:
            elapsed = time.monotonic() - started
            print(
                f"vision encoder {step + 1}/{steps} loss {loss.item():.3f} shapes {right:.3f} {elapsed:.0f} s",
                flush=True,
            )
    vision_encoder.restore()


@torch.no_grad()
def _features(visual: Any, images: np.ndarray) -> tuple[Tensor, Tensor]:
    vision_encoder = _VisionEncoder(visual.eval())
    chunks = [vision_encoder(images[at : at + 256]) for at in range(0, len(images), 256)]
    vision_encoder.restore()
    return torch.cat([chunk[0] for chunk in chunks]), torch.cat([chunk[1] for chunk in chunks])


def encode(tokenizer: Any, conversations: list[Conversation]) -> list[tuple[list[int], list[int]]]:
    """Token ids and labels of conversations; only the last answer is a label, its end-of-turn token included."""
    start = tokenizer.encode("<|im_start|>assistant\n", add_special_tokens=False)
    encoded = []
    texts = [conversation_text(conversation).rstrip("\n") for conversation in conversations]
    for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]:
        at = max(i for i in range(len(ids)) if ids[i : i + len(start)] == start) + len(start)
        encoded.append((ids, [IGNORED] * at + ids[at:]))
    return encoded


def batches(maker: ConversationMaker, tokenizer: Any, size: int) -> Iterator[tuple[Tensor, Tensor, list[int]]]:
    """Endless batches of ids [B, L], labels [B, L] and image numbers, of conversations of about equal length."""
    while True:
        pool = [maker.draw() for _ in range(16 * size)]
        encoded = encode(tokenizer, pool)
        order = sorted(range(len(pool)), key=lambda number: len(encoded[number][0]))
        chunks = [order[at : at + size] for at in range(0, len(order), size)]
        maker.rng.shuffle(chunks)
        for chunk in chunks:
            longest = len(encoded[chunk[-1]][0])
            ids = torch.full((size, longest), tokenizer.pad_token_id)
            labels = torch.full((size, longest), IGNORED)
            for row, number in enumerate(chunk):
                found, wanted = encoded[number]
                ids[row, : len(found)] = torch.tensor(found)
                labels[row, : len(found)] = torch.tensor(wanted)
            yield ids, labels, [image for number in chunk for image in pool[number].images]


@dataclass(frozen=True)
class Images:
    """Drawn images as the finished vision encoder sees them: both kinds of features [N, 16, 128], and what they
    show.
    """

    merged: Tensor
    deepstack: Tensor
    colors: list[str]
    shapes: list[str]

    @classmethod
    def draw(cls, visual: Any, count: int, rng: random.Random) -> Images:
        """Draw `count` images and look at them."""
        drawn, colors, shapes = rendering.draw_many(count, rng)
        return cls(*_features(visual, drawn), list(colors), list(shapes))


def see(model: Any, images: Images, ids: Tensor, used: list[int]) -> Tensor:
    """Hidden states [B, L, H] of conversations `ids` [B, L] about the images `used`, in order."""
    text_model = model.model.language_model
    is_image = ids == model.config.image_token_id
    grid = torch.tensor([[1, GRID, GRID]]).expand(len(used), -1)
    positions, _ = model.model.get_rope_index(
        ids, mm_token_type_ids=is_image.int(), image_grid_thw=grid, attention_mask=torch.ones_like(ids)
    )
    embedded = text_model.embed_tokens(ids)
    embedded = embedded.masked_scatter(is_image[..., None], images.merged[used].reshape(-1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden: Tensor = text_model(
            inputs_embeds=embedded,
            position_ids=positions,  # padding stands last, so causal attention needs no mask
            visual_pos_masks=is_image,
            deepstack_visual_embeds=[images.deepstack[used].flatten(0, 1)],
            use_cache=False,
        ).last_hidden_state
    return hidden


def train_language_model(
    model: Any,
    tokenizer: Any,
    steps: int,
    seed: int,
    batch: int = 64,
    learning_rate: float = 2e-3,
    images: int = 8000,
    make: type[ConversationMaker] = ConversationMaker,
) -> None:
    """Teach the language model the conversations of `make` about `images` images, seen through the finished
    vision_encoder.

    Tokens that decide (yes or no, image 1 or 2) weigh more than the others, or they would be lost among them.
    """
    rng = random.Random(seed + 1)
    seen = Images.draw(model.model.visual, images, rng)
    maker = make(seen.colors, seen.shapes, rng)
    deciding = torch.tensor([tokenizer.encode(text)[0] for text in ("Yes", "No", " yes", " no", " 1", " 2")])
    text_model, head = model.model.language_model, model.lm_head
    parameters = [*text_model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    rates = schedule(optimizer, steps, warmup=min(100, steps // 5))
    started, sums, counts = time.monotonic(), 0.0, 0
    text_model.train()
    for step, (ids, labels, used) in zip(range(steps), batches(maker, tokenizer, batch), strict=False):
        hidden = see(model, seen, ids, used)
        wanted = labels[:, 1:]
        known = wanted != IGNORED
        losses = nn.functional.cross_entropy(head(hidden[:, :-1][known].float()), wanted[known], reduction="none")
        weight = torch.where(torch.isin(wanted[known], deciding), DECIDING_WEIGHT, 1.0)
        loss = (losses * weight).sum() / weight.sum()
        descend(loss, parameters, optimizer, rates)
        sums, counts = sums + loss.item(), counts + 1
        if step % 100 == 99:
            elapsed = time.monotonic() - started
            print(f"language {step + 1}/{steps} loss {sums / counts:.4f} {elapsed:.0f} s", flush=True)
            sums, counts = 0.0, 0
