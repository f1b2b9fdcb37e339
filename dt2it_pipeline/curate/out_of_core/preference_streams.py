"""A user's Parquet files of pairs and scores, of which no text lies in memory longer than its batch.

Pairs are read twice: once for the lengths of their texts, while scores are joined, and once to be written with their
sides swapped where a label was wrong. What belongs here: batches, threads and files. What does not: any decision about
a pair, and formats that cannot be read in batches, which are read as a whole (`given_pairs`).
"""

from __future__ import annotations

import contextlib
import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dt2it_pipeline.curate.out_of_core.streaming import piecewise, read_ahead
from dt2it_pipeline.curate.pair_frames import swapped_columns
from dt2it_pipeline.curate.voters.margins import CurationError
from dt2it_pipeline.ingest.readers.parquet_footer import row_groups_of
from dt2it_pipeline.ingest.readers.thrift_compact import FormatError
from dt2it_pipeline.storage.table_files import DAMAGED, FORMATS

_BATCH_BYTES = 1 << 25  # of uncompressed columns that are read at a time; several such batches are under way
_FEWEST, _MOST = 1 << 10, 1 << 17  # rows of a batch, which is a row group of what is written
_BUFFER = 1 << 20  # bytes of a column that are read from the file at once
_SCORE_ROWS = 1 << 20
_AHEAD = 2  # batches that wait for being written
_SAMPLE = 10_000  # values that show whether a column repeats them


@dataclass(frozen=True)
class PairFile:
    """A Parquet file of pairs, as `GivenPairs`.

    Attributes:
        file: the file.
        frame: the columns that decide.
        columns: the names of all.
        types: the Arrow types of all, with text as long strings, which is how pandas holds and writes it.
    """

    file: Path
    frame: pd.DataFrame
    columns: pd.Index
    types: Mapping[str, pa.DataType]
    _lengths: Future[np.ndarray] | None = field(default=None, repr=False, compare=False)
    _stop: Event = field(default_factory=Event, repr=False, compare=False)

    @classmethod
    def opened(
        cls, file: Path, needed: Sequence[str], texts: tuple[str, str], named: Sequence[tuple[str, str]] = ()
    ) -> PairFile | None:
        """The file, of which only the columns `needed` are read; None if it must be read as a whole.

        Lengths of texts are then computed in a thread, until `close`.

        Args:
            file: a table of pairs.
            needed: columns that decide; those that are not there are left out.
            texts: columns whose lengths will be asked for.
            named: columns that change sides, beside those of `swapped_columns`.
        """
        types = _types(file)
        if types is None or any(types[left] != types[right] for left, right in swapped_columns(types, named)):
            return None  # a value of one side could not stand in the other
        # pandas' reader keeps what pandas wrote of types; of a file without such columns, it counts the rows.
        there = [name for name in dict.fromkeys(needed) if name in types]
        try:
            frame = pd.read_parquet(pa.OSFile(str(file)), columns=there)  # noqa: TID251
        except (OSError, *DAMAGED) as error:
            raise _unreadable(file, error) from error
        frame = frame.set_axis(frame.columns.astype(str), axis=1)[there].reset_index(drop=True)
        lengths, stop = None, Event()
        if set(texts) <= set(types) and all(types[name] == pa.large_string() for name in texts):
            pool = ThreadPoolExecutor(1, thread_name_prefix="lengths")
            lengths = pool.submit(_length_differences, file, texts, types, stop)
            pool.shutdown(wait=False)
        return cls(file, frame, pd.Index(list(types), dtype="str"), types, lengths, stop)

    def close(self) -> None:
        """Stop the thread, which a command that fails would wait for at its end."""
        self._stop.set()

    def lengths(self, chosen: str, rejected: str) -> np.ndarray:
        """float64 [n], log length of the text in column `chosen` minus that in `rejected`; 0 where they are no texts.

        Those of the columns that were named when it was opened.
        """
        return np.zeros(len(self.frame)) if self._lengths is None else self._lengths.result()

    def cells(self, rows: np.ndarray, columns: Sequence[str]) -> pd.DataFrame:
        """Some columns of the rows with these rising numbers, numbered from 0."""
        found, start = [], 0
        for batch in _batches(self.file, list(columns), self.types):
            first, last = np.searchsorted(rows, [start, start + len(batch)])
            found.append(batch.take(pa.array(rows[first:last] - start)))
            start += len(batch)
        return pa.concat_tables(found).to_pandas() if found else pd.DataFrame(columns=list(columns))

    def write(
        self,
        file: Path,
        sides: Sequence[tuple[str, str]],
        flipped: np.ndarray,
        stays: np.ndarray,
        added: Mapping[str, np.ndarray],
    ) -> None:
        """Write the rows that stay as Parquet, batch by batch, into a folder that is not in its place yet.

        Args:
            file: to write.
            sides: columns that change sides where a pair is flipped.
            flipped: bool [n].
            stays: bool [n].
            added: columns after the others, n values each.
        """
        schema = pa.schema([*self.types.items(), *((name, pa.from_numpy_dtype(a.dtype)) for name, a in added.items())])
        start = 0
        with _Writer(file, schema) as writer:
            for batch in _batches(self.file, list(self.types), self.types):
                rows = slice(start, start + len(batch))
                start += len(batch)
                columns = {name: batch[name] for name in batch.column_names}
                if flipped[rows].any():
                    turn = pa.array(flipped[rows])
                    for left, right in sides:
                        both = columns[left], columns[right]
                        columns[left], columns[right] = (pc.if_else(turn, *both[::-1]), pc.if_else(turn, *both))
                made = pa.table(columns | {name: pa.array(values[rows]) for name, values in added.items()}, schema)
                writer.write(made if stays[rows].all() else made.filter(pa.array(stays[rows])))


