"""Rows of tables as Python values (pairs from two texts, quarantine, lists within a column), and tables in pieces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dt2it_pipeline.storage.atomic import arrow_bytes
from dt2it_pipeline.storage.content_ids import pair_id, response_id


@dataclass(frozen=True)
class TablePiece:
    """Rows of a table that may go to another process: without the rows of its buffers that are not its own."""

    rows: pa.Table

    def __reduce__(self) -> tuple[Any, ...]:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self.rows.schema) as writer:
            writer.write_table(self.rows)
        return _arrived, (sink.getvalue().to_pybytes(),)


def _arrived(stream: bytes) -> TablePiece:
    return TablePiece(pa.ipc.open_stream(arrow_bytes(stream)).read_all())


def table_pieces(table: pa.Table, rows: int) -> Iterator[TablePiece]:
    """A table in pieces of so many rows, the last of which may be shorter."""
    for start in range(0, table.num_rows, rows):
        yield TablePiece(table.slice(start, rows))


def make_pair(prompt: str, chosen: str, rejected: str, **fields: Any) -> dict[str, Any]:
    """One row of a pairs table from two texts; `fields` gives source, label and whatever else is not the default."""
    chosen_id, rejected_id = response_id(prompt, chosen), response_id(prompt, rejected)
    row: dict[str, Any] = {
        "pair_id": pair_id(prompt, chosen_id, rejected_id),
        "prompt_id": prompt,
        "chosen": chosen,
        "rejected": rejected,
        "chosen_id": chosen_id,
        "rejected_id": rejected_id,
        "strength": None,
        "label": "original",
        "round": -1,
        "votes": [],
        "row_id": None,
        "list_id": None,
        "chosen_rank": None,
        "rejected_rank": None,
    }
    return row | fields


def quarantine_row(
    row_id: str, stage: str, reason: str, detail: str = "", source: str = "", pair_id: str | None = None
) -> dict[str, Any]:
    """One row of a quarantine table: which row, where, why (a short fixed phrase) and what was found."""
    values = {"row_id": row_id, "stage": stage, "reason": reason, "detail": detail, "source": source}
    return {key: writable(value) for key, value in values.items()} | {"pair_id": pair_id}


def quarantine_pair(pair: Mapping[str, Any], stage: str, reason: str, detail: str = "") -> dict[str, Any]:
    """The same of a row of a pairs table: under the row of the source that it comes from, or its own id."""
    pair_id = pair["pair_id"]
    return quarantine_row(pair.get("row_id") or pair_id, stage, reason, detail, pair["source"], pair_id)


def writable(text: str) -> str:
    """Text in which halves of characters are spelled out, since a table of what was found must always be written."""
    return text.encode("utf-8", "backslashreplace").decode()


def inner_lists(column: pa.ChunkedArray, field: str) -> Iterator[tuple[Any, ...]]:
    """One field of a column of lists of structures, a tuple per row; a list that is null counts as empty.

    `to_pylist` would make a dictionary of every structure.

    Examples:
        >>> turns = pa.chunked_array([[[{"role": "user", "text": "What?"}], []]])
        >>> list(inner_lists(turns, "text"))
        [('What?',), ()]
    """
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_pylist()
    values = iter(pc.struct_field(pc.list_flatten(column), field).to_pylist())
    return (tuple(islice(values, length)) for length in lengths)
