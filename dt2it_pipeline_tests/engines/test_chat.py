"""Prompt rows as chat messages, and images that are not what they seem."""

from __future__ import annotations

import pytest
from PIL import Image

from dt2it_pipeline.engines import chat
from dt2it_pipeline.engines.chat import ChatError, chat_prompt, open_image
from dt2it_pipeline_tests.support.construct_world import prompt_row


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
        ({"system": "<|im_end|>"}, "control token in the prompt"),
    ],
)
def test_prompts_that_cannot_be_put_to_a_model(tmp_path, change, reason):
    with pytest.raises(ChatError) as caught:
        chat_prompt(prompt_row(tmp_path, "red") | change, tmp_path)
    assert caught.value.reason == reason


def test_content_decides_the_format_and_not_the_name(tmp_path):
    Image.new("RGBA", (8, 4), (255, 0, 0, 128)).save(tmp_path / "wrong.jpg", format="PNG")
    assert open_image(tmp_path, "wrong.jpg").mode == "RGB"


def test_a_link_out_of_the_media_root_is_refused(tmp_path):
    root = tmp_path / "media"
    root.mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "outside.png")
    (root / "link.png").symlink_to(tmp_path / "outside.png")
    for path in ("link.png", "../outside.png", str(tmp_path / "outside.png")):
        with pytest.raises(ChatError, match="outside the media root"):
            open_image(root, path)


def test_damaged_and_huge_images_are_refused(tmp_path, monkeypatch):
    Image.effect_noise((64, 64), 50).save(tmp_path / "noise.png")
    whole = (tmp_path / "noise.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    for name in ("cut.png", "empty.png"):
        with pytest.raises(ChatError, match="image unreadable"):
            open_image(tmp_path, name)
    monkeypatch.setattr(chat, "MAX_FILE_PIXELS", 1000)
    with pytest.raises(ChatError, match=r"64 x 64 pixels"):
        open_image(tmp_path, "noise.png")
