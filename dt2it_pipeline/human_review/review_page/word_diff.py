"""The words in which two answers differ."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

_WORD = re.compile(r"\s+|\w+|[^\w\s]")
_MOST = 4000  # words; longer answers are compared at their start and their end only

Parts = list[tuple[bool, str]]


def word_diff(first: str, second: str) -> tuple[Parts, Parts]:
    """Both texts in pieces, each with whether the other text lacks it. The pieces of a text add up to it.

    >>> word_diff("It is red.", "It is dark blue.")
    ([(False, 'It is '), (True, 'red'), (False, '.')], [(False, 'It is '), (True, 'dark blue'), (False, '.')])
    """
    left, right = _WORD.findall(first), _WORD.findall(second)
    if max(len(left), len(right)) > _MOST:
        return _ends(left, right)
    found: tuple[Parts, Parts] = ([], [])
    for kind, a, b, c, d in SequenceMatcher(None, left, right).get_opcodes():
        _add(found[0], kind != "equal", "".join(left[a:b]))
        _add(found[1], kind != "equal", "".join(right[c:d]))
    return found


def _ends(left: list[str], right: list[str]) -> tuple[Parts, Parts]:
    """What both begin and end with is the same; all between differs."""
    least = min(len(left), len(right))
    start = next((n for n in range(least) if left[n] != right[n]), least)
    end = next((n for n in range(least - start) if left[-1 - n] != right[-1 - n]), least - start)
    found: tuple[Parts, Parts] = ([], [])
    for parts, words in zip(found, (left, right), strict=True):
        _add(parts, False, "".join(words[:start]))
        _add(parts, True, "".join(words[start : len(words) - end]))
        _add(parts, False, "".join(words[len(words) - end :]))
    return found


def _add(parts: Parts, differs: bool, text: str) -> None:
    if not text:
        return
    if parts and parts[-1][0] == differs:
        text = parts.pop()[1] + text
    parts.append((differs, text))