@dataclass(frozen=True)
class ScoreFiles:
    """Parquet files of scores, as `GivenScores`.

    Attributes:
        files: tables with the same columns.
        columns: their names.
        rows: of all of them.
    """

    files: tuple[Path, ...]
    columns: pd.Index
    rows: int

    @classmethod
    def opened(cls, files: Sequence[Path]) -> ScoreFiles | None:
        """The files; None if they must be read as a whole, since not all of them are Parquet with columns as usual."""
        columns, rows = set(), 0
        for file in files:
            types = _types(file)
            if types is None or not _usual_scores(types):
                return None
            columns.add(frozenset(types) & {"response_id", "voter", "score"})
            rows += pq.read_metadata(file).num_rows
        return cls(tuple(files), pd.Index(sorted(columns.pop())), rows) if len(columns) == 1 else None

    def __len__(self) -> int:
        return self.rows

    def parts(self) -> Iterator[pd.DataFrame]:
        """Their rows, a batch at a time."""
        columns, repeated = list(self.columns), [name for name in self.columns if name == "voter"]
        for file in self.files:
            with _errors_name(file):
                for batch in read_ahead([file], _SCORE_ROWS, columns, repeated):
                    yield pa.Table.from_batches([batch]).to_pandas(ignore_metadata=True)


def _types(file: Path) -> dict[str, pa.DataType] | None:
    """The types of a Parquet file's columns, text as long strings; None if it must be read as a whole."""
    if file.suffix.lower() != ".parquet":
        return None
    try:
        schema = pq.read_schema(file)
        written = json.loads((schema.metadata or {}).get(b"pandas", b"{}"))
        index = {name for name in written.get("index_columns", []) if isinstance(name, str)}
        several = len(written.get("column_indexes", [])) > 1
    except (OSError, *DAMAGED):
        return None  # who reads it as a whole says what is wrong
    if several or len(set(schema.names)) < len(schema.names):
        return None
    types = {each.name: _as_written(each.type) for each in schema if each.name not in index}
    # What depends on a dictionary, or on code of others, is not the same type in every batch.
    odd = any(pa.types.is_dictionary(kind) or isinstance(kind, pa.BaseExtensionType) for kind in types.values())
    return None if odd else types


def _as_written(kind: pa.DataType) -> pa.DataType:
    return pa.large_string() if pa.types.is_string(kind) or pa.types.is_string_view(kind) else kind


