"""Reads the rows of a Parquet file, in memory that its size bounds, whatever its footer and its pages' headers say.

What belongs here: batches of rows, and their values in Python. What does not: the footer (parquet_footer.py), headers
of pages (parquet_pages.py), lengths in them (parquet_deltas.py), and places in a dictionary (parquet_dictionaries.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from dt2it_pipeline.ingest.readers.bounds import ROW_BYTES, check_ratio, most_bytes
from dt2it_pipeline.ingest.readers.parquet_deltas import shared_bytes
from dt2it_pipeline.ingest.readers.parquet_dictionaries import taken_bytes
from dt2it_pipeline.ingest.readers.parquet_footer import ColumnChunk, RowGroup, row_groups
from dt2it_pipeline.ingest.readers.parquet_pages import ChunkedFile, Pages
from dt2it_pipeline.ingest.readers.record_batches import json_decoder, require_distinct_columns, values_of
from dt2it_pipeline.ingest.readers.thrift_compact import FormatError
from dt2it_pipeline.ingest.rows import Quarantined, Read, SourceError

_BATCH_BYTES = 2**28  # of the rows that are in memory together, where one value may stand in all of them
_BATCH = 64  # rows at a time; each may hold an image
_LONG = "BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY"  # physical types of which one value may be long
_ELEMENT = 24  # bytes of each element of a list beside its value: 4 in Arrow; in Python 8, while the list grows more


def parquet_rows(stream: Any, name: str, prefix: str) -> Iterator[Read]:
    """The rows of a Parquet file in order; one with a value that Python cannot hold as Quarantined.

    Args:
        stream: its bytes; it must be seekable.
        name: of the file, for errors.
        prefix: of the place of each row.

    Raises:
        SourceError: it is no whole Parquet file, names a column twice, or expands to more than 200 times its size, and
            to more than 1 GiB.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        chunks = ChunkedFile(stream)
        file = pq.ParquetFile(chunks, pre_buffer=False)
        require_distinct_columns(file.schema_arrow, name)
        decode = json_decoder(file.schema_arrow)
        groups = row_groups(chunks.footer())
        for part in (part for group in groups for part in group.columns):
            check_ratio(part.total_uncompressed_size, part.total_compressed_size, _column(part, name))
        for batch in _batches(file, groups, chunks, name):
            for values in values_of(batch, decode):
                number += 1
                where = f"{prefix}row {number}"
                yield (where, values) if isinstance(values, dict) else Quarantined(where, "malformed value", values)
    except (pa.ArrowException, OSError, UnicodeDecodeError, FormatError) as error:
        raise SourceError(f"{name} is no whole Parquet file (behind row {number}): {error}") from error


def _column(part: ColumnChunk, name: str) -> str:
    return f"column {part.path_in_schema!r} of {name}"


def _batches(file: Any, groups: Sequence[RowGroup], chunks: ChunkedFile, name: str) -> Iterator[Any]:
    """The record batches of a Parquet file.

    A dictionary holds a long value once, however many rows have it. So a batch has fewer rows where many such values
    could come together, and what rows hold is counted against the file's size.
    """
    expanded, coded = 0, _coded(file.schema_arrow)
    for group, about in enumerate(groups):
        if about.num_rows == 0:  # PyArrow writes such a group for an empty table; its columns may share a place
            continue
        columns = about.columns
        if len(columns) != len(file.schema):
            raise FormatError(f"row group {group + 1} has {len(columns)} columns, and the file {len(file.schema)}")
        pages = chunks.read_group(columns)
        for number, (part, announced) in enumerate(zip(columns, pages, strict=True)):
            levels = _ELEMENT * announced.values if file.schema.column(number).max_repetition_level else 0
            check_ratio(max(announced.size, levels), part.total_compressed_size, _column(part, name))
        stored = sum(part.total_compressed_size for part in columns)
        check_ratio(sum(announced.size for announced in pages), stored, f"row group {group + 1} of {name}")
        for number, (part, announced) in enumerate(zip(columns, pages, strict=True)):
            _check_lengths(announced, part, file.schema.column(number), name)
        ahead = ROW_BYTES * about.num_rows
        check_ratio(expanded + ahead, chunks.size, f"{name} with {about.num_rows:,} rows in group {group + 1}")
        longest = sum(announced.shared for announced in pages)
        del pages  # and the bytes that they lie in
        rows = min(_BATCH, max(1, _BATCH_BYTES // max(1, longest)))
        for batch in file.iter_batches(batch_size=rows, row_groups=[group]):
            expanded += max(batch.nbytes, ROW_BYTES * batch.num_rows) + sum(
                _written_out(batch.column(number)) for number in coded
            )
            check_ratio(expanded, chunks.size, name)
            yield batch


def _coded(schema: Any) -> list[int]:
    """The places of those columns which Arrow reads as texts of a dictionary."""
    import pyarrow as pa

    types = pa.types
    texts = types.is_string, types.is_large_string, types.is_binary, types.is_large_binary
    kinds = enumerate(schema.types)
    return [at for at, kind in kinds if types.is_dictionary(kind) and any(each(kind.value_type) for each in texts)]


def _written_out(column: Any) -> int:
    """Bytes that the rows of a column of a dictionary take in Python, beyond those in Arrow."""
    import pyarrow.compute as pc

    return pc.sum(pc.binary_length(column.dictionary).take(column.indices)).as_py() or 0


def _check_lengths(announced: Pages, part: ColumnChunk, column: Any, name: str) -> None:
    """Raise SourceError where the lengths in a column's pages ask for memory without measure.

    Texts of a list are in memory together, others a batch at a time: so are those that a list has from a dictionary.
    """
    levels = column.max_repetition_level, column.max_definition_level
    texts = announced.size

    def check(size: int) -> None:
        check_ratio(size, part.total_compressed_size, _column(part, name))

    for page in announced.deltas:
        texts += shared_bytes(page, part.compression, levels, check, wanted=levels[0] > 0)
        check(texts)
    if levels[0] > 0 and part.physical_type in _LONG:
        fixed = None if part.physical_type == _LONG[0] else column.length
        room = most_bytes(part.total_compressed_size) - texts
        check(texts + taken_bytes(announced, part.compression, levels, fixed, room))
