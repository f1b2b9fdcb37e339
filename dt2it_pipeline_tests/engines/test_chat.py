"""Prompt rows as chat messages."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
from PIL import ImageColor

from dt2it_pipeline.engines.chat import ChatError, ChatPrompt, chat_prompt, opened
from dt2it_pipeline_tests.support.construct_world import COLORS, prompt_row


def test_markers_become_parts_and_words_stay_as_they_are(tmp_path):
    row = prompt_row(tmp_path, "red")
    row["turns"] = [
        {"role": "user", "text": "Look:\n<image>\nwhat is it?"},
        {"role": "assistant", "text": "A shape."},
        {"role": "user", "text": "And its color?"},
    ]
    prompt = chat_prompt(row | {"system": "Be brief."}, tmp_path, suffix="In one word.")
    assert [message["role"] for message in prompt.messages] == ["system", "user", "assistant", "user"]
    assert prompt.messages[1]["content"] == [
        {"type": "text", "text": "Look:\n"},
        {"type": "image"},
        {"type": "text", "text": "\nwhat is it?"},
    ]
    assert prompt.messages[3]["content"] == [{"type": "text", "text": "And its color? In one word."}]
    assert [image.size for image in prompt.images] == [(64, 64)]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"turns": [{"role": "user", "text": "no marker"}]}, "image markers do not match media"),
        ({"turns": [{"role": "user", "text": "<image><image> two"}]}, "image markers do not match media"),
        ({"media": [{"kind": "video", "sha256": "0", "path": "x.mp4"}]}, "medium not supported"),
    ],
)
def test_prompts_that_cannot_be_put_to_a_model(tmp_path, change, reason):
    with pytest.raises(ChatError) as caught:
        chat_prompt(prompt_row(tmp_path, "red") | change, tmp_path)
    assert caught.value.reason == reason


def test_an_image_that_cannot_be_opened_costs_the_prompt_with_the_reason_of_the_reader(tmp_path):
    row = prompt_row(tmp_path, "red")
    (tmp_path / "text.png").write_text("not an image")
    for path, reason in (
        ("text.png", "unreadable image"),
        ("absent.png", "missing image"),
        ("../outside.png", "path outside the media root"),
    ):
        with pytest.raises(ChatError) as caught:
            chat_prompt(row | {"media": [{"kind": "image", "sha256": "0", "path": path}]}, tmp_path)
        assert caught.value.reason == reason


def test_control_tokens_that_the_words_spell_out_are_text(tmp_path):
    row = prompt_row(tmp_path, "red", "what does <|im_end|> mean?") | {"system": "Be <|im_start|>brief."}
    prompt = chat_prompt(row, tmp_path)
    assert prompt.messages[0]["content"] == [{"type": "text", "text": "Be < |im_start|>brief."}]
    assert prompt.messages[1]["content"][1] == {"type": "text", "text": "\nwhat does < |im_end|> mean?"}


@pytest.mark.parametrize("threads", [0, 3])
def test_images_are_opened_in_order_and_a_damaged_one_costs_its_own_prompt(tmp_path, monkeypatch, threads):
    import torch  # noqa: F401  (a process that has not imported it reads nothing ahead)

    from dt2it_pipeline.engines import device

    monkeypatch.setattr(device, "threads_for", lambda device: threads)
    rows = [prompt_row(tmp_path, color) for color in COLORS]
    (tmp_path / f"{COLORS[2]}.png").write_bytes((tmp_path / f"{COLORS[2]}.png").read_bytes()[:-40])
    running = set()

    def make(row):
        running.add(threading.current_thread().name)
        return chat_prompt(row, tmp_path)

    found = list(opened(rows, make))
    assert [row for row, _ in found] == rows
    assert [isinstance(made, ChatError) for _, made in found] == [color == COLORS[2] for color in COLORS]
    assert [made.images[0].getpixel((0, 0)) for _, made in found if isinstance(made, ChatPrompt)] == [
        ImageColor.getrgb(color) for color in COLORS if color != COLORS[2]
    ]
    assert all(name.startswith("read-ahead") for name in running) == bool(threads)


def test_where_nothing_computes_on_a_gpu_torch_is_not_imported(tmp_path):
    """As beside judges behind an endpoint: it takes seconds and a quarter of a GB."""
    program = """
import sys
from dt2it_pipeline.engines.chat import opened
assert list(opened([1, 2], str)) == [(1, "1"), (2, "2")]
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
