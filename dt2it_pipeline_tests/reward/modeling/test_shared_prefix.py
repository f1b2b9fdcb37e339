"""One sequence per prompt gives the scores and gradients of separate sequences, and the scores of transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dt2it_pipeline.reward.data.collation import PackedExample, collate, unpack, with_pixels
from dt2it_pipeline_tests.support.tiny import make_frames, make_prompt
from dt2it_pipeline_tests.support.tolerance import gradient_tolerance, score_tolerance

pytestmark = pytest.mark.numerics

RESPONSES = ["red", "it looks green to me", "a blue circle", "no", "yes it is the image"]
FAMILIES = ["qwen3_vl", "qwen2_5_vl"]
VIDEO: dict[str, dict[str, str]] = {}


def encoded(
    prompt_encoder: Any, media: tuple[Path, list[dict[str, str]]], responses: int
) -> tuple[list[Any], list[Any]]:
    """Prompts of every kind: one image, two images, text alone, a video, several turns."""
    root, images = media
    if "video" not in VIDEO:
        VIDEO["video"] = make_frames(root / "video", 5, 2.0)
    turns = make_prompt(images[3:4], "and which shape", system="Be strict.")
    turns["turns"] = [{"role": "user", "text": "is it red"}, {"role": "assistant", "text": "no"}, *turns["turns"]]
    rows = [
        make_prompt(images[:1], "what colour is the shape"),
        make_prompt(images[1:3], "is it a circle"),
        make_prompt([], "is red a colour"),
        make_prompt([VIDEO["video"]], "what is in the image"),
        turns,
    ]
    return prompt_encoder.prompts(rows), prompt_encoder.responses(RESPONSES[:responses])


def gradients(model: Any, scores: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    weights = torch.linspace(-1, 1.5, len(scores))
    (scores * weights).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("responses", [1, 2, 5])
@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_shared_equals_separate(
    setup: Callable[..., Any], media: tuple[Path, Any], family: str, responses: int, padding: Any, checkpointing: bool
) -> None:
    model, prompt_encoder, registry = setup(family)
    model.freeze_vision()
    model.train()
    if checkpointing:
        model.model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
    prompts, texts = encoded(prompt_encoder, media, responses)

    rows = [PackedExample(p, tuple(texts)) for p in prompts]
    batch = with_pixels(collate(rows, padding=padding), registry)
    shared = model(batch)
    shared_gradients = gradients(model, shared)
    alone = unpack(rows)
    separate = torch.cat([model(with_pixels(collate([row]), registry)) for row in alone])
    separate_gradients = gradients(model, separate)
    together = model(with_pixels(collate(alone, padding=padding), registry, once=False))

    assert shared.shape == (len(prompts) * responses,)
    tokens = batch.input_ids.shape[1]
    within = score_tolerance(model, tokens)
    assert torch.allclose(shared, separate, atol=within, rtol=0)
    assert torch.allclose(together, separate, atol=within, rtol=0)
    assert shared_gradients.keys() == separate_gradients.keys()
    assert {name for name, p in model.named_parameters() if p.requires_grad} == separate_gradients.keys()
    within = gradient_tolerance(model, tokens, separate_gradients.values())
    for name, value in separate_gradients.items():
        assert torch.allclose(shared_gradients[name], value, atol=within, rtol=0), name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", range(5))
def test_every_kind_of_prompt_by_itself(
    setup: Callable[..., Any], media: tuple[Path, Any], family: str, kind: int
) -> None:
    model, prompt_encoder, registry = setup(family)
    model.freeze_vision()
    prompts, texts = encoded(prompt_encoder, media, 5)
    row = PackedExample(prompts[kind], tuple(texts))
    batch = with_pixels(collate([row]), registry)
    shared = model(batch)
    shared_gradients = gradients(model, shared)
    separate = torch.cat([model(with_pixels(collate([one]), registry)) for one in unpack([row])])
    tokens = batch.input_ids.shape[1]
    assert torch.allclose(shared, separate, atol=score_tolerance(model, tokens), rtol=0)
    separate_gradients = gradients(model, separate)
    within = gradient_tolerance(model, tokens, separate_gradients.values())
    for name, value in separate_gradients.items():
        assert torch.allclose(shared_gradients[name], value, atol=within, rtol=0), name


@pytest.mark.parametrize("family", FAMILIES)
def test_score_is_the_head_on_the_hidden_state_of_transformers(
    setup: Callable[..., Any], media: tuple[Path, Any], family: str
) -> None:
    model, prompt_encoder, registry = setup(family)
    model.eval()
    prompts, texts = encoded(prompt_encoder, media, 2)
    scores = model(with_pixels(collate([PackedExample(p, tuple(texts)) for p in prompts]), registry)).view(-1, 2)
    for prompt, found in zip(prompts, scores, strict=True):
        if (prompt.tokens == prompt_encoder.video_token).any():
            continue  # see test_video.py
        ids = torch.from_numpy(np.concatenate([prompt.tokens, texts[1]])).long()[None]
        given = {}
        if prompt.images:
            pixels, grids = registry.patches([registry.decode(i) for i in prompt.images])
            given = {"pixel_values": pixels, "image_grid_thw": grids}
        types = (ids == prompt_encoder.image_token).int()
        hidden = model.model(input_ids=ids, mm_token_type_ids=types, **given).last_hidden_state
        within = score_tolerance(model, ids.shape[1])
        assert found[1].item() == pytest.approx(model.head(hidden[0, -1]).item(), abs=within, rel=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_features_computed_ahead_give_the_same_scores(
    setup: Callable[..., Any], media: tuple[Path, Any], family: str
) -> None:
    from dt2it_pipeline.reward.data.vision_features import survey_images
    from dt2it_pipeline.reward.training.distributed import Alone

    model, prompt_encoder, registry = setup(family)
    prompts, texts = encoded(prompt_encoder, media, 2)
    batch = collate([PackedExample(p, tuple(texts)) for p in prompts])
    used = sorted(set(batch.images))
    table, faults = survey_images(
        model, registry, used, most_bytes=1e9, work=media[0], ranks=Alone(), device=torch.device("cpu")
    )
    assert table is not None
    assert not faults
    assert not (media[0] / "features.bin").exists()
    ahead = model(batch, table.gather(registry, batch.images))
    within = score_tolerance(model, batch.input_ids.shape[1])
    assert torch.allclose(ahead, model(with_pixels(batch, registry)), atol=within, rtol=0)


@pytest.mark.parametrize("padding", ["right", "left"])
def test_padding_does_not_matter(setup: Callable[..., Any], media: tuple[Path, Any], padding: Any) -> None:
    model, prompt_encoder, registry = setup()
    prompts, texts = encoded(prompt_encoder, media, 5)
    long = PackedExample(prompts[1], tuple(texts))
    short = PackedExample(prompts[2], tuple(texts[:2]))
    both = with_pixels(collate([short, long], pad_token=7, padding=padding), registry)
    alone = model(with_pixels(collate([short]), registry))
    assert torch.allclose(model(both)[:2], alone, atol=score_tolerance(model, both.input_ids.shape[1]), rtol=0)
