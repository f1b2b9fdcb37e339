"""Parquet files put together by hand, whose footers and pages say what the test wants. Bytes are those of the format.

What belongs here: Thrift's compact protocol as parquet.thrift uses it, written. The package has a reader of its own.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
from collections.abc import Sequence

import pyarrow as pa

PLAIN, RLE, DELTA_BINARY_PACKED, DELTA_LENGTH_BYTE_ARRAY, DELTA_BYTE_ARRAY, RLE_DICTIONARY = 0, 3, 5, 6, 7, 8
DATA_PAGE, INDEX_PAGE, DICTIONARY_PAGE, DATA_PAGE_V2 = range(4)
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


def deltas(values: Sequence[int], block: int = 128, parts: int = 4) -> bytes:
    """Numbers in DELTA_BINARY_PACKED, in blocks of `parts` parts each."""
    out = varint(block) + varint(parts) + varint(len(values)) + i32(values[0])
    steps = [after - before for before, after in itertools.pairwise(values)]
    each = block // parts
    for start in range(0, len(steps), block):
        low = min(steps[start : start + block])
        widths, packed = bytearray(), b""
        for first in range(start, start + block, each):
            above = [step - low for step in steps[first : min(first + each, start + block)]]
            widths.append(max((step.bit_length() for step in above), default=0))
            number = sum(step << place * widths[-1] for place, step in enumerate(above))
            packed += number.to_bytes(each * widths[-1] // 8 if above else 0, "little")
        out += i32(low) + bytes(widths) + packed
    return out


def same(value: int, count: int) -> bytes:
    """One number many times in DELTA_BINARY_PACKED, in a dozen bytes."""
    return varint(-(-count // 128) * 128) + varint(1) + varint(count) + i32(value) + i32(0) + b"\0"


def header_v2(page: Page, compressed: bool | None, levels: tuple[int, int] = (0, 0)) -> bytes:
    """The header of a page of version 2; levels of definition and repetition take so many bytes of its content."""
    body = [(1, page.values), (2, 0), (3, page.values), (4, page.encoding), (5, levels[0]), (6, levels[1])]
    said = [] if compressed is None else [(7, 1 if compressed else 2, b"")]
    return struct(
        (1, 5, i32(DATA_PAGE_V2)), (2, 5, i32(page.size)), (3, 5, i32(len(page.content))),
        (8, 12, struct(*((number, 5, i32(value)) for number, value in body), *said)),
    )  # fmt: skip


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
