"""Rows with long columns in a file that memory maps: any row is read at once, and none of them fills the memory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dt2it_pipeline.errors import UserError
from dt2it_pipeline.storage.leftovers import owned_prefix

BATCH = 8192  # rows that are written, and searched, at once


class ReviewError(UserError, ValueError):
    """What is to be reviewed cannot be shown; the message says why and what to do."""


class RowFile:
    """Rows in a temporary file, which vanishes with the process, however that ends.

    >>> import pyarrow as pa
    >>> schema = pa.schema([("text", pa.string())])
    >>> rows = RowFile(schema, [pa.record_batch({"text": ["one", "two"]}), pa.record_batch({"text": ["three"]})])
    >>> len(rows), rows[2]
    (3, {'text': 'three'})

    Args:
        schema: of the rows.
        batches: the rows, in their order.

    Raises:
        ReviewError: the temporary folder is full or cannot be written to.
    """

    def __init__(self, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
        path = _temporary()
        try:
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
                for batch in batches:
                    writer.write_batch(pa.RecordBatch.from_arrays(batch.columns, schema=schema))  # null or not is one
            self._reader = pa.ipc.open_file(pa.memory_map(str(path)))
        except OSError as error:
            raise ReviewError(
                f"the texts do not fit into the temporary folder {path.parent}: {error}; make room there, or name "
                "another one by the variable TMPDIR"
            ) from error
        finally:
            path.unlink(missing_ok=True)  # the mapping keeps its content
        self._batches = [self._reader.get_batch(place) for place in range(self._reader.num_record_batches)]
        self._ends = np.cumsum([batch.num_rows for batch in self._batches], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, place: int) -> dict[str, Any]:
        """The row at a place, from 0."""
        if not 0 <= place < len(self):
            raise IndexError(f"there is no row {place}; there are {len(self)}")
        part = int(np.searchsorted(self._ends, place, side="right"))
        batch = self._batches[part]
        row: dict[str, Any] = batch.slice(place - (int(self._ends[part]) - batch.num_rows), 1).to_pylist()[0]
        return row

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All rows, piece by piece, in their order."""
        yield from self._batches


def pieces(table: pa.Table) -> Iterator[pa.RecordBatch]:
    """A table as the batches of a `RowFile`."""
    yield from table.to_batches(max_chunksize=BATCH)


def _temporary() -> Path:
    try:
        descriptor, name = tempfile.mkstemp(prefix=owned_prefix("dt2it_review"))
    except OSError as error:
        raise ReviewError(f"no temporary file can be made: {error}; name a folder by the variable TMPDIR") from error
    os.close(descriptor)
    return Path(name)
