"""What lies between a source's file and our tables: a row as it was read, and the neutral items that are made of it.

A row's way: reading.py gives a `Row`, an adapter makes items of it, media/bulk_import.py imports their media,
sources.py records them. Whatever cannot go on becomes a `Quarantined`, at whichever step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, ClassVar, NamedTuple

from dt2it_pipeline.errors import RowError, UserError
from dt2it_pipeline.media.store import Medium, MediumKind
from dt2it_pipeline.storage.records import writable

Turn = dict[str, str]  # role (user or assistant) and text
_FLAGS: Mapping[Any, bool] = {
    None: False, "": False, 0: False, "0": False, "false": False, "no": False, "n": False, "f": False, "0.0": False,
    1: True, "1": True, "true": True, "yes": True, "y": True, "t": True, "1.0": True,
}  # fmt: skip
_SHOWN, _LENGTH = 40, 60  # columns that a message names, characters of each
TIE = "tie"  # reason under which rows without a preference are quarantined


class SourceError(UserError, ValueError):
    """A whole source cannot be read: it is missing, or its columns are not those that the adapter needs."""

    help_page: ClassVar[str] = "troubleshooting#source"


class ColumnError(RowError):
    """A column that the adapter needs is not in the row."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """A question with its media and, by kind of source, a reference answer or two answers of which one is preferred.

    `part` distinguishes what one row gives several of, such as the pairs of a ranking; `ranks` are those of its two
    answers in their list (1 is best), which is the row's own, or the one that the file calls `list_id`; `models` who
    wrote them, where that is known.
    """

    row_id: str
    turns: tuple[Turn, ...]
    media: tuple[Medium, ...] = ()
    chosen: str | None = None
    rejected: str | None = None
    reference: str | None = None
    system: str = ""
    strength: float | None = None
    group: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    part: str = ""
    ranks: tuple[float, float] | None = None
    list_id: str | None = None
    models: tuple[str | None, str | None] = (None, None)

    def place_in_list(self, source: str = "") -> dict[str, Any]:
        """Columns of the pairs table that say in which list of answers both sides stand, and where; null outside one.

        >>> Conversation("line 3", (), ranks=(1.0, 2.0)).place_in_list("mine")
        {'list_id': 'mine/line 3', 'chosen_rank': 1.0, 'rejected_rank': 2.0}

        Args:
            source: whose list it is; its name goes before the list's, which other sources may use too.
        """
        ranks = self.ranks or (None, None)
        name = self.list_id if self.list_id is not None or self.ranks is None else self.row_id
        if name is not None:
            name = writable(f"{source}/{name}" if source else name)
        return {"list_id": name, "chosen_rank": ranks[0], "rejected_rank": ranks[1]}


@dataclass(frozen=True, slots=True)
class ImagePair:
    """Two images for one caption, one of which is preferred."""

    row_id: str
    caption: str
    preferred: Medium
    other: Medium
    strength: float | None = None
    group: str | None = None
    part: str = ""

    @property
    def media(self) -> tuple[Medium, ...]:
        """Both images, the preferred one first."""
        return self.preferred, self.other


@dataclass(frozen=True, slots=True)
class Quarantined:
    """Something in the source that becomes no record: a tie, a malformed line, a row that cannot be used."""

    row_id: str
    reason: str
    detail: str = ""
    missing_column: bool = False


class Line(NamedTuple):
    """A line of JSON Lines as its bytes: parsing them takes longer than finding them."""

    where: str
    raw: bytes


Item = Conversation | ImagePair | Quarantined
Read = tuple[str, Mapping[str, Any]] | Quarantined  # where a row stands and its values, or what is wrong with it
Unparsed = Read | Line


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a source as it was read.

    Adapters name columns as the source's authors did; `columns` of the manifest renames them where a copy differs, and
    `verdict` says what the values of a verdict column mean.
    """

    row_id: str
    values: Mapping[str, Any]
    columns: Mapping[str, str] = field(default_factory=dict)
    kind: str = "preferences"
    where: str = ""  # where it stands, as errors name it; the id alone may not find it
    verdict: Mapping[str, str] = field(default_factory=dict)

    @property
    def columns_in_words(self) -> str:
        """Its columns, sorted, for errors."""
        return f"[{shown(repr(name) for name in sorted(map(str, self.values)))}]"

    def has(self, name: str) -> bool:
        """Whether there is a value that is not null."""
        return self.get(name) is not None

    def get(self, name: str) -> Any:
        """The value of a column, None where there is none."""
        return self.values.get(self.columns.get(name, name))

    def need(self, *names: str) -> Any:
        """The value of the first of these columns that the row has. Raises ColumnError where it has none of them."""
        for name in names:
            column = self.columns.get(name, name)
            if column in self.values:
                return self.values[column]
        wanted = " or ".join(repr(self.columns.get(name, name)) for name in names)
        raise ColumnError(
            "missing column",
            f"column {wanted} is not in {self.where or self.row_id}, which has {self.columns_in_words}",
        )

    def text(self, *names: str) -> str:
        """The same as text. Raises RowError where the value is not text, is blank, or is no valid Unicode."""
        return checked_text(self.need(*names), f"column {self.columns.get(names[0], names[0])!r}")

    def number(self, name: str) -> float | None:
        """A column as a number, None where it is absent, null or NaN. Raises RowError where it is something else.

        CSV has texts alone, and so has many a JSON file; a text that is a number counts as one, an empty one as null.
        """
        value = self.get(name)
        if value is None or (isinstance(value, str) and not value.strip()):
            return None
        found = as_number(value, f"column {self.columns.get(name, name)!r}")
        return None if math.isnan(found) else found

    def flag(self, name: str) -> bool:
        """A column as true or false; absent, null, NaN and empty are false. Raises RowError for anything else."""
        value = self.get(name)
        if isinstance(value, float) and math.isnan(value):
            return False
        found = _FLAGS.get(value.strip().lower() if isinstance(value, str) else value) if _hashable(value) else None
        if found is None:
            raise RowError("not true or false", f"column {self.columns.get(name, name)!r}: {value!r}"[:120])
        return found

    def media(self, name: str, kind: MediumKind = "image") -> tuple[Medium, ...]:
        """The media of a column: none, one or a list of paths, base64 texts, bytes or {bytes, path}."""
        column = self.columns.get(name, name)
        if name in self.columns and column not in self.values:  # a misspelt column would lose every image silently
            raise RowError(
                "missing value", f"column {column!r} is not in the row, which has {self.columns_in_words}"[:300]
            )
        value = self.get(name)
        if value is None or (isinstance(value, float) and math.isnan(value)):  # pandas writes NaN for none
            return ()
        return tuple(medium(one, kind, column) for one in (value if isinstance(value, list | tuple) else [value]))

    def image(self, name: str) -> Medium:
        """The one image of a column that must be there."""
        return medium(self.need(name), "image", self.columns.get(name, name))


