"""The registry of adapters: by name, what turns the rows of one published schema into neutral items."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from dt2it_pipeline.errors import RowError, UserError
from dt2it_pipeline.ingest.rows import ColumnError, Item, Quarantined, Row, SourceError

PerRow = Callable[[Row], Iterator[Item]]
OverRows = Callable[[Iterable[Row]], Iterator[Item]]
Reader = Callable[[Sequence[Row]], PerRow]


LOOK = 129  # first rows of a source that a reader may have looked at


class UnknownAdapterError(UserError, ValueError):
    """A manifest names an adapter that does not exist."""

    help_page: ClassVar[str] = "troubleshooting#manifest"


@dataclass(frozen=True)
class Adapter:
    """One source schema.

    Attributes:
        name: as manifests have it.
        kinds: kinds of manifest that it serves.
        columns: the columns that it reads, by the names that the source's authors gave them.
        items: turns rows into items, none of them lost: a row that gives none is quarantined.
        reader: what reads a row by itself once the source's first LOOK rows are known, as `items` does; None where
            items depend on further rows.
    """

    name: str
    kinds: tuple[str, ...]
    columns: tuple[str, ...]
    items: OverRows
    reader: Reader | None = None


ADAPTERS: dict[str, Adapter] = {}


def per_row(name: str, kinds: tuple[str, ...], columns: tuple[str, ...]) -> Callable[[PerRow], PerRow]:
    """Register a function that makes the items of one row; a RowError that it raises sets the row aside."""

    def register(function: PerRow) -> PerRow:
        def items(rows: Iterable[Row]) -> Iterator[Item]:
            for row in rows:
                yield from guarded(function, row)

        ADAPTERS[name] = Adapter(name, kinds, columns, items, lambda first: function)
        return function

    return register


def over_rows(
    name: str, kinds: tuple[str, ...], columns: tuple[str, ...], reader: Reader | None = None
) -> Callable[[OverRows], OverRows]:
    """Register a function that needs to see several rows to make an item; `reader` is that of `Adapter`."""

    def register(function: OverRows) -> OverRows:
        ADAPTERS[name] = Adapter(name, kinds, columns, function, reader)
        return function

    return register


def adapter(name: str) -> Adapter:
    """The adapter of that name. Raises UnknownAdapterError, which lists those there are."""
    try:
        return ADAPTERS[name]
    except KeyError:
        raise UnknownAdapterError(f"there is no adapter {name!r}; there are {', '.join(sorted(ADAPTERS))}") from None


def guarded(function: PerRow, row: Row) -> Iterator[Item]:
    """The items of one row; whatever is wrong with it, and a row that gives none, becomes a Quarantined."""
    made = False
    try:
        for item in function(row):
            made = True
            yield item
    except SourceError:  # the whole source cannot be read on
        raise
    except RowError as error:
        yield quarantine(row.row_id, error)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError, OverflowError) as error:
        # A value of a shape that the schema does not have; the adapters say what they expect, not all that may come.
        yield Quarantined(row.row_id, "row cannot be read", f"{type(error).__name__}: {error}"[:200])
    else:
        if not made:
            yield Quarantined(row.row_id, "no preference in the row")


def quarantine(row_id: str, error: RowError) -> Quarantined:
    """An error as a quarantined item."""
    return Quarantined(row_id, error.reason, error.detail, isinstance(error, ColumnError))
