"""Lists of answers to one prompt with ranks or ratings, and what pairs they give."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

from dt2it_pipeline.errors import RowError
from dt2it_pipeline.ingest.forms.chats import message
from dt2it_pipeline.ingest.forms.fields import Fields, is_blank, listed
from dt2it_pipeline.ingest.rows import ColumnError, as_number, checked_text
from dt2it_pipeline.storage.schemas import LIST_COLUMNS

_TEXT = ("response", "text", "content", "value", "output", "answer", "completion", "generation", "message")
RATING_NAMES = ("rating", "score", "overall_score", "overall_rating", "reward")
_RANK = ("rank", "ranking")
_MODEL = ("model", "model_name")
_MODELS = ("models", "generation_models", "model_names", "response_models")


class Answer(NamedTuple):
    """One answer of a list; `worth` is higher for a better one, None where the list does not say."""

    text: str
    worth: float | None
    model: str | None = None


class RankedPair(NamedTuple):
    """Two answers of a list, the better one first, by their places there; equal ones have no strength."""

    chosen: int
    rejected: int
    strength: float


def list_column(fields: Fields) -> str | None:
    """The column with a list of at least two answers; None where there is none."""
    column = fields.column("answers")
    if column is None:
        return None
    value = listed(fields.value(column))
    if isinstance(value, Mapping):  # `datasets` gives a sequence of objects as an object of lists
        return column if any(isinstance(entry, list) and len(entry) > 1 for entry in value.values()) else None
    return column if isinstance(value, list | tuple) and len(value) > 1 else None


def answers(fields: Fields, column: str) -> list[Answer]:
    """The answers of a list, with what their ranks or ratings say of each.

    Raises:
        RowError: the list, its ranks or its ratings are of another form, or differ in length.
        ColumnError: nothing says which answer is better.
    """
    entries = _entries(fields.value(column), column)
    texts = [_text(entry, f"column {column!r}, answer {number}") for number, entry in enumerate(entries)]
    models = _models(fields, entries)
    worths = _worths(fields, entries)
    return [Answer(text, worth, model) for text, worth, model in zip(texts, worths, models, strict=True)]


def pairs(rated: Sequence[Answer]) -> list[RankedPair]:
    """Every pair of answers whose worth is known; the strength is the difference, 0 for a tie.

    >>> pairs([Answer("a", 1.0), Answer("b", 3.0), Answer("c", None)])
    [RankedPair(chosen=1, rejected=0, strength=2.0)]
    """
    found = []
    for first, second in combinations(range(len(rated)), 2):
        one, other = rated[first].worth, rated[second].worth
        if one is None or other is None:
            continue
        better, worse = (first, second) if one >= other else (second, first)
        found.append(RankedPair(better, worse, round(abs(one - other), 6)))
    return found


def ranks(rated: Sequence[Answer]) -> list[float | None]:
    """The rank of every answer in its list, 1 for the best; equal answers share the mean of their ranks.

    >>> ranks([Answer("a", 1.0), Answer("b", 3.0), Answer("c", 1.0)])
    [2.5, 1.0, 2.5]
    """
    worths = [answer.worth for answer in rated]
    known = [worth for worth in worths if worth is not None]
    return [
        None if one is None else 1 + sum(other > one for other in known) + (known.count(one) - 1) / 2 for one in worths
    ]


def place_of(fields: Fields) -> tuple[str | None, tuple[float, float] | None]:
    """List and ranks of a pair in a file of pairs, as this project's exports write them; None where it has none.

    Raises RowError where a rank is no finite number.
    """
    name = fields.value(fields.plain(LIST_COLUMNS[0]))
    if is_blank(name):
        return None, None
    columns = [fields.plain(column) for column in LIST_COLUMNS[1:]]
    values = [fields.value(column) for column in columns]
    if any(map(is_blank, values)):
        return str(name), None
    ranks = [as_number(value, f"column {column!r}") for value, column in zip(values, columns, strict=True)]
    if not all(map(math.isfinite, ranks)):
        raise RowError("rank is not finite", f"columns {columns}: {values}"[:120])
    return str(name), (ranks[0], ranks[1])


def _entries(value: Any, column: str) -> list[Any]:
    value = listed(value)
    if isinstance(value, Mapping):
        lengths = {name: len(values) for name, values in value.items() if isinstance(values, list)}
        if len(set(lengths.values())) != 1:
            raise RowError("not a list of answers", f"column {column!r}: lists of different lengths {lengths}"[:160])
        count = next(iter(lengths.values()))
        value = [{name: value[name][place] for name in lengths} for place in range(count)]
    if not isinstance(value, list | tuple):
        raise RowError("not a list of answers", f"column {column!r}: {value!r}"[:120])
    return list(value)


def _text(entry: Any, where: str) -> str:
    if isinstance(entry, Mapping):
        return checked_text(next((entry[name] for name in _TEXT if entry.get(name) is not None), None), where)
    if isinstance(entry, list | tuple) and entry:  # a conversation, of which the last turn is the answer
        return message(entry[-1], where)
    return checked_text(entry, where)


def _models(fields: Fields, entries: Sequence[Any]) -> list[str | None]:
    """Who wrote each answer: as the answer itself says, else the list of models beside the answers."""
    own = [_of(entry, _MODEL) for entry in entries]
    value = next((listed(fields.value(found)) for name in _MODELS if (found := fields.plain(name))), None)
    beside = value if isinstance(value, list | tuple) and len(value) == len(entries) else [None] * len(entries)
    return [
        None if is_blank(one) and is_blank(other) else str(other if is_blank(one) else one)
        for one, other in zip(own, beside, strict=True)
    ]


def _of(entry: Any, names: Sequence[str]) -> Any:
    found = next((entry[n] for n in names if entry.get(n) is not None), None) if isinstance(entry, Mapping) else None
    return found


def _worths(fields: Fields, entries: Sequence[Any]) -> list[float | None]:
    """What a list says of its answers: the negative rank, or the rating. Raises RowError where these contradict."""
    found = []
    for field, sign in (("ranks", -1.0), ("ratings", 1.0)):
        column = fields.column(field)
        value = listed(fields.value(column))
        if isinstance(value, list | tuple):
            numbers = _numbers(value, len(entries), f"column {column!r}")
            found.append([sign * n if n is not None else None for n in numbers])
        if found and field in fields.row.columns:
            break
    if found:
        _require_one_order(found)
        return found[0]
    column = fields.column("order")
    if column is not None and ("order" in fields.row.columns or isinstance(listed(fields.value(column)), list)):
        return _by_order(listed(fields.value(column)), len(entries), column)
    for names, sign in ((_RANK, -1.0), (RATING_NAMES, 1.0)):
        inside = [_of(entry, names) for entry in entries]
        if any(value is not None for value in inside):
            found.append([sign * n if n is not None else None for n in _numbers(inside, len(entries), "an answer")])
    if found:
        _require_one_order(found)
        return found[0]
    by_aspect = [_mean_rating(entry) for entry in entries]
    if any(value is not None for value in by_aspect):
        return by_aspect
    if (column := fields.plain("ranking")) is not None:
        return _by_ranking(listed(fields.value(column)), len(entries), column)
    raise fields.missing("ranks", "ratings", "order", "verdict")


def _require_one_order(worths: Sequence[Sequence[float | None]]) -> None:
    """Raise RowError where ranks and ratings prefer different answers, so that 1 may be the worst rank."""
    if len(worths) < 2:
        return
    for first, second in combinations(range(len(worths[0])), 2):
        (a, b), (c, d) = ((each[first], each[second]) for each in worths)
        if None not in (a, b, c, d) and (a - b) * (c - d) < 0:  # type: ignore[operator]
            raise RowError(
                "ranks contradict ratings",
                f"of answers {first} and {second}, counted from 0: map `ranks` or `ratings` to the one that counts",
            )


def _by_ranking(value: Any, count: int, column: str) -> list[float | None]:
    """`ranking` may be each answer's rank, or the answers' order; only with two answers that is the same."""
    if count == 2 and isinstance(value, list | tuple):
        return [None if n is None else -n for n in _numbers(value, count, f"column {column!r}")]
    raise ColumnError(
        "ranking not understood",
        f"column {column!r} may hold each answer's rank or the answers' order: map `ranks` or `order` to it under "
        "`columns`",
    )


def _numbers(values: Sequence[Any], count: int, where: str) -> list[float | None]:
    if len(values) != count:
        raise RowError("ranks and answers differ", f"{where}: {len(values)} values, {count} answers")
    numbers: list[float | None] = []
    for value in values:
        text = value.strip() if isinstance(value, str) else value
        if text is None or (isinstance(text, str) and text.lower() in ("", "n/a", "na", "nan", "none", "null")):
            numbers.append(None)
            continue
        found = as_number(text, where)
        if math.isinf(found):
            raise RowError("rank or rating is not finite", f"{where}: {value!r}"[:120])
        numbers.append(None if math.isnan(found) else found)
    return numbers


def _by_order(value: Any, count: int, column: str) -> list[float | None]:
    """Worth of answers from their order, the best one's index first, counted from 0 or from 1."""
    if not isinstance(value, list | tuple):
        raise RowError("order is no list", f"column {column!r}: {value!r}"[:120])
    places = [as_number(place, f"column {column!r}") for place in value]
    first = min(places, default=0)
    if sorted(places) != [first + number for number in range(count)] or first not in (0, 1):
        raise RowError(
            "order is no list", f"column {column!r}: {value!r} does not name each of {count} answers once"[:160]
        )
    worths: list[float | None] = [None] * count
    for rank, place in enumerate(places):
        worths[int(place - first)] = -float(rank)
    return worths


def _mean_rating(entry: Any) -> float | None:
    """The mean of the ratings that an answer has by aspect, as UltraFeedback writes them; None where one is missing."""
    annotations = entry.get("annotations") if isinstance(entry, Mapping) else None
    if not isinstance(annotations, Mapping) or not annotations:
        return None
    found = [
        _of(aspect, ("Rating", "rating", "score")) if isinstance(aspect, Mapping) else aspect
        for aspect in annotations.values()
    ]
    try:
        values = [as_number(value, "") for value in found]
    except RowError:
        return None
    return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else None
