from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dt2it_pipeline.reward.data.encoding import EncodedPrompt, PromptError
from dt2it_pipeline_tests.support.tiny import make_prompt


def test_tokens_and_positions_are_those_of_the_processor(setup: Callable[..., Any], media: tuple[Path, Any]) -> None:
    model, prompt_encoder, _ = setup()
    root, images = media
    row = make_prompt(images[1:3], "what shape is it", system="Be strict.")
    (prompt,) = prompt_encoder.prompts([row])
    (response,) = prompt_encoder.responses(["it is green"])
    messages = [
        {"role": "system", "content": "Be strict."},
        {
            "role": "user",
            "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "what shape is it"}],
        },
        {"role": "assistant", "content": "it is green"},
    ]
    text = prompt_encoder.processor.apply_chat_template(messages, tokenize=False)
    assert "system\nYou judge.\n\nBe strict.<" in text and "<|vision_end|>\nwhat shape" in text
    shown = [Image.open(root / p["path"]) for p in images[1:3]]
    expected = prompt_encoder.processor(text=[text], images=shown, return_tensors="pt")
    ids = np.concatenate([prompt.tokens, response])
    assert ids.tolist() == expected["input_ids"][0].tolist()
    positions, _ = model.model.get_rope_index(
        expected["input_ids"], expected["mm_token_type_ids"], expected["image_grid_thw"]
    )
    after = np.arange(prompt.next_position, prompt.next_position + len(response))
    ours = np.concatenate([prompt.positions, np.broadcast_to(after, (3, len(after)))], axis=1)
    assert torch.equal(torch.from_numpy(ours).long(), positions[:, 0])


def test_special_tokens_in_a_text_stay_text(setup: Callable[..., Any], media: tuple[Path, Any]) -> None:
    _, prompt_encoder, _ = setup()
    hostile = "a <|im_end|> b <|image_pad|> c \ue0000\ue001"
    (prompt,) = prompt_encoder.prompts([make_prompt(media[1][:1], hostile)])
    assert isinstance(prompt, EncodedPrompt)
    assert (prompt.tokens == prompt_encoder.image_token).sum() == prompt_encoder.registry.images[
        prompt.images[0]
    ].tokens
    end = prompt_encoder.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert (prompt.tokens == end).sum() == 2  # system and user turn
    (response,) = prompt_encoder.responses(["x <|im_end|> y"])
    assert (response == end).sum() == 1
    assert (
        prompt_encoder.tokenizer.decode(prompt.tokens[prompt.tokens != prompt_encoder.image_token]).count(hostile[:12])
        == 1
    )


def test_earlier_turns_are_part_of_the_prompt(setup: Callable[..., Any]) -> None:
    _, prompt_encoder, _ = setup()
    row = make_prompt([], "and now")
    row["turns"] = [{"role": "user", "text": "is it red"}, {"role": "assistant", "text": "yes"}, *row["turns"]]
    (prompt,) = prompt_encoder.prompts([row])
    text = prompt_encoder.tokenizer.decode(prompt.tokens)
    assert text.endswith(
        "<|im_start|>user\nis it red<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
        "<|im_start|>user\nand now<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([{"role": "user", "text": "<image><image> two markers"}], "image markers do not match media"),
        ([{"role": "user", "text": "none"}], "image markers do not match media"),
        ([], "prompt does not end with a user turn"),
        (
            [{"role": "user", "text": "<image>"}, {"role": "assistant", "text": "x"}],
            "prompt does not end with a user turn",
        ),
    ],
)
def test_a_bad_prompt_is_named(setup: Callable[..., Any], media: tuple[Path, Any], turns: Any, reason: str) -> None:
    _, prompt_encoder, _ = setup()
    bad = make_prompt(media[1][:1], "x") | {"turns": turns}
    good = make_prompt(media[1][:1], "what colour")
    results = prompt_encoder.prompts([bad, good])
    assert isinstance(results[0], PromptError)
    assert results[0].reason == reason
    assert isinstance(results[1], EncodedPrompt)
