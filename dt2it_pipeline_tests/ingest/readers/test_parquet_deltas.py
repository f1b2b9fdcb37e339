"""Lengths in pages of a delta encoding: real files are read as before, and lies take no memory."""

from __future__ import annotations

import io
import itertools
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dt2it_pipeline.ingest.readers import parquet_deltas
from dt2it_pipeline.ingest.readers.parquet_deltas import shared_bytes
from dt2it_pipeline.ingest.readers.parquet_pages import ChunkedFile, EncodedPage, FormatError
from dt2it_pipeline.ingest.readers.parquet_rows import parquet_rows
from dt2it_pipeline.ingest.rows import SourceError
from dt2it_pipeline_tests.support import parquet_lies
from dt2it_pipeline_tests.support.parquet_lies import (
    DELTA_BYTE_ARRAY,
    DELTA_LENGTH_BYTE_ARRAY,
    Page,
    deltas,
    same,
    varint,
    zstd,
)
from dt2it_pipeline_tests.support.reading_memory import peak_mib

ENCODINGS = {"DELTA_BYTE_ARRAY": DELTA_BYTE_ARRAY, "DELTA_LENGTH_BYTE_ARRAY": DELTA_LENGTH_BYTE_ARRAY}


def read(content: bytes) -> list[Any]:
    """The values of all rows."""
    return [row[1] for row in parquet_rows(io.BytesIO(content), "rows.parquet", "")]


def page_of(shared: bytes, own: bytes, values: int) -> EncodedPage:
    """A page that is not compressed, of a column without levels."""
    return EncodedPage(memoryview(shared + own), len(shared + own), values, DELTA_BYTE_ARRAY, None, (3, 3), True)


def sum_of(page: EncodedPage, sizes: list[int] | None = None) -> int:
    check = [].append if sizes is None else sizes.append
    return shared_bytes(page, "UNCOMPRESSED", (0, 0), check, wanted=True)


@pytest.mark.parametrize("most", [0, 1, 90, 2**16, 2**31 - 1])
@pytest.mark.parametrize(("block", "parts"), [(128, 4), (128, 1), (256, 8), (2**17, 1), (2**17, 4)])
def test_lengths_are_added_up_as_they_were_written(
    monkeypatch: pytest.MonkeyPatch, most: int, block: int, parts: int
) -> None:
    drawn = random.Random(most + parts)
    for pieces in (parquet_deltas._PIECES, 3):  # over several rounds of unpacking, too
        monkeypatch.setattr(parquet_deltas, "_PIECES", pieces)
        for count in (1, 2, 31, 33, 128, 129, 130, 3000):
            lengths = [drawn.randint(0, most) for _ in range(count)]
            sizes: list[int] = []
            page = page_of(deltas(lengths, block, parts), same(0, count), count)
            assert sum_of(page, sizes) == sum(lengths)
            assert sizes == [4 * count, 8 * count]


