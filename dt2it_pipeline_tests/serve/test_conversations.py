"""Prompts of other programs as ours: every form that is read, and a sentence for every other one."""

from __future__ import annotations

import base64
import doctest
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dt2it_pipeline.media.errors import MediaError
from dt2it_pipeline.serve import conversations
from dt2it_pipeline.serve.conversations import (
    ConversationError,
    as_prompt,
    decoded,
    opened,
    parse_chatml,
    response_text,
)

IMAGE_PART = {"type": "image"}


def words(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def test_the_examples_are_right() -> None:
    found = doctest.testmod(conversations)
    assert found.attempted > 4 and not found.failed


@pytest.mark.parametrize(
    ("prompt", "images", "text", "shown"),
    [
        ("what is it", ["a"], "<image>what is it", ["a"]),  # TRL: before the first words
        ("is <image> like <image>", ["a", "b"], "is <image> like <image>", ["a", "b"]),
        ([{"role": "user", "content": [IMAGE_PART, words("what")]}], ["a"], "<image>what", ["a"]),
        ([{"role": "user", "content": [{**IMAGE_PART, "image": "own"}, words("x")]}], None, "<image>x", ["own"]),
        (
            [{"role": "user", "content": [words("x"), {"type": "image_url", "image_url": {"url": "data:,"}}]}],
            None, "x<image>", ["data:,"],
        ),
        ([{"role": "user", "content": [words("an <image> tag")]}], None, r"an \<image> tag", []),
        ([{"role": "user", "text": "ours"}], None, "ours", []),
    ],
)  # fmt: skip
def test_forms_of_a_question(prompt: Any, images: list[str] | None, text: str, shown: list[str]) -> None:
    made = as_prompt(prompt, images)
    assert (made["turns"][-1]["text"], made["images"]) == (text, shown)


def test_a_conversation_keeps_its_system_text_and_turns() -> None:
    messages = [
        {"role": "system", "content": [words("Judge.")]},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "an answer about <image>"},
        {"role": "user", "content": "two"},
    ]
    made = as_prompt(messages, ["a"], system="First.")
    assert made["system"] == "First.\n\nJudge."
    assert [turn["role"] for turn in made["turns"]] == ["user", "assistant", "user"]
    assert made["turns"][0]["text"] == "<image>one"


@pytest.mark.parametrize(
    ("prompt", "images", "says"),
    [
        ([], None, "found nothing"),
        (3, None, "found a int"),
        ("a <image>", None, "places for 1 images, but 0 are given"),
        ("<image>", ["a", "b"], "places for 1 images, but 2 are given"),
        ([{"role": "user", "content": [IMAGE_PART]}], None, "more image parts than there are images"),
        ([{"role": "user", "content": [{"type": "video"}]}], None, "part of type 'video'"),
        ([{"role": "tool", "content": "x"}], None, "of role 'tool'"),
        ([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}], None, "must be of the user"),
        ([{"role": "user", "content": "x"}, {"role": "system", "content": "y"}], None, "system messages come first"),
        ([{"role": "user"}], None, "nothing as content"),
        (["x"], None, "message 0 of the prompt is not a mapping"),
    ],
)
def test_another_form_is_refused_with_a_sentence(prompt: Any, images: list[str] | None, says: str) -> None:
    with pytest.raises(ConversationError, match=says):
        as_prompt(prompt, images)


def test_completions() -> None:
    assert response_text("a") == response_text([{"role": "assistant", "content": [words("a")]}]) == "a"
    with pytest.raises(ConversationError, match="one message of the assistant"):
        response_text([{"role": "assistant", "content": "a"}, {"role": "tool", "content": "b"}])


def test_chat_templates_of_the_qwen_family_are_read_back() -> None:
    text = (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nA<|vision_start|><|image_pad|><|image_pad|><|vision_end|>"
    )
    made = as_prompt(parse_chatml(text + " <image><|im_end|>\n<|im_start|>assistant\n"), ["a"])
    assert made == {"turns": [{"role": "user", "text": r"A<image> \<image>"}], "system": "S", "images": ["a"]}


def test_images_in_memory_and_what_is_none(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2), "red").save(buffer, "PNG")
    png, text = buffer.getvalue(), base64.b64encode(buffer.getvalue()).decode()
    for item in (png, {"bytes": png, "path": None}, f"data:image/png;base64,{text}"):
        image = opened(item, "image 0")
        assert isinstance(image, Image.Image) and image.size == (3, 2)
    assert opened(Path("a.png"), "image 0") == opened({"bytes": None, "path": "a.png"}, "image 0") == "a.png"
    assert decoded(text, "image 0") == png
    with pytest.raises(MediaError, match="unreadable image"):
        opened(b"nonsense", "image 0")
    for item, says in (("http://host/a.png", "none is fetched"), (3, "a int"), ({}, "nothing")):
        with pytest.raises(ConversationError, match=says):
            opened(item, "image 0")
    for item, says in (("/etc/passwd", "a path is not read"), ("data:image/png,abc", "another encoding")):
        with pytest.raises(ConversationError, match=says):
            decoded(item, "image 0")
