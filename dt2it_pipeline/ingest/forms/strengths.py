"""How much better one answer is than another, as a row's columns say it, and whether they contradict its sides."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dt2it_pipeline.errors import RowError
from dt2it_pipeline.ingest.forms.answer_lists import RATING_NAMES
from dt2it_pipeline.ingest.forms.fields import RATINGS, Fields, is_blank, listed
from dt2it_pipeline.ingest.forms.sides import Sides, score_columns
from dt2it_pipeline.ingest.forms.verdicts import FIRST, VerdictError
from dt2it_pipeline.ingest.rows import TIE, Quarantined, as_number


def contradicted(fields: Fields, couple: tuple[str, str], number: int, strength: float | None) -> Quarantined | None:
    """What is wrong with a pair whose ratings or strength say that its sides are equal, or the other way round."""
    rated = _differences(fields, number + 1, couple)
    difference = rated[number] if number < len(rated) else None
    row_id = fields.row.row_id
    if difference == 0:
        return Quarantined(row_id, TIE, f"{couple[0]} and {couple[1]} have equal ratings")
    if difference is not None and difference < 0:
        return Quarantined(row_id, "ratings contradict the sides", f"they differ by {difference:g}")
    if strength is not None and strength < 0:
        return Quarantined(row_id, "strength contradicts the sides", f"it is {strength:g}")
    return None


def require_scores_agree(fields: Fields, sides: Sides, better: str) -> None:
    """Raise VerdictError where the numbers beside two answers prefer another one than the verdict on them does.

    Equal numbers contradict nothing: a scale may be coarser than a verdict. Where the manifest maps the verdict, it
    alone counts.
    """
    if "verdict" in fields.row.columns or (columns := score_columns(fields, sides)) is None:
        return
    try:
        difference = score_difference(fields, sides)
    except RowError:  # a side has none
        return
    if difference and (difference > 0) != (better == FIRST):
        raise VerdictError(
            "verdicts differ",
            f"the verdict prefers {(sides.first if better == FIRST else sides.second)!r}, columns {columns[0]!r} and "
            f"{columns[1]!r} the other answer, by {abs(difference):g}: take them out, or map `verdict` under `columns` "
            "in the manifest, which then counts alone, as where lower scores are better",
        )


def strengths(fields: Fields, count: int, couple: tuple[str, str] | None = None) -> list[float | None]:
    """How much better, for each of the rejected answers; the difference of ratings where these are given.

    `couple`: columns of the better and the worse answer, which may be objects that hold their ratings.
    """
    column = fields.column("strength")
    value = fields.value(column)
    strength = None if is_blank(value) else _finite(value, f"column {column!r}")
    if strength is not None and not math.isnan(strength):
        # TRL's trainers take no null for a margin; exports write 0 for what is not known.
        return [None if strength == 0 and "strength" not in fields.row.columns else strength] * count
    return _differences(fields, count, couple)


def score_difference(fields: Fields, sides: Sides) -> float | None:
    """The first side's score less the second's, in a row without a verdict; None where its columns are not numbers.

    Raises RowError where one side has no score.
    """
    columns = score_columns(fields, sides)
    if columns is None:
        return None
    values = [fields.value(column) for column in columns]
    for column, value in zip(columns, values, strict=True):
        if is_blank(value):
            raise RowError("no verdict", f"column {column!r} is empty, so that the answers' scores cannot be compared")
    try:
        first, second = (as_number(value, "") for value in values)
    except RowError:
        return None
    difference = first - second
    return round(difference, 6) or difference if math.isfinite(difference) else None


def _finite(value: Any, where: str) -> float:
    """A number that may be NaN, for one that is not known. Raises RowError for any other, or an infinite one."""
    found = as_number(value, where)
    if math.isinf(found):
        raise RowError("rank or rating is not finite", f"{where}: {value!r}"[:120])
    return found


def _differences(fields: Fields, count: int, couple: tuple[str, str] | None) -> list[float | None]:
    """The better answer's rating less that of each of the worse ones; None where one has none."""
    for columns in fields.couples(RATINGS):
        better, worse = (listed(fields.value(column)) for column in columns)
        each = worse if isinstance(worse, list | tuple) else [worse] * count
        if is_blank(better) or len(each) < count or any(map(is_blank, each)):
            break
        top = _finite(better, f"column {columns[0]!r}")
        return [round(top - _finite(one, f"column {columns[1]!r}"), 6) for one in each]
    if couple is not None and count == 1:
        inside = [_rating_of(fields.value(column)) for column in couple]
        if not any(map(is_blank, inside)):
            one, other = (_finite(value, f"column {column!r}") for value, column in zip(inside, couple, strict=True))
            return [None if math.isnan(one - other) else round(one - other, 6)]
    return [None] * count


def _rating_of(answer: Any) -> Any:
    """The rating inside an answer that is an object; None where it has none."""
    if not isinstance(answer, Mapping):
        return None
    found = next((answer[name] for name in RATING_NAMES if answer.get(name) is not None), None)
    return found if isinstance(found, int | float) and not isinstance(found, bool) else None
