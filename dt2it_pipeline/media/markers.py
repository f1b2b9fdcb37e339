r"""Markers in texts: `<image>` and `<video>` stand where a medium of the prompt belongs, in the order of its media.

A text that is about the characters `<image>` writes `\<image>`: models, people and exports see it without the
backslash, and no medium is looked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

MARKER = re.compile(r"(?<!\\)<(image|video)>")
IMAGE, VIDEO = "<image>", "<video>"
_ESCAPED = re.compile(r"\\(<(?:image|video)>)")


def marker_kinds(text: str) -> list[str]:
    """The kinds of the markers in a text, `image` or `video`, in order."""
    return MARKER.findall(text) if "<" in text else []


def user_marker_kinds(turns: Iterable[Mapping[str, Any]]) -> list[str]:
    """The kinds of the markers in the user turns of a conversation; in other turns a marker is text."""
    return [kind for turn in turns if turn["role"] == "user" for kind in marker_kinds(turn["text"])]


def with_media_first(turns: Iterable[Mapping[str, Any]], kinds: Iterable[str]) -> list[dict[str, Any]]:
    r"""Copies of the turns, with a marker for each medium at the beginning of the first user turn, each on its line.

    Where a conversation has media and no marker, they belong before what is said of them. Without a user turn the first
    turn has the markers.

    >>> with_media_first([{"role": "user", "text": "What is it?"}], ["image"])
    [{'role': 'user', 'text': '<image>\nWhat is it?'}]
    """
    copies = [dict(turn) for turn in turns]
    first = next((turn for turn in copies if turn["role"] == "user"), copies[0] if copies else None)
    if first is not None:
        first["text"] = "".join(f"<{kind}>\n" for kind in kinds) + first["text"]
    return copies


def split_at_markers(text: str) -> list[tuple[str, str]]:
    r"""A text as (kind, text) pieces in order; a marker's kind is `image` or `video`, all else is `text`, never empty.

    >>> split_at_markers("Is <image> like <image>?")
    [('text', 'Is '), ('image', '<image>'), ('text', ' like '), ('image', '<image>'), ('text', '?')]
    >>> split_at_markers(r"What does \<image> mean?")
    [('text', 'What does <image> mean?')]
    """
    pieces = []
    for number, piece in enumerate(MARKER.split(text)):  # text, kind, text, kind, ...
        if number % 2:
            pieces.append((piece, f"<{piece}>"))
        elif piece:
            pieces.append(("text", _unescaped(piece)))
    return pieces


def without_markers(text: str, instead: str = "") -> str:
    """The text with `instead` in the place of every marker."""
    if "\\<" not in text and VIDEO not in text:
        return text.replace(IMAGE, instead)
    return _unescaped(MARKER.sub(lambda _: instead, text))


def escaped(text: str) -> str:
    r"""The text with its markers made text.

    >>> escaped("an <image> tag")
    'an \\<image> tag'
    """
    return MARKER.sub(r"\\<\1>", text)


def _unescaped(text: str) -> str:
    return _ESCAPED.sub(r"\1", text) if "\\<" in text else text
