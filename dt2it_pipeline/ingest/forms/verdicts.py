"""What a verdict column says of two answers: the first is better, the second, or neither.

A value is understood where it can mean one thing only; the numbers 0 and 1 cannot, and are left to the manifest.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dt2it_pipeline.errors import RowError
from dt2it_pipeline.ingest.rows import ColumnError

FIRST, SECOND, TIE = "first", "second", "tie"
MEANINGS = (FIRST, SECOND, TIE)
_NAMED = 8  # values of a column that an error names
_WHO = r"(?:the)?(?:model|response|answer|output|assistant|option|completion|candidate|conversation|reply|side|text)?"
_VOTE = r"(?:vote|wins?|won|(?:is|was)?(?:much|slightly|significantly)?better|(?:is|was)?(?:preferred|chosen|best))?"
_WORDS = (
    (FIRST, re.compile(rf"{_WHO}(?:a|first|left){_VOTE}|{_WHO}1{_VOTE}(?<!^1)")),
    (SECOND, re.compile(rf"{_WHO}(?:b|second|right){_VOTE}|{_WHO}2{_VOTE}(?<!^2)")),
    (
        TIE,
        re.compile(
            r"(?:its?|isa|a)?(?:tie|tied|draw|equal|equally|equallygood|equallybad|same|both|neither|none|bothgood|bothbad"
            r"|bothequal|bothequallygood|bothequallybad|tiebothbad|tiebothgood|bothsame|nopreference|nodifference|unsure)"
            r"(?:vote)?"
        ),
    ),
)
_COMPARED = re.compile(r"\W*(?P<one>[A-Za-z0-9_ ]+?)\s*(?P<sign>[<>]{1,3}|=|≈|~)\s*(?P<other>[A-Za-z0-9_ ]+?)\W*")


class VerdictError(ColumnError):
    """A verdict column has a value that names no side; where all rows have, the source cannot be read."""


@dataclass
class Verdicts:
    """How the values of one column are understood.

    Attributes:
        column: the column.
        meanings: value as text -> first, second or tie, as the manifest says it.
        seen: values of the first rows, as text -> times.
    """

    column: str
    meanings: Mapping[str, str] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)

    def look(self, values: Iterable[Any]) -> None:
        """Note the values of some rows: whether 1 means the first side depends on what else there is."""
        self.seen.update(value_text(value) for value in values if value not in (None, ""))

    def meaning(self, value: Any, sides: Mapping[str, str], tokens: tuple[str, str]) -> str:
        """`first`, `second` or `tie`.

        Args:
            value: of the column, in one row.
            sides: further names of the sides in this row, in lower case -> `first` or `second`: their columns' names
                and the models that wrote them.
            tokens: what tells the sides' columns apart, such as 1 and 2.

        Raises:
            RowError: the row has no verdict.
            VerdictError: it has one that is not understood.
        """
        text = value_text(value)
        if not text:
            raise RowError("no verdict", f"column {self.column!r} is empty")
        found = self.meanings.get(text) or sides.get(text.lower()) or word_meaning(text) or self._number(text, tokens)
        if found is None:
            raise VerdictError("verdict not understood", self._fault(text))
        return found

    def _number(self, text: str, tokens: tuple[str, str]) -> str | None:
        """What a number says, where the first rows leave one reading.

        1 and 2 are the sides where both occur, and 0 does not or the sides are numbered so; 0 and 1 are the sides where
        these are numbered so, or in a column of ids, and 2 does not occur.
        """
        numbers = {value for value in self.seen if re.fullmatch(r"-?\d+", value)} | {text}
        if {"1", "2"} <= numbers and ("0" not in numbers or tokens == ("1", "2")):
            return {"1": FIRST, "2": SECOND}.get(text)
        indexed = tokens == ("0", "1") or re.search(r"(?:^|_)(?:id|idx|index)$", self.column.lower())
        if indexed and "2" not in numbers:
            return {"0": FIRST, "1": SECOND}.get(text)
        return None

    def _fault(self, text: str) -> str:
        there = ", ".join(f"{value} ({times})" for value, times in self.seen.most_common(_NAMED)) or text
        return (
            f"column {self.column!r} is {text!r}, and the first rows have {there}: say what each means under `verdict`,"
            f" for instance `verdict: {{{text!r}: first}}`; meanings are {', '.join(MEANINGS)}"
        )


def value_text(value: Any) -> str:
    """A value as the text under which a mapping names it: 1, 1.0 and "1" are `1`, true is `true`.

    >>> [value_text(value) for value in (1, 1.0, " A ", True, None)]
    ['1', '1', 'A', 'true', '']
    """
    if value is None or value != value:  # NaN
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    text = str(value).strip()
    return text[:-2] if re.fullmatch(r"-?\d+\.0", text) else text


def word_meaning(text: str) -> str | None:
    """What a verdict in words says, whoever's annotation tool wrote it; None where it says nothing for certain.

    >>> [word_meaning(text) for text in ("A", "[[B]]", "model_a", "rightvote", "Response 2", "tie (bothbad)", "A>>B")]
    ['first', 'second', 'first', 'second', 'second', 'tie', 'first']
    >>> [word_meaning(text) for text in ("1", "0", "C", "good")]
    [None, None, None, None]
    """
    plain = re.sub(r"[^a-z0-9]", "", text.lower())
    for meaning, pattern in _WORDS:
        if pattern.fullmatch(plain):
            return meaning
    if compared := _COMPARED.fullmatch(text):
        one, other = word_meaning(f"side {compared['one']}"), word_meaning(f"side {compared['other']}")
        if {one, other} == {FIRST, SECOND}:
            sign = compared["sign"]
            return TIE if sign[0] not in "<>" else one if sign[0] == ">" else other
    return None
