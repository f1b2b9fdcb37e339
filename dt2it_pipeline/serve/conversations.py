"""Prompts as other programs hold them, as the prompts that `RewardModel.score` takes.

RL libraries and clients over HTTP send a text, or messages whose content is a text or a list of typed parts; images are
in the parts, or in a list beside them. What belongs here: these forms, without a model and without a network.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from dt2it_pipeline.errors import UserError
from dt2it_pipeline.media.markers import IMAGE, escaped, user_marker_kinds
from dt2it_pipeline.media.opening import open_image

_IMAGE_TYPES = ("image", "image_url", "input_image")
_TEXT_TYPES = ("text", "input_text", "output_text")
_CHATML = re.compile(r"<\|im_start\|>(\w+)\n(.*?)(?:<\|im_end\|>\n?|\Z)", re.S)
_CHATML_IMAGE = re.compile(r"<\|vision_start\|>(?:<\|image_pad\|>)+<\|vision_end\|>")


class ConversationError(UserError, ValueError):
    """A prompt or response has a shape that is not understood; the message says where and what is expected."""


def as_prompt(prompt: Any, images: Sequence[Any] | None = None, system: str = "") -> dict[str, Any]:
    r"""A prompt with `turns`, `system` and `images`, as `RewardModel.score` takes it; images are handed on as they are.

    >>> as_prompt("What colour is it?", images=["a.png"])["turns"]
    [{'role': 'user', 'text': '<image>What colour is it?'}]
    >>> parts = [{"type": "text", "text": "Is "}, {"type": "image", "image": "a.png"}]
    >>> as_prompt([{"role": "user", "content": parts}])
    {'turns': [{'role': 'user', 'text': 'Is <image>'}], 'system': '', 'images': ['a.png']}

    Args:
        prompt: a text of the user, or a list of messages with `role` and `content` (a text or typed parts, as of OpenAI
            and Transformers) or `text` (as of our prompts). System messages come first.
        images: for `<image>` in texts and for image parts without an image, in their order. Where there is neither,
            they stand before the first words of the user, as TRL has them.
        system: system text that stands before the messages' own.

    Raises:
        ConversationError: the shape is another, or markers and images differ in number.
    """
    if isinstance(prompt, str):
        prompt = [{"role": "user", "text": prompt}]
    if not isinstance(prompt, Sequence) or not prompt:
        raise ConversationError(f"the prompt must be a text or a list of messages, found {_named(prompt)}")
    given = list(images or ())
    left = iter(given)
    shown: list[Any] = []
    turns: list[dict[str, str]] = []
    systems = [system] if system else []
    for place, message in enumerate(prompt):
        where = f"message {place} of the prompt"
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ConversationError(f"{where} is not a mapping with `role` and `content`")
        role, content = message["role"], message.get("content", message.get("text"))
        if role not in ("system", "user", "assistant"):
            raise ConversationError(f"{where} is of role {role!r}; a reward model reads system, user and assistant")
        if role == "system":
            if turns:
                raise ConversationError(f"{where} is a system message behind others; system messages come first")
            systems.append(_text(content, where))
        elif role == "user":
            turns.append({"role": role, "text": _shown_text(content, where, left, shown)})
        else:
            turns.append({"role": role, "text": _text(content, where)})
    if not turns or turns[-1]["role"] != "user":
        raise ConversationError("the last message of the prompt must be of the user; what answers it is the response")
    rest = list(left)
    if rest and not shown and (first := next((turn for turn in turns if turn["role"] == "user"), None)):
        first["text"] = IMAGE * len(rest) + first["text"]
        shown, rest = rest, []
    markers = len(user_marker_kinds(turns))
    if rest or markers != len(shown):
        raise ConversationError(
            f"the prompt has places for {markers} images, but {len(shown) + len(rest)} are given; write one <image> "
            r"for each, and \<image> where the characters are meant"
        )
    return {"turns": turns, "system": "\n\n".join(part for part in systems if part), "images": shown}


def response_text(completion: Any) -> str:
    """The text of a completion: a text, or a list with one message of the assistant.

    >>> response_text([{"role": "assistant", "content": "It is red."}])
    'It is red.'

    Raises:
        ConversationError: it is neither.
    """
    if isinstance(completion, str):
        return completion
    if isinstance(completion, Sequence) and len(completion) == 1 and isinstance(completion[0], Mapping):
        return _text(completion[0].get("content"), "the completion")
    raise ConversationError(
        f"a completion must be a text or one message of the assistant, found {_named(completion)}; of several messages "
        "(tool calls), hand on what is to be scored"
    )


def parse_chatml(prompt: str) -> str | list[dict[str, str]]:
    r"""Messages of a prompt to which a chat template of the Qwen family was applied; a text without one as it is.

    >>> image = "<|vision_start|><|image_pad|><|vision_end|>"
    >>> parse_chatml(f"<|im_start|>user\n{image}Hi<|im_end|>\n<|im_start|>assistant\n")
    [{'role': 'user', 'text': '<image>Hi'}]
    >>> parse_chatml("Hi")
    'Hi'
    """
    found = _CHATML.findall(prompt)
    if not found:
        return prompt
    if found[-1][0] == "assistant":  # opened for the answer
        found.pop()
    return [
        {"role": role, "text": _CHATML_IMAGE.sub(IMAGE, escaped(text)) if role == "user" else text}
        for role, text in found
    ]


def decoded(text: str, name: str) -> bytes:
    """The bytes of a data URI or of base64.

    Raises:
        ConversationError: it is neither, such as a URL or a path: nothing is fetched or read.
    """
    if text.startswith(("http://", "https://", "file:")):
        raise ConversationError(f"{name} is a URL, and none is fetched: send the image as a data URI or in base64")
    head, comma, content = text.partition(",") if text.startswith("data:") else ("", "", text)
    if comma and not head.endswith(";base64"):
        raise ConversationError(f"{name} is a data URI of another encoding; write data:image/png;base64,...")
    try:
        return base64.b64decode("".join(content.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ConversationError(
            f"{name} is neither a data URI nor base64; a path is not read, so send the content"
        ) from None


def opened(item: Any, name: str) -> Image.Image | str:
    """An image of an RL library as `RewardModel.score` takes it: an image of PIL, or a path.

    Args:
        item: an image of PIL, a path, bytes, a data URI, or a mapping with `bytes` or `path`, as of `datasets`.
        name: of the image in messages.

    Raises:
        ConversationError: it is none of these, or a URL.
        MediaError: bytes hold no image that can be read.
    """
    if isinstance(item, Mapping):
        item = next((item[key] for key in ("bytes", "path", "image", "url") if item.get(key)), None)
    if isinstance(item, str) and item.startswith(("data:", "http://", "https://")):
        item = decoded(item, name)
    if isinstance(item, bytes):
        return open_image(item, name)
    if isinstance(item, Path):
        return str(item)
    if isinstance(item, (Image.Image, str)) and item:
        return item
    raise ConversationError(f"{name} is {_named(item)}; give an image of PIL, a path, bytes or a data URI")


def with_images(prompt: Mapping[str, Any], read: Callable[[Any, str], Any]) -> dict[str, Any]:
    """A prompt with its images read; `read` takes an image and its name in messages."""
    images = prompt.get("images")
    if not isinstance(images, (list, tuple)):
        return dict(prompt)
    return {**prompt, "images": [read(image, f"image {place}") for place, image in enumerate(images)]}


def _shown_text(content: Any, where: str, left: Iterator[Any], shown: list[Any]) -> str:
    """Text of a user message with a marker for every image, which goes to `shown`."""
    if isinstance(content, str):
        shown += (image for _, image in zip(user_marker_kinds([{"role": "user", "text": content}]), left, strict=False))
        return content
    words = []
    for part in _parts(content, where):
        if part.get("type") in _TEXT_TYPES:
            words.append(escaped(_part_text(part, where)))
        elif part.get("type") in _IMAGE_TYPES:
            found = part.get("image")
            found = part.get("image_url") if found is None else found
            found = found.get("url") if isinstance(found, Mapping) and "url" in found else found
            if found is None:
                found = next((part[key] for key in ("base64", "url", "path") if part.get(key)), None)
            found = next(left, None) if found is None else found
            if found is None:
                raise ConversationError(f"{where} has more image parts than there are images")
            shown.append(found)
            words.append(IMAGE)
        else:
            raise ConversationError(f"{where} has a part of type {part.get('type')!r}; texts and images are read")
    return "".join(words)


def _text(content: Any, where: str) -> str:
    """Text of a message that shows no image."""
    if isinstance(content, str):
        return content
    parts = _parts(content, where)
    if any(part.get("type") not in _TEXT_TYPES for part in parts):
        raise ConversationError(f"{where} shows something else than text; only messages of the user may show images")
    return "".join(_part_text(part, where) for part in parts)


def _parts(content: Any, where: str) -> list[Mapping[str, Any]]:
    if not isinstance(content, Sequence) or not all(isinstance(part, Mapping) for part in content):
        raise ConversationError(
            f"{where} has {_named(content)} as content; a text or a list of typed parts is expected"
        )
    return list(content)


def _part_text(part: Mapping[str, Any], where: str) -> str:
    if not isinstance(part.get("text"), str):
        raise ConversationError(f"{where} has a part of type text without a text")
    return str(part["text"])


def _named(value: Any) -> str:
    return "nothing" if value is None or value in ("", [], ()) else f"a {type(value).__name__}"
