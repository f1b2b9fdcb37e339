"""Parquet files put together by hand, whose footers and pages say what the test wants. Bytes are those of the format.

What belongs here: Thrift's compact protocol as parquet.thrift uses it, written. The package has a reader of its own.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence

import pyarrow as pa

PLAIN, RLE, DELTA_BINARY_PACKED, DELTA_BYTE_ARRAY, RLE_DICTIONARY = 0, 3, 5, 7, 8  # encodings
DATA_PAGE, INDEX_PAGE, DICTIONARY_PAGE = 0, 1, 2
BYTE_ARRAY, INT32 = 6, 1  # physical types
_ZSTD, _REQUIRED, _REPEATED = 6, 0, 2


@dataclasses.dataclass
class Page:
    """A page of a column.

    Attributes:
        content: compressed.
        size: what its header gives for the bytes of it once decompressed.
        values: what its header gives for the number of its values.
        kind: DATA_PAGE or DICTIONARY_PAGE.
        encoding: of its values.
        header: bytes in the place of a header, where the test has its own.
    """

    content: bytes
    size: int
    values: int
    kind: int = DATA_PAGE
    encoding: int = PLAIN
    header: bytes | None = None


def zstd(octets: bytes) -> bytes:
    """Compress bytes."""
    packed: bytes = pa.compress(octets, "zstd", asbytes=True)
    return packed


def zstd_of_zeros(size: int) -> bytes:
    """The zstd stream of `size` zeros, a length that a page can have, made in little memory."""
    packed = pa.BufferOutputStream()
    block = memoryview(bytes(1 << 24))
    with pa.CompressedOutputStream(packed, "zstd") as stream:
        while size:
            stream.write(block[:size])
            size -= min(size, len(block))
    found: bytes = packed.getvalue().to_pybytes()
    return found


def varint(number: int) -> bytes:
    """A number of seven bits a byte."""
    octets = bytearray()
    while number > 0x7F:
        octets.append(number & 0x7F | 0x80)
        number >>= 7
    octets.append(number)
    return bytes(octets)


def i32(number: int) -> bytes:
    """A number with its sign."""
    return varint((number << 1 ^ number >> 63) & (1 << 64) - 1)


def struct(*fields: tuple[int, int, bytes]) -> bytes:
    """A structure of fields: number, kind (5 i32, 6 i64, 8 text, 9 list, 12 structure) and bytes."""
    return b"".join(bytes([kind]) + i32(number) + value for number, kind, value in fields) + b"\0"


def a_list(kind: int, values: Sequence[bytes]) -> bytes:
    """A list of values of one kind."""
    return bytes([0xF0 | kind]) + varint(len(values)) + b"".join(values)


def text(value: str) -> bytes:
    """A text with its length."""
    return varint(len(value)) + value.encode()


def page_bytes(page: Page) -> bytes:
    """A page with its header."""
    body = [(1, 5, i32(page.values)), (2, 5, i32(page.encoding))]
    if page.kind == DATA_PAGE:
        body += [(3, 5, i32(RLE)), (4, 5, i32(RLE))]
    sizes = [(1, 5, i32(page.kind)), (2, 5, i32(page.size)), (3, 5, i32(len(page.content)))]
    header = struct(*sizes, (7 if page.kind == DICTIONARY_PAGE else 5, 12, struct(*body)))
    return (header if page.header is None else page.header) + page.content


def parquet(
    pages: Sequence[Page], rows: int, values: int, claimed: int, kind: int = BYTE_ARRAY, repeated: bool = False
) -> bytes:
    """A file of one column `question`, compressed with zstd.

    Args:
        pages: of the column.
        rows: what the footer gives for the number of rows.
        values: what it gives for the number of the column's values.
        claimed: what it gives for the bytes of the column once decompressed.
        kind: physical type of the values.
        repeated: whether each row has a list of them.
    """
    return columns_of([pages], rows, values, claimed, kind, repeated)


def columns_of(
    columns: Sequence[Sequence[Page]], rows: int, values: int, claimed: int, kind: int, repeated: bool = False
) -> bytes:
    """The same with several columns."""
    out = io.BytesIO()
    out.write(b"PAR1")
    chunks, schema = [], [struct((4, 8, text("schema")), (5, 5, i32(len(columns))))]
    for number, pages in enumerate(columns):
        name = "question" if number == 0 else f"more{number}"
        start = out.tell()
        dictionary: list[tuple[int, int, bytes]] = []
        data = start
        for page in pages:
            if page.kind == DICTIONARY_PAGE:
                dictionary = [(11, 6, i32(out.tell()))]
            elif data == start and dictionary:
                data = out.tell()
            out.write(page_bytes(page))
        about = struct(
            (1, 5, i32(kind)),
            (2, 9, a_list(5, [i32(page.encoding) for page in pages] + [i32(RLE)])),
            (3, 9, a_list(8, [text(name)])),
            (4, 5, i32(_ZSTD)),
            (5, 6, i32(values)),
            (6, 6, i32(claimed)),
            (7, 6, i32(out.tell() - start)),
            (9, 6, i32(data)),
            *dictionary,
        )
        chunks.append(struct((2, 6, i32(start)), (3, 12, about)))
        schema.append(struct((1, 5, i32(kind)), (3, 5, i32(_REPEATED if repeated else _REQUIRED)), (4, 8, text(name))))
    group = struct((1, 9, a_list(12, chunks)), (2, 6, i32(claimed * len(columns))), (3, 6, i32(rows)))
    footer = struct((1, 5, i32(1)), (2, 9, a_list(12, schema)), (3, 6, i32(rows)), (4, 9, a_list(12, [group])))
    return out.getvalue() + footer + len(footer).to_bytes(4, "little") + b"PAR1"
