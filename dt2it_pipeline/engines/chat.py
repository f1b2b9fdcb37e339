"""Prompt rows as chat messages and open images, the form in which models take them.

What belongs here: turning prompts with `<image>` markers into message parts and decoded images. What does not: a model,
or anything about how its chat template words things; templates come with the model.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from dt2it_pipeline.engines.control_tokens import without_control_tokens
from dt2it_pipeline.errors import RowError
from dt2it_pipeline.media.errors import MediaError
from dt2it_pipeline.media.markers import marker_kinds, split_at_markers
from dt2it_pipeline.media.opening import open_image
from dt2it_pipeline.media.paths import confined
from dt2it_pipeline.observe.logs import log_rows

_Item = TypeVar("_Item")
_Made = TypeVar("_Made")


class ChatError(RowError):
    """A prompt cannot be put to a model."""


@dataclass(frozen=True)
class ChatPrompt:
    """A question as a model takes it: `messages` in chat-template form, and the images in marker order."""

    prompt_id: str
    messages: tuple[Mapping[str, Any], ...]
    images: tuple[Image.Image, ...]

    def fitted(self, most: int | None) -> ChatPrompt:
        """The same prompt with images of at most `most` pixels each; unchanged where `most` is None."""
        return ChatPrompt(self.prompt_id, self.messages, tuple(fit_pixels(image, most) for image in self.images))

    def with_images(self, images: Sequence[Image.Image]) -> ChatPrompt:
        """The same words over other images. Raises ChatError when their number differs."""
        if len(images) != len(self.images):
            raise ChatError("images do not match", f"the prompt has {len(self.images)}, {len(images)} given")
        return ChatPrompt(self.prompt_id, self.messages, tuple(images))


def chat_prompt(
    row: Mapping[str, Any],
    media_root: Path,
    system: str | None = None,
    suffix: str = "",
    images: tuple[Image.Image, ...] | None = None,
) -> ChatPrompt:
    """Build the chat form of one row of a prompts table, its images read from below `media_root`.

    Control tokens that the words spell out are text: a space goes into each, see `control_tokens`.

    Args:
        row: a prompts row; turn texts hold one `<image>` marker per image.
        media_root: folder that the rows' media paths are relative to.
        system: system text to use instead of the row's own.
        suffix: words to add to the last user turn, after a space.
        images: the row's images where they have been read before; they are not read again.

    Raises:
        ChatError: an image cannot be read (with the reason of the MediaError), a medium is a video, or markers and
            media do not match in number.
    """
    if any(medium["kind"] != "image" for medium in row["media"]):
        raise ChatError("medium not supported", "only images are")
    turns = [(turn["role"], turn["text"]) for turn in row["turns"]]
    markers = sum(len(marker_kinds(text)) for _, text in turns)
    if markers != len(row["media"]):
        raise ChatError("image markers do not match media", f"{markers} markers, {len(row['media'])} media")
    if suffix:
        last = max((i for i, (role, _) in enumerate(turns) if role == "user"), default=len(turns) - 1)
        turns[last] = (turns[last][0], f"{turns[last][1]} {suffix}")
    text = without_control_tokens(row["system"] if system is None else system)
    messages = [{"role": "system", "content": [{"type": "text", "text": text}]}] if text else []
    messages += [{"role": role, "content": _parts(words)} for role, words in turns]
    if images is None:
        with log_rows([row["prompt_id"]]):
            images = tuple(_image(media_root, medium["path"]) for medium in row["media"])
    return ChatPrompt(row["prompt_id"], tuple(messages), images)


def opened(items: Iterable[_Item], make: Callable[[_Item], _Made]) -> Iterator[tuple[_Item, _Made | ChatError]]:
    """Items in their order with what `make` makes of each, or the ChatError that it raises.

    Where there is a GPU to wait for it, several threads open images.
    """

    def read(item: _Item) -> _Made | ChatError:
        try:
            return make(item)
        except ChatError as error:
            return error

    if "torch" not in sys.modules:  # nothing here computes on a GPU; a judge behind an endpoint needs no torch
        yield from ((item, read(item)) for item in items)
        return
    from dt2it_pipeline.engines.device import found_device, read_ahead, threads_for

    yield from read_ahead(items, read, threads_for(found_device()))


def _image(media_root: Path, path: str) -> Image.Image:
    try:
        return open_image(confined(path, media_root), path)
    except MediaError as error:
        raise ChatError(error.reason, error.detail) from error


def fit_pixels(image: Image.Image, most: int | None) -> Image.Image:
    """The image itself, or a smaller copy of the same shape with at most `most` pixels."""
    if most is None or image.width * image.height <= most:
        return image
    scale = (most / (image.width * image.height)) ** 0.5
    return image.resize((max(1, int(image.width * scale)), max(1, int(image.height * scale))), Image.Resampling.BICUBIC)


def _parts(text: str) -> list[dict[str, str]]:
    return [
        {"type": "text", "text": without_control_tokens(piece)} if kind == "text" else {"type": kind}
        for kind, piece in split_at_markers(text)
    ]
