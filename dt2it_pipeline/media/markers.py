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
    return MARKER.findall(text)


def user_marker_kinds(turns: Iterable[Mapping[str, Any]]) -> list[str]:
    """The kinds of the markers in the user turns of a conversation; in other turns a marker is text."""
    return [kind for turn in turns if turn["role"] == "user" for kind in marker_kinds(turn["text"])]


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
    return _unescaped(MARKER.sub(lambda _: instead, text))


def escaped(text: str) -> str:
    r"""The text with its markers made text.

    >>> escaped("an <image> tag")
    'an \\<image> tag'
    """
    return MARKER.sub(r"\\<\1>", text)


def _unescaped(text: str) -> str:
    return _ESCAPED.sub(r"\1", text) if "\\<" in text else text