def test_a_long_run_of_lengths_takes_no_time() -> None:
    assert sum_of(page_of(same(7, 10**8), same(0, 10**8), 10**8)) == 7 * 10**8


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["snappy", "zstd", "none", "gzip", "brotli", "lz4"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_real_files_have_the_lengths_that_are_found(version: str, compression: str, encoding: str) -> None:
    lists = [[f"start/{row // 7}/{'x' * (row % 90)}{row * n}" for n in range(row % 5)] or None for row in range(6000)]
    table = pa.table({
        "lists": lists,
        "texts": [str(row) * (row % 9) if row % 3 else None for row in range(6000)],
        "nested": [[["a" * row] * (row % 3)] for row in range(6000 // 30)] * 30,
        "nothing": pa.array([None] * 6000, pa.string()),
        "empty": pa.array([[]] * 6000, pa.list_(pa.string())),
    })  # fmt: skip
    out = io.BytesIO()
    pq.write_table(
        table, out, compression=compression, data_page_version=version, use_dictionary=False, data_page_size=30_000,
        column_encoding={path: encoding for path in (
            "lists.list.element", "texts", "nested.list.element.list.element", "nothing", "empty.list.element"
        )},
    )  # fmt: skip
    assert read(out.getvalue()) == table.to_pylist()
    chunks = ChunkedFile(out)
    file = pq.ParquetFile(chunks, pre_buffer=False)
    columns = [file.metadata.row_group(0).column(number) for number in range(file.metadata.num_columns)]
    pages = chunks.read_group(columns)[0].deltas
    assert len(pages) > 1
    levels = file.schema.column(0).max_repetition_level, file.schema.column(0).max_definition_level
    sizes: list[int] = []
    found = sum(shared_bytes(page, columns[0].compression, levels, sizes.append, wanted=True) for page in pages)
    texts = [text for texts in lists for text in texts or ()]
    assert max(sizes) <= 4 * len(ENCODINGS) * len(texts)
    if encoding == "DELTA_LENGTH_BYTE_ARRAY":
        assert found == 0 and sum(sizes) == 4 * len(texts)
    else:  # within a page a text begins as the one before it
        together = sum(alike(before, after) for before, after in itertools.pairwise(texts))
        assert together - 120 * len(pages) <= found <= together


def alike(before: str, after: str) -> int:
    """How many letters two texts begin with together."""
    return next(
        (n for n, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after))
    )


def test_fixed_sizes_have_lengths_too() -> None:
    out = io.BytesIO()
    table = pa.table({"a": pa.array([b"abcd", b"abce"] * 100, pa.binary(4))})
    pq.write_table(table, out, use_dictionary=False, column_encoding={"a": "DELTA_BYTE_ARRAY"})
    assert read(out.getvalue()) == table.to_pylist()


def in_a_list(shared: bytes, own: bytes, text: bytes, values: int) -> bytes:
    """A file of one row, a list of texts."""
    levels = (varint(1 << 1) + b"\0" + varint(values - 1 << 1) + b"\1", varint(values << 1) + b"\1")
    content = b"".join(len(each).to_bytes(4, "little") + each for each in levels) + shared + own + text
    page = Page(zstd(content), len(content), values, encoding=DELTA_BYTE_ARRAY)
    return parquet_lies.parquet([page], 1, values, 99, repeated=True)


def many_lengths(count: int, encoding: int, values: int | None = None) -> bytes:
    """A file of empty texts, with so many lengths."""
    content = same(0, count) * (2 if encoding == DELTA_BYTE_ARRAY else 1)
    rows = count if values is None else values
    return parquet_lies.parquet([Page(zstd(content), len(content), rows, encoding=encoding)], rows, rows, 99)


def starts_again(size: int, times: int) -> bytes:
    """A list of one long text many times, which stands there once."""
    return in_a_list(
        deltas([0] + [size] * (times - 1)), deltas([size] + [0] * (times - 1)), b"x" * size, times
    )  # fmt: skip


def test_files_made_by_hand_are_read_where_they_tell_the_truth() -> None:
    """Else the tests below could fail for another reason."""
    assert read(starts_again(5, 300)) == [{"question": [b"xxxxx"] * 300}]
    for encoding in ENCODINGS.values():
        assert read(many_lengths(900, encoding)) == [{"question": b""}] * 900


BEYOND = r"column 'question' of bomb.parquet expands to more than 200 times its size \("
LIES: dict[str, tuple[Callable[[], bytes], str]] = {
    "a start that a list has again and again": (lambda: starts_again(64_000_000, 130), f"{BEYOND}8,320,000,"),
    "the lengths of texts": (
        lambda: many_lengths(2_100_000_000, DELTA_LENGTH_BYTE_ARRAY, values=5),
        f"{BEYOND}8,400,000,000",
    ),
    "the lengths of starts": (
        lambda: many_lengths(2_100_000_000, DELTA_BYTE_ARRAY, values=5),
        f"{BEYOND}8,400,000,000",
    ),
    "as many lengths as its header says": (
        lambda: many_lengths(2_100_000_000, DELTA_BYTE_ARRAY),
        f"{BEYOND}8,400,000,000",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_lengths_are_refused_before_they_take_memory(tmp_path: Path, lie: str) -> None:
    made, fault = LIES[lie]
    (tmp_path / "bomb.parquet").write_bytes(made())
    assert (tmp_path / "bomb.parquet").stat().st_size < 2**13
    pq.write_table(pa.table({"question": ["a"]}), tmp_path / "good.parquet")
    peak, words = peak_mib(tmp_path / "bomb.parquet", tmp_path / "good.parquet")
    assert re.search(fault, words), words
    assert peak < 300, peak


@pytest.mark.parametrize(("shared", "fault"), [
    (same(0, 6), "a page of 5 values gives 6 for the number of their lengths"),
    (deltas([3, 0, 2, 1, 2**31]), "below 0, or 2 GiB and more"),
    (deltas([3, 0, 2, -1, 5]), "below 0, or 2 GiB and more"),
    (varint(128) + varint(4) + varint(5) + parquet_lies.i32(-1), "for the blocks of its lengths and the first"),
    (varint(128) + varint(0) + varint(5) + parquet_lies.i32(1), "gives 128, 0 and 1 for the blocks"),
    (varint(128) + varint(5) + varint(5) + parquet_lies.i32(1), "gives 128, 5 and 1 for the blocks"),
    (varint(128) + varint(4) + varint(5) + parquet_lies.i32(1) + parquet_lies.i32(2**33), "lengths of a page differ"),
    (varint(128) + varint(1) + varint(5) + parquet_lies.i32(1) + b"\0" + bytes([33]), "differences of 33 bits"),
    (varint(128) + varint(1) + varint(5) + parquet_lies.i32(1) + b"\0" + bytes([9]), "end before the last one"),
    (b"\x80" * 20, "a number of more than ten bytes"),
])  # fmt: skip
def test_lengths_that_are_none_are_refused(shared: bytes, fault: str) -> None:
    with pytest.raises(FormatError, match=fault):
        sum_of(page_of(shared, b"", 5))


def test_damaged_lengths_end_with_an_error_of_ours_or_are_read() -> None:
    drawn = random.Random(5)
    whole = deltas([drawn.randint(0, 300) for _ in range(400)]) + deltas([1] * 400)
    for _ in range(3000):
        damaged = bytearray(whole[: drawn.choice([len(whole), drawn.randrange(len(whole))])])
        for _ in range(drawn.randint(0, 3)):
            if damaged:
                damaged[drawn.choice([drawn.randrange(len(damaged)), 0, 1, 2, 3]) % len(damaged)] = drawn.randrange(256)
        try:
            found = sum_of(page_of(bytes(damaged), b"", 400))
        except FormatError:
            continue
        assert 0 <= found < 400 * 2**31


@pytest.mark.parametrize("said", [None, True, False])
@pytest.mark.parametrize("compressed", [True, False])
def test_a_page_of_version_2_is_read_as_arrow_reads_it(said: bool | None, compressed: bool) -> None:
    """Where it says nothing, it is compressed."""
    plain = deltas([3] * 5) + b"abc" * 5
    page = Page(zstd(plain) if compressed else plain, len(plain), 5, encoding=DELTA_LENGTH_BYTE_ARRAY)
    page.header = parquet_lies.header_v2(page, said)
    made = parquet_lies.parquet([page], 5, 5, 99)
    if compressed == (said is not False):
        assert read(made) == pq.read_table(io.BytesIO(made)).to_pylist() == [{"question": b"abc"}] * 5
        return
    with pytest.raises(SourceError, match="is no whole Parquet file"):
        read(made)
    with pytest.raises((pa.ArrowException, OSError)):
        pq.read_table(io.BytesIO(made))


@pytest.mark.parametrize("blocks", [0, 1, 2])
@pytest.mark.parametrize("encoding", ENCODINGS.values())
def test_hadoops_lz4_is_read_as_arrow_reads_it(monkeypatch: pytest.MonkeyPatch, blocks: int, encoding: int) -> None:
    """Parquet's first LZ4 is blocks behind their sizes, as Hadoop wrote them, or a block alone, as others did."""
    texts = [b"x" * (number % 50) for number in range(300)]
    plain = deltas([0] * 300) * (encoding == DELTA_BYTE_ARRAY) + deltas([*map(len, texts)]) + b"".join(texts)
    cut = len(plain) // 2 if blocks == 2 else len(plain)
    content = b""
    for part in filter(None, (plain[:cut], plain[cut:])):
        packed = pa.compress(part, "lz4_raw", asbytes=True)
        content += (len(part).to_bytes(4) + len(packed).to_bytes(4) if blocks else b"") + packed
    monkeypatch.setattr(parquet_lies, "_ZSTD", 5)  # the number of that LZ4
    made = parquet_lies.parquet([Page(content, len(plain), 300, encoding=encoding)], 300, 300, 99)
    assert read(made) == pq.read_table(io.BytesIO(made)).to_pylist() == [{"question": text} for text in texts]
    damaged = parquet_lies.parquet([Page(content[:-3], len(plain), 300, encoding=encoding)], 300, 300, 99)
    with pytest.raises(SourceError, match="is no whole Parquet file"):
        read(damaged)
