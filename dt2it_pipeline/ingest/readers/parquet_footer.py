"""What a Parquet file's footer says of its column chunks, read here and not by PyArrow.

PyArrow reads rows of a damaged file with an error, but asked for the metadata of such a column it ends the process: it
lets no error of its C++ library through there. What belongs here: `FileMetaData` of parquet.thrift in Thrift's compact
protocol, as far as bounds need it. What does not: pages (parquet_pages.py).
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dt2it_pipeline.ingest.readers.thrift_compact import (
    BINARY,
    I32,
    I64,
    LIST,
    STRUCT,
    FormatError,
    elements_of,
    fields_of,
    signed,
    text,
)

_TAIL = 8  # bytes at a file's end: how long its footer is, and its mark
_GROUPS = 4  # field of FileMetaData
_COLUMNS, _ROWS = 1, 3  # of RowGroup
_METADATA = 3  # of ColumnChunk
_TYPE, _PATH, _CODEC, _VALUES, _PLAIN, _STORED, _DATA, _DICTIONARY = 1, 3, 4, 5, 6, 7, 9, 11  # of ColumnMetaData
_TYPES = ("BOOLEAN", "INT32", "INT64", "INT96", "FLOAT", "DOUBLE", "BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY")
# PyArrow's names: LZ4_RAW is its LZ4, and the old codec that Parquet calls LZ4 is UNKNOWN.
_CODECS = ("UNCOMPRESSED", "SNAPPY", "GZIP", "LZO", "BROTLI", "UNKNOWN", "ZSTD", "LZ4")


@dataclass(frozen=True, slots=True)
class ColumnChunk:
    """A column's part of a row group; fields are those of `pyarrow.parquet.ColumnChunkMetaData`, in bytes."""

    path_in_schema: str
    physical_type: str
    compression: str
    num_values: int
    total_uncompressed_size: int
    total_compressed_size: int
    data_page_offset: int
    dictionary_page_offset: int | None


@dataclass(frozen=True, slots=True)
class RowGroup:
    """A row group: its rows, and a chunk of each column."""

    num_rows: int
    columns: tuple[ColumnChunk, ...]


def row_groups(footer: bytes) -> list[RowGroup]:
    """The row groups of a file that PyArrow has opened, in order.

    Args:
        footer: bytes of the FileMetaData.

    Raises:
        FormatError: it is none, or a column has no metadata that can be read.
    """
    try:
        places = [place for number, kind, place in fields_of(footer, 0) if number == _GROUPS and kind == LIST]
        if len(places) == 1:  # PyArrow takes the last one of several, and parts of those before
            return [_group(footer, start) for start in elements_of(footer, places[0], STRUCT)]
    except (IndexError, KeyError, FormatError) as error:
        raise FormatError("its footer does not describe its columns") from error
    raise FormatError(f"its footer has {len(places)} lists of row groups")


def row_groups_of(file: Path) -> list[RowGroup]:
    """The same of a file that is not compressed as a whole. Raises OSError, too."""
    with file.open("rb") as stream:
        return row_groups(read_footer(stream, stream.seek(0, io.SEEK_END)))


def read_footer(stream: Any, size: int) -> bytes:
    """The bytes of a file's FileMetaData.

    Args:
        stream: the file; it must be seekable.
        size: of it, in bytes.

    Raises:
        FormatError: it ends within them.
    """
    stream.seek(max(0, size - _TAIL))
    length = int.from_bytes(stream.read(_TAIL)[:4], "little")
    if length > size - _TAIL:
        raise FormatError("its footer is longer than the file")
    stream.seek(size - _TAIL - length)
    parts: list[bytes] = []
    while length and (part := stream.read(length)):  # a decompressed stream gives less at a time than it is asked for
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def _group(octets: bytes, at: int) -> RowGroup:
    found: dict[int, Any] = {}
    for number, kind, place in fields_of(octets, at):
        if number == _COLUMNS and kind == LIST:
            found[number] = tuple(_chunk(octets, start) for start in elements_of(octets, place, STRUCT))
        elif number == _ROWS and kind == I64:
            found[number] = signed(octets, place)
    return RowGroup(found[_ROWS], found[_COLUMNS])


def _chunk(octets: bytes, at: int) -> ColumnChunk:
    places = [place for number, kind, place in fields_of(octets, at) if number == _METADATA and kind == STRUCT]
    if len(places) != 1:  # it is encrypted, or described twice
        raise KeyError(_METADATA)
    found: dict[int, Any] = {}
    for number, kind, place in fields_of(octets, places[0]):
        if kind in (I32, I64):
            found[number] = signed(octets, place)
        elif number == _PATH and kind == LIST:
            found[number] = ".".join(text(octets, start) for start in elements_of(octets, place, BINARY))
    return ColumnChunk(
        found[_PATH],
        _TYPES[max(found[_TYPE], 0)],
        _CODECS[max(found[_CODEC], 0)],
        found[_VALUES],
        found[_PLAIN],
        found[_STORED],
        found[_DATA],
        found.get(_DICTIONARY),
    )
