"""Tables of pairs passed through decisions in batches, from Parquet to Parquet.

Decisions see frames without the long columns (`tables.lean_frame`); the texts stay in Arrow, where a row is taken and
its sides are swapped once, whatever the number of decisions. Reading, deciding and compressing go on at the same time.

What belongs here: batches, threads and files. What does not: any decision about a pair.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from dt2it_pipeline.curate.tables import lean_frame, plain_strings, whole_table
from dt2it_pipeline.observe.cores import usable_cores
from dt2it_pipeline.storage.schemas import SCHEMAS

BATCH_PAIRS = 1 << 15
_AHEAD = 4  # batches that wait for being written
# Columns to be written as dictionaries. Of ids and texts, which all differ, one would be built in vain.
_FEW_VALUES = ("label", "source", "votes.list.element.voter", "stage", "reason", "detail")

# What is to be written, by name: lean frames of pairs, whose rows get their texts back, or tables as they are.
Written: TypeAlias = Mapping[str, "pd.DataFrame | pa.Table"]
# A change takes the number of its first pair and a lean frame, and may run beside others.
Change: TypeAlias = Callable[[int, pd.DataFrame], Written]


def rewrite(sources: Sequence[Path], folder: Path, kinds: Mapping[str, str], change: Change) -> dict[str, int]:
    """Pass the pairs of `sources`, one after the other, through `change` into `folder`/<name>.parquet.

    Args:
        sources: tables of kind `pairs`.
        folder: exists; gets a file for every name.
        kinds: the kind of table of each name that `change` returns.
        change: several calls are under way at once; what they return is written in the order of the pairs.

    Returns:
        The rows written, by name.
    """
    counts = dict.fromkeys(kinds, 0)
    workers = min(usable_cores(), 8)
    with contextlib.ExitStack() as stack:
        # Compression is most of the work and each file's is a single thread's, so every file has one of its own.
        writers = {name: _Writer(folder / f"{name}.parquet", kind) for name, kind in kinds.items()}
        for writer in writers.values():
            stack.enter_context(writer)
        pool = stack.enter_context(ThreadPoolExecutor(workers))
        for written in _in_order(pool, workers + 1, _numbered(read_ahead(sources, BATCH_PAIRS)), change):
            for name, table in written.items():
                counts[name] += table.num_rows
                writers[name].write(table)
    return counts


def read_ahead(
    files: Sequence[Path], rows: int, columns: Sequence[str] | None = None, dictionaries: Sequence[str] = ()
) -> Iterator[pa.RecordBatch]:
    """The batches of Parquet files, each read while the one before it is worked on.

    Args:
        files: read one after the other.
        rows: the most rows of a batch.
        columns: all, if None.
        dictionaries: string columns of few values, to be read as dictionaries.
    """
    batches = _batches(files, rows, columns, dictionaries)
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = thread.submit(next, batches, None)
            yield batch


def _batches(
    files: Sequence[Path], rows: int, columns: Sequence[str] | None, dictionaries: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    for file in files:
        with pq.ParquetFile(file, read_dictionary=list(dictionaries)) as reader:
            yield from piecewise(reader, rows, None if columns is None else list(columns))


def piecewise(reader: pq.ParquetFile, rows: int, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
    """Batches of an open file, whose memory does not grow with the file.

    One iterator over a whole file keeps the compressed bytes of every row group that it has passed, so each gets only
    as many row groups as make a batch.

    Args:
        reader: an open Parquet file.
        rows: the most rows of a batch.
        columns: all, if None.
    """
    groups: list[int] = []
    pending = 0
    for group in range(reader.num_row_groups):
        groups.append(group)
        pending += reader.metadata.row_group(group).num_rows
        if pending >= rows or group == reader.num_row_groups - 1:
            yield from reader.iter_batches(rows, row_groups=groups, columns=columns)
            groups, pending = [], 0


class _Writer:
    """Writes one Parquet file in a thread of its own, some batches behind."""

    def __init__(self, path: Path, kind: str) -> None:
        self._writer = pq.ParquetWriter(path, SCHEMAS[kind], compression="zstd", use_dictionary=list(_FEW_VALUES))
        self._thread = ThreadPoolExecutor(1)
        self._waiting: deque[Future[None]] = deque()

    def write(self, table: pa.Table) -> None:
        if table.num_rows:
            self._waiting.append(self._thread.submit(self._writer.write_table, table))
        while len(self._waiting) > _AHEAD:
            self._waiting.popleft().result()

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            while self._waiting and kind is None:
                self._waiting.popleft().result()
        finally:
            self._thread.shutdown(cancel_futures=True)
            self._writer.close()


def _numbered(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[int, pa.RecordBatch]]:
    start = 0
    for batch in batches:
        yield start, batch
        start += batch.num_rows


def _in_order(
    pool: ThreadPoolExecutor, ahead: int, batches: Iterator[tuple[int, pa.RecordBatch]], change: Change
) -> Iterator[Mapping[str, pa.Table]]:
    waiting: deque[Future[Any]] = deque()
    for start, batch in batches:
        waiting.append(pool.submit(_changed, change, start, batch))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _changed(change: Change, start: int, batch: pa.RecordBatch) -> Mapping[str, pa.Table]:
    table = plain_strings(pa.Table.from_batches([batch]))
    written = change(start, lean_frame(table))
    return {
        name: whole_table(made, table) if isinstance(made, pd.DataFrame) else made for name, made in written.items()
    }