def shown(names: Iterable[str]) -> str:
    """Names of columns for a message, no more than it can show.

    >>> shown(str(number) for number in range(45))[-18:]
    '38, 39 and 5 more'
    """
    cut = [name if len(name) <= _LENGTH else f"{name[:_LENGTH]}..." for name in names]
    return ", ".join(cut[:_SHOWN]) + (f" and {len(cut) - _SHOWN} more" if len(cut) > _SHOWN else "")


def medium(value: Any, kind: MediumKind, column: str) -> Medium:
    """A medium from what a column may hold: text, bytes, or {bytes, path} as `datasets` gives undecoded images."""
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if value in ("", b""):
        raise RowError("missing value", f"column {column!r}: {value!r}")
    if not isinstance(value, str | bytes):
        raise RowError(f"{kind} paths are not text", f"column {column!r}: {value!r}"[:120])
    return Medium(kind, value)


def as_number(value: Any, where: str) -> float:
    """A number, or a text that is one. Raises RowError, naming `where`, for anything else."""
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | Decimal | str):
            raise ValueError
        return float(value)
    except (ValueError, OverflowError):
        raise RowError("not a number", f"{where}: {value!r}"[:120]) from None


def _hashable(value: Any) -> bool:
    return value is None or isinstance(value, str | bool | int | float)


def checked_text(value: Any, where: str) -> str:
    """Text that is not blank and can be written as UTF-8. Raises RowError otherwise, naming `where`."""
    if value is not None and not isinstance(value, str):
        raise RowError("not text", f"{where}: {value!r}"[:120])
    if value is None or not value.strip():
        raise RowError("missing value", f"{where}: {value!r}"[:120])
    require_unicode(value, where)
    return value


def require_unicode(text: str, where: str) -> None:
    """Raise RowError, naming `where`, for text that cannot be written as UTF-8: it holds half of a character."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise RowError("not UTF-8", where) from None
