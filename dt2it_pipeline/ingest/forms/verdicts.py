"""What a verdict column says of two answers: the first is better, the second, or neither.

A value is understood where it can mean one thing only. Words are, in most spellings. Numbers, and words that hold one,
are where the first rows have both sides' numbers and nothing else; scales, and 0 and 1 for sides that are not numbered
so, are left to the manifest, since a wrong guess would turn half of the labels.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dt2it_pipeline.errors import RowError
from dt2it_pipeline.ingest.rows import ColumnError, SourceError

FIRST, SECOND, TIE = "first", "second", "tie"
MEANINGS = (FIRST, SECOND, TIE)
_NAMED = 8  # values of a column that an error names
_WHO = r"(?:the)?(?:model|response|answer|output|assistant|option|completion|candidate|conversation|reply|side|text)?"
_VOTE = r"(?:vote|wins?|won|(?:is|was)?(?:much|slightly|significantly)?better|(?:is|was)?(?:preferred|chosen|best))?"
_WORDS = (
    (FIRST, re.compile(rf"{_WHO}(?:a|first|left){_VOTE}")),
    (SECOND, re.compile(rf"{_WHO}(?:b|second|right){_VOTE}")),
    (
        TIE,
        re.compile(
            r"(?:its?|isa|a)?(?:tie|tied|draw|equal|equally|equallygood|equallybad|same|both|neither|none|bothgood|bothbad"
            r"|bothequal|bothequallygood|bothequallybad|tiebothbad|tiebothgood|bothsame|nopreference|nodifference|unsure)"
            r"(?:vote)?"
        ),
    ),
)
_NUMBERED = re.compile(rf"{_WHO}(\d+){_VOTE}")
_LETTER = re.compile(rf"{_WHO}([a-h])")
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
    _numbers: set[str] = field(default_factory=set)
    _by_number: bool = False  # whether a number has been understood

    def look(self, values: Iterable[Any]) -> None:
        """Note the values of some rows: what 1 means depends on what else there is."""
        for value in values:
            if text := value_text(value):
                self.seen[text] += 1
                self._numbers |= {number for number in (number_of(text),) if number}

    def meaning(
        self, value: Any, sides: Mapping[str, str], tokens: tuple[str, str], texts: Mapping[str, str] | None = None
    ) -> str:
        """`first`, `second` or `tie`.

        Args:
            value: of the column, in one row.
            sides: further names of the sides in this row, in lower case -> `first` or `second`: their columns' names,
                the models that wrote them.
            tokens: what tells the sides' columns apart, such as 1 and 2.
            texts: the answers in this row, in lower case -> `first` or `second`, which the column may repeat. A number
                may be the place of a side as well as an answer; so one counts as an answer only where the column has
                words, too, and names no other side.

        Raises:
            RowError: the row has no verdict.
            VerdictError: it has one that is not understood.
            SourceError: it shows that numbers which were understood before mean something else.
        """
        text = value_text(value)
        if not text:
            raise RowError("no verdict", f"column {self.column!r} is empty")
        found = {self._mapped(text)} - {None} or {sides.get(text.lower()), self._word(text, tokens)} - {None}
        said = None if self._mapped(text) else (texts or {}).get(text.lower())
        if said is not None and not (_is_number(text) and all(map(_is_number, self.seen))):
            found |= {said, None if self.meanings else self._of_number(text, tokens, later=False)} - {None}
        if not found and not self.meanings:
            found = {self._of_number(text, tokens)} - {None}
        if len(found) != 1:
            raise VerdictError("verdict not understood", self._fault(text))
        return str(found.pop())

    def _mapped(self, text: str) -> str | None:
        """What the manifest says of a value: written so, else in other letters or as another spelling of the number."""
        if text in self.meanings or not self.meanings:
            return self.meanings.get(text)
        alike = {meaning for each, meaning in self.meanings.items() if _alike(each, text)}
        return alike.pop() if len(alike) == 1 else None

    def strength(self, value: Any) -> float | None:
        """How far apart the sides are, where the manifest maps a scale with 0 in its middle; None elsewhere.

        >>> scale = Verdicts("preference", {"-2": "first", "-1": "first", "0": "tie", "1": "second", "2": "second"})
        >>> scale.strength(-2), scale.strength(1), Verdicts("preference", {"1": "first", "2": "second"}).strength(2)
        (2.0, 1.0, None)
        """
        meant = {float(text): meaning for text, meaning in self.meanings.items() if _is_number(text)}
        if not _is_number(text := value_text(value)):
            return None
        number = float(text)
        sides = [{meaning for at, meaning in meant.items() if sign * at > 0} for sign in (1, -1)]
        middle = {meaning for at, meaning in meant.items() if at == 0} - {TIE}
        scale = len(sides[0]) == len(sides[1]) == 1 and sides[0] | sides[1] == {FIRST, SECOND} and not middle
        return abs(number) if scale else None

    def _word(self, text: str, tokens: tuple[str, str]) -> str | None:
        """What a word says; `right` may also mean that something is right."""
        found = word_meaning(text)
        if text.lower() in ("left", "right") and tokens != ("left", "right") and not self._has_word("left"):
            return None
        return found

    def _has_word(self, word: str) -> bool:
        return any(value.lower() == word for value in self.seen)

    def _of_number(self, text: str, tokens: tuple[str, str], later: bool = True) -> str | None:
        """What a number says, or a word that holds one, where the first rows leave one reading.

        A column of strengths has no code: 1 and 2 are how much better the one side is there. `later`: whether a number
        that the first rows did not have ends the reading.
        """
        number = number_of(text)
        if number is None or "strength" in self.column.lower():
            return None
        indexed = tokens == ("0", "1") or re.search(r"(?:^|_)(?:id|idx|index)$", self.column.lower())
        coding = {"1": FIRST, "2": SECOND} if self._numbers == {"1", "2"} and tokens != ("0", "1") else {}
        if self._numbers == {"0", "1"} and indexed and tokens != ("1", "2"):
            coding = {"0": FIRST, "1": SECOND}
        if later and coding and number not in coding:
            raise SourceError(
                f"column {self.column!r} has {text!r} behind rows in which {' and '.join(sorted(coding))} were taken "
                f"for the sides: {self._advice(text)}"
            )
        return coding.get(number)

    def _fault(self, text: str) -> str:
        there = ", ".join(f"{value} ({times})" for value, times in self.seen.most_common(_NAMED)) or text
        return f"column {self.column!r} is {text!r}, and the first rows have {there}: {self._advice(text)}"

    def _advice(self, text: str) -> str:
        return (
            "say what each value means, under `verdict` in the manifest (read_preferences: verdict={...}), or with "
            f"--verdict '{text}=MEANING' for this one and each other; meanings are {', '.join(MEANINGS)}"
        )


def value_text(value: Any) -> str:
    """A value as the text under which a mapping names it: 1, 1.0 and "1" are `1`, true and "True" are `true`.

    >>> [value_text(value) for value in (1, 1.0, " A ", True, "False", None)]
    ['1', '1', 'A', 'true', 'false', '']
    """
    if value is None or value != value:  # NaN
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    text = str(value).strip()
    if text.lower() in ("true", "false"):
        return text.lower()
    return text[:-2] if re.fullmatch(r"-?\d+\.0", text) else text


def word_meaning(text: str) -> str | None:
    """What a verdict in words says, whoever's annotation tool wrote it; None where it says nothing for certain.

    >>> [word_meaning(text) for text in ("A", "[[B]]", "model_a", "rightvote", "tie (bothbad)", "A>>B")]
    ['first', 'second', 'first', 'second', 'tie', 'first']
    >>> [word_meaning(text) for text in ("1", "Response 2", "C", "good")]
    [None, None, None, None]
    """
    plain = _plain(text)
    for meaning, pattern in _WORDS:
        if pattern.fullmatch(plain):
            return meaning
    if compared := _COMPARED.fullmatch(text):
        one, other = word_meaning(f"side {compared['one']}"), word_meaning(f"side {compared['other']}")
        if {one, other} == {FIRST, SECOND}:
            sign = compared["sign"]
            return TIE if sign[0] not in "<>" else one if sign[0] == ">" else other
    return None


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?\d+(?:\.\d+)?", text) is not None


def _alike(one: str, other: str) -> bool:
    """Whether two values are one, spelled in other letters or as another number."""
    if _is_number(one) and _is_number(other):
        return float(one) == float(other)
    return one.casefold() == other.casefold()


def number_of(text: str) -> str | None:
    """The number that a value is, or that a word holds: `2` of 2 and of Response 2; None for another value."""
    if re.fullmatch(r"-?\d+(?:\.\d+)?", text):
        return text
    found = _NUMBERED.fullmatch(_plain(text))
    return found[1] if found else None


def letter_of(text: str) -> int | None:
    """The place that a letter names, 0 for A, or a word that holds one; None for another value.

    >>> letter_of("C"), letter_of("Response B"), letter_of("cat")
    (2, 1, None)
    """
    found = _LETTER.fullmatch(_plain(text))
    return "abcdefgh".index(found[1]) if found else None


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())
