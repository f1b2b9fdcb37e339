"""What is long lies in temporary files: rows of which any is read at once, and images that a table holds itself."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dt2it_pipeline.errors import UserError
from dt2it_pipeline.storage.leftovers import owned_prefix

_EMBEDDED = "embedded image "  # before the hash of its content
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


class EmbeddedImages:
    """Files of images that a table holds itself, by their content, in a temporary file that vanishes with the process.

    >>> images = EmbeddedImages(most_bytes=8)
    >>> name = images.add(b"PNG...")
    >>> images.read(name), images.add(b"PNG...") == name, images.add(b"another"), images.read("a.png")
    (b'PNG...', True, None, None)

    Args:
        most_bytes: of all files together.
        most_bytes_each: of one file.
    """

    def __init__(self, most_bytes: int = 4 << 30, most_bytes_each: int = 64 << 20) -> None:
        self._most, self._most_each = most_bytes, most_bytes_each
        self._places: dict[str, tuple[int, int]] = {}  # name -> where it begins, and its bytes
        self._end = 0
        path = _temporary()
        self._file = path.open("w+b", buffering=0)
        path.unlink()

    def add(self, content: bytes) -> str | None:
        """The name of a file from now on; None where it is larger than allowed.

        Raises ReviewError where the temporary folder is full.
        """
        name = f"{_EMBEDDED}{hashlib.sha256(content).hexdigest()}"
        if name in self._places:
            return name
        if len(content) > self._most_each or self._end + len(content) > self._most:
            return None
        try:
            self._file.seek(self._end)
            left = memoryview(content)
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise ReviewError(
                f"the images of the table do not fit into the temporary folder {tempfile.gettempdir()}: {error}; make "
                "room there, or name another one by the variable TMPDIR"
            ) from error
        self._places[name] = self._end, len(content)
        self._end += len(content)
        return name

    def read(self, name: str) -> bytes | None:
        """The file of a name that `add` gave; None for any other. Threads may ask at once."""
        place = self._places.get(name)
        if place is None:
            return None
        found = bytearray()
        while len(found) < place[1] and (
            part := os.pread(self._file.fileno(), place[1] - len(found), place[0] + len(found))
        ):
            found += part
        return bytes(found)


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
