"""Codes and names in place of answers: which of several answers they mean, and whether they contradict each other."""

from __future__ import annotations

import functools
import re
from typing import Any

from dt2it_pipeline.errors import RowError
from dt2it_pipeline.ingest.forms import answer_lists
from dt2it_pipeline.ingest.forms.fields import Fields, is_blank, listed, plain_name
from dt2it_pipeline.ingest.forms.sides import CODE, STEMS, Sides, is_name_of_side, meaning_of, neutral_sides, text_of
from dt2it_pipeline.ingest.forms.verdicts import FIRST, SECOND, letter_of, number_of, value_text
from dt2it_pipeline.ingest.rows import ColumnError

_LOSERS = ("loser", "worse", "rejected", "worse_response", "worse_answer", "rejected_response", "losing_response")
_FURTHER = {"a": "cdefgh", "1": "3456789", "0": "23456789", "first": ("third", "fourth"), "left": ()}
_FORMS = ("option_", "text_", "side_", "message")  # options of the question, or texts that it is about


def further(fields: Fields, sides: Sides) -> list[str]:
    """The columns of a third and further answers, which are named as the two sides are."""
    there = fields.present(_further_names(plain_name(sides.first), sides.tokens))
    return [column for _, column in there if not is_blank(fields.value(column))]


def require_two(fields: Fields, sides: Sides) -> None:
    """Raise ColumnError where there are further answers beside two, so that a verdict says nothing of these."""
    if {"first", "second"} & set(fields.row.columns):
        return
    if more := further(fields, sides):
        raise ColumnError(
            "more than two answers",
            f"{', '.join(map(repr, (sides.first, sides.second, *more)))}: write them into a list `responses` with "
            "`ranks`, or map two to `first` and `second`",
        )


def require_other_loser(fields: Fields, sides: Sides, better: str) -> None:
    """Raise RowError where a column of the worse side names the better one, `first` or `second`, or neither."""
    for _, column in fields.present(_LOSERS):
        value = fields.value(column)
        if column in (sides.first, sides.second) or not isinstance(value, str | int | float):
            continue
        said = meaning_of(fields, sides, value_text(value))
        if said is not None and {said, better} != {FIRST, SECOND}:
            raise RowError("verdicts differ", f"column {column!r} is {value!r}, which is not the worse side")


def resolved(fields: Fields, couple: tuple[str, str]) -> tuple[Any, Any]:
    """The better and the worse answer: what two columns hold, or those of more than two answers that they name.

    Letters name them (A is the first). Where the answers are options that the question has, letters are answers.

    Raises RowError where they may name them otherwise: by numbers, which count from 0 or from 1, or by unknown names.
    """
    values = fields.value(couple[0]), fields.value(couple[1])
    one, other = (value_text(value) if isinstance(value, str | int | float) else "" for value in values)
    if not (0 < len(one) <= CODE and 0 < len(other) <= CODE):
        return values
    answers = _answers(fields, couple)
    texts = [text_of(answer).strip() for answer in answers]
    if len(answers) < 3 or one in texts or other in texts:
        return values
    question = fields.value(fields.column("question"))
    if isinstance(question, str) and all(text in question for text in texts):
        return values
    places = [letter_of(one), letter_of(other)]
    if None not in places and places[0] != places[1]:
        found = [answers[place] if place is not None and place < len(answers) else None for place in places]
        if None not in found:
            return found[0], found[1]
    numbers = [number_of(text) for text in (one, other)]
    names = {*map(plain_name, couple)} <= {"winner", "loser", "better", "worse"}
    if names or all(number is not None and re.fullmatch(r"\d", number) for number in numbers):
        raise RowError(
            "codes for answers",
            f"columns {couple[0]!r} and {couple[1]!r} are {one!r} and {other!r}, beside {len(answers)} answers: write "
            "the answers themselves there, or letters (A is the first)",
        )
    return values


def _answers(fields: Fields, couple: tuple[str, str]) -> list[Any]:
    """All answers that a row has beside a couple of columns: in columns of neutral names, or in a list."""
    sides = neutral_sides(fields)
    if sides is not None and not is_name_of_side(sides.first, _FORMS):
        columns = [sides.first, sides.second, *further(fields, sides)]
        return [] if {*columns} & {*couple} else [fields.value(column) for column in columns]
    column = answer_lists.list_column(fields)
    found = listed(fields.value(column)) if column not in (None, *couple) else None
    return list(found) if isinstance(found, list | tuple) else []


@functools.lru_cache(maxsize=256)
def _further_names(first: str, tokens: tuple[str, str]) -> tuple[str, ...]:
    stem = next((each for each in STEMS if each.format(tokens[0]) == first), None)
    return () if stem is None else tuple(stem.format(token) for token in _FURTHER.get(tokens[0], ()))