def _usual_scores(types: Mapping[str, pa.DataType]) -> bool:
    score, voter = types.get("score"), types.get("voter", pa.large_string())
    number = score is not None and (pa.types.is_integer(score) or pa.types.is_floating(score))
    return number and types.get("response_id") == pa.large_string() and voter == pa.large_string()


def _length_differences(
    file: Path, texts: tuple[str, str], types: Mapping[str, pa.DataType], stop: Event
) -> np.ndarray:
    """As `pair_frames.length_difference`; of some pairs only, where it is stopped."""
    found = []
    for batch in _batches(file, list(dict.fromkeys(texts)), types):
        if stop.is_set():
            break
        counts = [pc.fill_null(pc.utf8_length(batch[name]), 0).to_numpy() for name in texts]
        lengths = [np.log1p(each.astype(np.float64)) for each in counts]
        found.append(lengths[0] - lengths[1])
    return np.concatenate(found) if found else np.empty(0)


def _batches(file: Path, columns: list[str], types: Mapping[str, pa.DataType]) -> Iterator[pa.Table]:
    """Some columns of a file, in batches, each read while the one before it is worked on."""
    with _errors_name(file), pq.ParquetFile(file, buffer_size=_BUFFER) as reader, ThreadPoolExecutor(1) as thread:
        batches = piecewise(reader, _rows_at_once(reader, file, columns), columns)
        coming = thread.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = thread.submit(next, batches, None)
            table = pa.Table.from_batches([batch]).select(columns).replace_schema_metadata(None)
            yield table.cast(pa.schema([(name, types[name]) for name in columns]))


def _rows_at_once(reader: pq.ParquetFile, file: Path, columns: list[str]) -> int:
    """How many rows of some columns are about _BATCH_BYTES.

    What repeats lies in the file once, and in a batch as often as it stands there, so the first rows are looked at.
    """
    groups, wanted = row_groups_of(file), set(columns)
    chunks = [chunk for group in groups for chunk in group.columns if chunk.path_in_schema.split(".")[0] in wanted]
    size = sum(chunk.total_uncompressed_size for chunk in chunks)
    first = next(piecewise(reader, _FEWEST, columns), None)
    each = max(size / max(reader.metadata.num_rows, 1), 0.0 if first is None else first.nbytes / max(len(first), 1))
    return int(np.clip(_BATCH_BYTES / max(each, 1.0), _FEWEST, _MOST))


@contextlib.contextmanager
def _errors_name(file: Path) -> Iterator[None]:
    """Let errors of a file that is read name it."""
    try:
        yield
    except (OSError, pa.ArrowException, FormatError) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> CurationError:
    return CurationError(f"{file} cannot be read: {error}; give {FORMATS}")


class _Writer:
    """Writes one Parquet file in a thread of its own, some batches behind."""

    def __init__(self, file: Path, schema: pa.Schema) -> None:
        self._file, self._schema = file, schema
        self._writer: pq.ParquetWriter | None = None
        self._thread = ThreadPoolExecutor(1)
        self._waiting: deque[Future[None]] = deque()

    def write(self, table: pa.Table) -> None:
        if self._writer is None:
            self._open([name for name in table.column_names if _repeats(table[name])])
        if table.num_rows and self._writer is not None:
            self._waiting.append(self._thread.submit(self._writer.write_table, table))
        while len(self._waiting) > _AHEAD:
            self._waiting.popleft().result()

    def _open(self, repeating: list[str]) -> None:
        # Of texts and ids, which all differ, a dictionary would be built in vain.
        self._writer = pq.ParquetWriter(
            self._file, self._schema, compression="zstd", use_dictionary=repeating, write_page_checksum=True
        )

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            while self._waiting and kind is None:
                self._waiting.popleft().result()
            if self._writer is None:
                self._open([])
        finally:
            self._thread.shutdown(cancel_futures=True)
            if self._writer is not None:
                self._writer.close()


def _repeats(values: pa.ChunkedArray) -> bool:
    """Whether a column of text has few different values."""
    some = values.slice(0, _SAMPLE)
    return pa.types.is_large_string(values.type) and 2 * pc.count_distinct(some).as_py() <= len(some)
