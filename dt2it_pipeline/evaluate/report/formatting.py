"""Numbers and texts as the report and the Markdown tables print them."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from dt2it_pipeline.media.markers import MARKER

_MAX_TEXT = 700  # characters of a question or response
_NUMBERS = re.compile(r"(?: to |[\W\d_])*")  # a cell without letters
_JOINERS = "\u200c\u200d"  # emoji and some scripts are spelt with them


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table with aligned columns: numbers to the right, the first column and texts to the left.

    Cells are single lines; characters that Markdown or HTML would read as markup are escaped.

    >>> print(markdown_table(["set", "pairs", "why"], [["a", "3", "tie"], ["b", "40", "too long"]]))
    | set | pairs | why      |
    | --- | ----: | -------- |
    | a   |     3 | tie      |
    | b   |    40 | too long |
    """
    lines = [[markdown_text(cell) for cell in row] for row in (heads, *rows)]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(heads))]
    right = [i > 0 and all(_NUMBERS.fullmatch(line[i]) for line in lines[1:]) for i in range(len(heads))]

    def join(line: list[str]) -> str:
        cells = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)]
        return "| " + " | ".join(cells) + " |"

    rule = ["-" * (w - 1) + ":" if r else "-" * w for w, r in zip(widths, right, strict=True)]
    return "\n".join([join(lines[0]), join(rule), *(join(line) for line in lines[1:])])


def clean(text: str) -> str:
    """Text without control characters, lone surrogates and direction overrides, which escaping lets through."""
    kept = (
        c if c in "\n\t" + _JOINERS or unicodedata.category(c) not in ("Cc", "Cf", "Cs") else "\ufffd" for c in text
    )
    return "".join(kept)


def excerpt(text: str) -> str:
    """The beginning of a long text, with media markers in words."""
    text = re.sub(MARKER.pattern + r"\s*", r"[\1] ", text).strip()
    return text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT].rstrip() + " …"


def brief(text: str, most: int = 160) -> str:
    """The first `most` characters of a text on one line, for a cell of a table.

    >>> brief("<image> What  is   it?"), brief("a long answer", 6)
    ('[image] What is it?', 'a long …')
    """
    text = " ".join(excerpt(text).split())
    return text if len(text) <= most else text[:most].rstrip() + " …"


def percent(share: float) -> str:
    """A share as percent with one decimal, or a dash."""
    return "–" if math.isnan(share) else f"{100 * share:.1f}"


def number(value: int) -> str:
    """A count with thousands separators."""
    return f"{value:,}"


def points(share: float) -> str:
    """A difference of two shares in percentage points with its sign, +5.2 or −6.0; 0.0 has none."""
    shown = f"{100 * abs(share):.1f}"
    return shown if float(shown) == 0 else ("+" if share > 0 else "−") + shown


def p_value(p: float) -> str:
    """A p-value to three decimals, or that it is at most the smallest of them."""
    return "≤0.001" if p < 0.001 else f"{p:.3f}"


def strength_unit(label: str, policy: str | None = None, curated: bool = True) -> str:
    """Unit of a pair's strength, which depends on who gave it.

    Args:
        label: of the pair.
        policy: curation policy of the recipe, None where it is not known.
        curated: whether voters have judged the pair; the strength of others is their source's own.
    """
    if label == "constructed":
        return "judge's points (0 to 10)"
    if label == "reformulated" or not (curated or label == "annotated"):
        return "in the source's own unit"
    paper = "judge votes ahead (of 2)" if label == "annotated" else "score difference (reward units)"
    units = {"joint": "log-odds of a right label (nats)", "paper": paper}
    return units.get(policy or "", f"log-odds or {paper}, by policy")


def duration(seconds: float) -> str:
    """Wall time: 8.2 s, 3 min 05 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def markdown_text(value: Any) -> str:
    """A value as one line of Markdown, with what Markdown or HTML would read as markup escaped."""
    text = " ".join(clean(str(value)).split())
    for character, instead in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), ("`", "\\`"), ("[", "\\["), ("*", "\\*")):
        text = text.replace(character, instead)
    return text
