"""Texts that lists take from a dictionary: they are counted as they are, and lies are named."""

from __future__ import annotations

import io
import random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dt2it_pipeline.ingest.readers import bounds, parquet_dictionaries, parquet_rows
from dt2it_pipeline.ingest.readers.parquet_dictionaries import taken_bytes
from dt2it_pipeline.ingest.readers.parquet_pages import ChunkedFile, EncodedPage, FormatError, Pages
from dt2it_pipeline.ingest.rows import SourceError
from dt2it_pipeline_tests.support.parquet_lies import varint

FEW = [b"", b"a", b"bc" * 500, b"d" * 7]
RANDOM = random.Random(3)
WORDS = [bytes([97 + number % 26]) * (number % 300) + str(number).encode() for number in range(900)]


def column(file: bytes) -> tuple[Pages, Any, tuple[int, int]]:
    """What the pages of the only column of a file announce, its metadata, and its levels."""
    chunks = ChunkedFile(io.BytesIO(file))
    parquet = pq.ParquetFile(chunks, pre_buffer=False)
    part = parquet.metadata.row_group(0).column(0)
    about = parquet.schema.column(0)
    return chunks.read_group([part])[0], part, (about.max_repetition_level, about.max_definition_level)


def written(rows: list[Any], kind: pa.DataType, **how: Any) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table({"texts": pa.array(rows, kind)}), stream, **how)
    return stream.getvalue()


ROWS = {
    "runs": [[FEW[row // 40 % 4]] * 50 for row in range(200)],
    "packed": [[RANDOM.choice(FEW) for _ in range(row % 7)] for row in range(500)],
    "many": [[RANDOM.choice(WORDS) for _ in range(row % 5)] for row in range(3000)],
    "nulls": [None if row % 3 else [RANDOM.choice([None, *FEW]) for _ in range(row % 9)] for row in range(500)],
    "one": [[FEW[2]] * 1000],
    "none": [[None] * 3],
}


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("how", [("snappy", "1.0"), ("zstd", "2.0"), ("none", "2.0")])
def test_texts_of_lists_are_counted_as_they_are(
    monkeypatch: pytest.MonkeyPatch, rows: str, how: tuple[str, str]
) -> None:
    monkeypatch.setattr(parquet_dictionaries, "_AT_ONCE", 1 << 9)  # over several rounds of unpacking
    file = written(ROWS[rows], pa.list_(pa.binary()), compression=how[0], data_page_version=how[1], data_page_size=1500)
    announced, part, levels = column(file)
    texts = [len(text) for row in ROWS[rows] for text in row or [] if text is not None]
    codec = part.compression
    exact = sum(texts)
    padding = 7 * len(announced.indexed) * max(texts, default=0)  # of places that are packed by eight
    counted = taken_bytes(announced, codec, levels, None, exact + padding)
    assert exact <= counted <= exact + padding
    if exact:
        assert taken_bytes(announced, codec, levels, None, exact // 2) > exact // 2
        assert announced.dictionary is not None
        values = sum(page.values for page in announced.indexed)
        bound = values * announced.dictionary.size
        assert taken_bytes(announced, codec, levels, None, bound) == bound
        assert taken_bytes(announced, codec, levels, None, bound - 1) <= values * max(texts) < bound


def test_values_of_one_length_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    file = written([[b"x" * 100] * 400, [b"y" * 100]], pa.list_(pa.binary(100)))
    announced, part, levels = column(file)
    assert part.physical_type == "FIXED_LEN_BYTE_ARRAY"
    assert taken_bytes(announced, part.compression, levels, 100, 0) == 40_100
    monkeypatch.setattr(bounds, "_FREE", 1 << 14)
    monkeypatch.setattr(bounds, "_RATIO", 100)
    with pytest.raises(
        SourceError, match=r"column 'texts.list.element' of rows.parquet expands to more than 100 times"
    ):
        list(parquet_rows.parquet_rows(io.BytesIO(file), "rows.parquet", ""))
    monkeypatch.setattr(bounds, "_FREE", 1 << 17)
    assert len(list(parquet_rows.parquet_rows(io.BytesIO(file), "rows.parquet", ""))) == 2


@pytest.mark.parametrize("listed", [True, False])
def test_rows_of_arrows_own_dictionaries_are_counted(monkeypatch: pytest.MonkeyPatch, listed: bool) -> None:
    """Arrow notes in the file that a column was one of a dictionary, and reads it as one: its rows seem small."""
    monkeypatch.setattr(bounds, "_FREE", 1 << 16)
    monkeypatch.setattr(bounds, "_RATIO", 20)
    values = pa.DictionaryArray.from_arrays(pa.array([0] * 640, pa.int32()), pa.array(["x" * 1000]))
    kept: Any = pa.ListArray.from_arrays(pa.array(range(0, 641, 10), pa.int32()), values) if listed else values
    stream = io.BytesIO()
    pq.write_table(pa.table({"texts": kept}), stream, compression="zstd")
    with pytest.raises(SourceError, match="expands to more than 20 times"):
        list(parquet_rows.parquet_rows(stream, "rows.parquet", ""))


def plain(*texts: bytes) -> bytes:
    return b"".join(len(text).to_bytes(4, "little") + text for text in texts)


def taken(dictionary: bytes, values: int, places: bytes, count: int = 10) -> int:
    """Of pages without compression and levels."""
    pages = [
        EncodedPage(memoryview(octets), len(octets), number, 8, 0, (3, 3), False)
        for octets, number in ((dictionary, values), (places, count))
    ]
    return taken_bytes(Pages(0, count, 0, (), pages[0], (pages[1],)), "UNCOMPRESSED", (0, 0), None, 0)


def test_places_are_read_as_they_stand() -> None:
    run = varint(5 << 1) + b"\1"
    assert taken(plain(b"abc", b"de"), 2, b"\1" + run * 2) == 10  # no further than needed
    pages = [b"\1" + run, b"\0" + varint(10 << 1), b"\1" + varint(1 << 1 | 1) + b"\xff", b"\1" + varint(3 << 1) + b"\7"]
    assert [taken(plain(b"abc", b"de"), 2, page) for page in pages] == [10, 30, 16, 0]


@pytest.mark.parametrize(
    ("dictionary", "values", "places", "fault"),
    [
        (plain(b"abc")[:-1], 1, b"\0\x14", "ends within its last text"),
        (plain(b"abc"), 2, b"\0\x14", "ends before its last text"),
        ((-5).to_bytes(4, "little", signed=True) + b"abcdefgh", 1, b"\0\x14", "gives -5 for the length of a text"),
        (plain(b"abc"), 1, b"\x21\x14", "places of 33 bits"),
        (plain(b"abc"), 1, b"\0\x80", "ends within a run"),
        (plain(b"abc"), 1, b"\0\0" * 5, "a run of no places"),
    ],
)
def test_what_is_no_dictionary_is_named(dictionary: bytes, values: int, places: bytes, fault: str) -> None:
    with pytest.raises(FormatError, match=fault):
        taken(dictionary, values, places)
