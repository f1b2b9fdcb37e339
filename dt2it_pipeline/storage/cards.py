"""Texts of data in cards (README.md), where a page that renders Markdown must find neither markup nor HTML in them."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence


def plain_markdown(text: str) -> str:
    r"""A text as Markdown on one line: HTML, links and images in it are shown, not rendered. Code spans stay.

    >>> plain_markdown("<img src=x> [here](https://example.org)")
    '&lt;img src=x&gt; \\[here\\](https://example.org)'
    """
    shown = re.sub(r"([\\\[\]])", r"\\\1", html.escape(text, quote=False))
    return " ".join(shown.splitlines())


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    r"""A table whose cells are plain text.

    >>> print(markdown_table(("name",), [("a|b",)]), end="")
    | name |
    | --- |
    | a\|b |
    """
    lines = [head, ["---" for _ in head], *rows]
    cells = (" | ".join(plain_markdown(str(cell)).replace("|", "\\|") for cell in line) for line in lines)
    return "".join(f"| {line} |\n" for line in cells)
