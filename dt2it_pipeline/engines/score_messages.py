"""A prompt with one response as the chat messages that a pooling server scores, images as data URLs.

What belongs here: the words and images of a request to /classify, for the client (score_endpoint.py) and for the route
of `dt2it serve` that scores several responses. What does not: sending it.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from dt2it_pipeline.engines.chat import ChatError
from dt2it_pipeline.media.images import ImageSource, opened_image
from dt2it_pipeline.media.markers import split_at_markers, user_marker_kinds
from dt2it_pipeline.media.opening import open_image, require_stored
from dt2it_pipeline.media.paths import confined
from dt2it_pipeline.media.pixels import ORIENTATION

_CONTROL = re.compile(r"<\|[^|<>\s]{1,40}\|>")  # a server would take these for control tokens


def data_urls(media: Sequence[Mapping[str, Any]], root: Path) -> list[str]:
    """The images of a prompt as data URLs.

    Args:
        media: of a row of a prompts table; `image` holds an image that lies in memory.
        root: folder that no path may leave.

    Raises:
        ChatError: a medium is a video.
        MediaError: an image is missing, damaged or too large.
    """
    found = []
    for medium in media:
        if medium["kind"] != "image":
            raise ChatError("medium not supported", "an endpoint is asked about images alone")
        image = medium.get("image")
        found.append(data_url(confined(medium["path"], root) if image is None else image, medium["path"]))
    return found


def data_url(source: ImageSource, name: str = "") -> str:
    """An image as a data URL: what every server decodes to the pixels that our scorers see.

    A plain photograph or drawing goes as it is. Servers differ in what they make of 16-bit values, transparency,
    orientation and animations, so an image with any of them goes as it looks to us (`pixels.to_rgb`).

    Args:
        source: a file whose path has been confined, a file's content, or an image of Pillow.
        name: of the image in messages.

    Raises:
        MediaError: the image is missing, damaged or too large.
    """
    kind, content = _content(source, name)
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def score_messages(
    prompt: Mapping[str, Any], images: Sequence[str], text: str, system_prompt: str = ""
) -> list[dict[str, Any]]:
    """The conversation in OpenAI's form, images where their markers stand.

    Args:
        prompt: with `turns` and `system`, of a row of a prompts table.
        images: data URLs of its media, in order.
        text: the response.
        system_prompt: that stands before the row's own.

    Raises:
        ChatError: markers and images differ in number, or the words spell out a control token.
    """
    turns = prompt["turns"]
    kinds = user_marker_kinds(turns)
    if kinds != ["image"] * len(images):
        raise ChatError("image markers do not match media", f"{len(kinds)} markers, {len(images)} media")
    system = "\n\n".join(part for part in (system_prompt, prompt["system"]) if part)
    for words in (system, text, *(turn["text"] for turn in turns)):
        if found := _CONTROL.search(words):
            raise ChatError("control token in the conversation", found.group())
    shown = iter(images)
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    for turn in turns:
        if turn["role"] != "user":
            messages.append({"role": turn["role"], "content": turn["text"]})
            continue
        content = [
            {"type": "text", "text": piece}
            if kind == "text"
            else {"type": "image_url", "image_url": {"url": next(shown)}}
            for kind, piece in split_at_markers(turn["text"])
        ]
        messages.append({"role": "user", "content": content})
    return [*messages, {"role": "assistant", "content": text}]


def _content(source: ImageSource, name: str) -> tuple[str, bytes]:
    """MIME type and content to send."""
    if isinstance(source, Path):
        require_stored(source, name)
    with opened_image(source, name) as image:
        image.load()
        upright = image.getexif().get(ORIENTATION, 1) == 1
        plain = image.mode in ("RGB", "L") and not image.has_transparency_data and upright
        plain = plain and image.format in ("JPEG", "PNG") and not getattr(image, "is_animated", False)
        if plain and isinstance(source, (bytes, Path)):
            return Image.MIME[str(image.format)], source if isinstance(source, bytes) else source.read_bytes()
    buffer = io.BytesIO()
    open_image(source, name).save(buffer, "PNG", compress_level=1)  # to be read once: quick rather than small
    return Image.MIME["PNG"], buffer.getvalue()
