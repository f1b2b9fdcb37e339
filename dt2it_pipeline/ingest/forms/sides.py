"""Two answers under neutral names, and the column that says which is better."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dt2it_pipeline.errors import RowError
from dt2it_pipeline.ingest.forms.fields import NAMES, Fields, plain_name
from dt2it_pipeline.ingest.forms.verdicts import FIRST, SECOND, TIE, VerdictError, Verdicts, value_text
from dt2it_pipeline.ingest.rows import Row

# What stands before or behind the token that tells the sides apart, the likeliest first.
_STEMS = (
    "response", "answer", "output", "completion", "generation", "reply", "candidate", "model_output", "model_response",
    "generated_text", "text", "message", "messages", "conversation", "assistant", "continuation", "option", "side",
    "summary",
)  # fmt: skip
_TOKENS = (("a", "b"), ("1", "2"), ("0", "1"), ("left", "right"), ("first", "second"))
_CODE = 80  # characters of a text that may still name a side
_ONE_HOT = ("winner", "preferred", "better", "preference")


@dataclass(frozen=True)
class Sides:
    """Columns of two answers of equal standing, and of the verdict on them.

    Attributes:
        first: column of the first answer.
        second: column of the second.
        tokens: what tells their names apart.
    """

    first: str
    second: str
    tokens: tuple[str, str] = ("a", "b")


def neutral_sides(fields: Fields) -> Sides | None:
    """The two sides of a row under neutral names, or as the manifest maps them; None where there are none."""
    mapped = fields.row.columns
    if "first" in mapped or "second" in mapped:
        first, second = fields.column("first"), fields.column("second")
        if first is None or second is None:
            raise fields.missing("first" if first is None else "second")
        return Sides(first, second)
    return _sides(tuple(fields.names), tuple(fields.names.values()))


def is_neutral(column: str) -> bool:
    """Whether a column's name says that it is one of two sides, and not which is better."""
    plain = plain_name(column)
    return any(_named(stem, token, plain) for stem in _STEMS for tokens in _TOKENS for token in tokens)


@functools.lru_cache(maxsize=1024)
def _sides(plain: tuple[str, ...], columns: tuple[str, ...]) -> Sides | None:
    names = dict(zip(plain, columns, strict=True))
    for stem in _STEMS:
        for tokens in _TOKENS:
            found = [next((names[n] for n in plain if _named(stem, token, n)), None) for token in tokens]
            if found[0] is not None and found[1] is not None:
                return Sides(found[0], found[1], tokens)
    return None


def _named(stem: str, token: str, plain: str) -> bool:
    return plain in (f"{stem}_{token}", f"{token}_{stem}")


class Judged:
    """The verdicts of a source: which column has them and what its values mean, from its first rows."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self._verdicts: dict[str, Verdicts] = {}
        for row in rows:
            for column in self.columns(Fields(row)):
                self._of(column, row).look([row.values.get(column)])

    def columns(self, fields: Fields) -> Sequence[str]:
        """The columns of a row that may hold a verdict on two sides."""
        if "verdict" in fields.row.columns:
            column = fields.column("verdict")
            return () if column is None else (column,)
        named = [fields.plain(name) for name in NAMES["verdict"]]
        return [name for name in named if name is not None and _may_be_code(fields.value(name))]

    def of(self, fields: Fields, sides: Sides) -> str:
        """Which side of a row is better: `first`, `second` or `tie`.

        Raises:
            RowError: the row has no verdict, or one that is not understood, or several that differ.
        """
        one_hot = _one_hot(fields)
        if one_hot is not None:
            return one_hot
        columns = self.columns(fields)
        if not columns:
            raise fields.missing("verdict")
        names = _side_names(fields, sides)
        found: dict[str, str] = {}
        fault: RowError | None = None
        for column in columns:
            try:
                found[column] = self._of(column, fields.row).meaning(fields.value(column), names, sides.tokens)
            except RowError as error:
                fault = fault or error
        if not found:
            assert fault is not None
            raise fault
        if len(set(found.values())) > 1:
            raise VerdictError(
                "verdicts differ", f"{found}: name the column that counts, `verdict` under `columns` in the manifest"
            )
        if fault is not None and columns[0] not in found:  # the likeliest column is the one that is not understood
            raise fault
        return next(iter(found.values()))

    def _of(self, column: str, row: Row) -> Verdicts:
        known = self._verdicts.get(column)
        if known is None:
            known = self._verdicts[column] = Verdicts(column, row.verdict)
        return known


def _side_names(fields: Fields, sides: Sides) -> Mapping[str, str]:
    """Other names of the sides in a row: of their columns, and of the models where these differ."""
    names: dict[str, str] = {}
    for first, second in ((sides.first, sides.second), _models(fields)):
        if first and second and first.lower() != second.lower():
            names |= {first.lower(): FIRST, second.lower(): SECOND}
    return names


def _models(fields: Fields) -> tuple[str, str]:
    for tokens in _TOKENS:
        columns = [fields.plain(f"model_{token}") or fields.plain(f"{token}_model") for token in tokens]
        if all(columns):
            first, second = (str(fields.value(column) or "") for column in columns)
            return first, second
    return "", ""


def models(fields: Fields) -> tuple[str | None, str | None]:
    """Who wrote the first and the second side, None where it is not known."""
    first, second = _models(fields)
    return first or None, second or None


def _one_hot(fields: Fields) -> str | None:
    """A verdict that is spread over columns of ones and zeros: winner_model_a, winner_model_b, winner_tie."""
    if "verdict" in fields.row.columns:
        return None
    for stem in _ONE_HOT:
        columns = [fields.plain(f"{stem}_model_a"), fields.plain(f"{stem}_model_b"), fields.plain(f"{stem}_tie")]
        if columns[0] is None or columns[1] is None:
            continue
        values = [value_text(fields.value(column)) in ("1", "true") for column in columns]
        if sum(values) != 1:
            raise RowError("no verdict", f"columns {columns} name {sum(values)} sides")
        return (FIRST, SECOND, TIE)[values.index(True)]
    return None


def _may_be_code(value: Any) -> bool:
    """Whether a value may name a side: it is short, or missing; an answer is longer, and a list is none."""
    return value is None or isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) <= _CODE)
