"""Files that make much of little cost their own source, in bounded memory."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dt2it_pipeline.ingest.manifest import ManifestError, load_manifest
from dt2it_pipeline.ingest.readers import parquet_pages, parquet_rows
from dt2it_pipeline.ingest.readers.parquet_footer import row_groups
from dt2it_pipeline.ingest.rows import Quarantined, Row, SourceError
from dt2it_pipeline_tests.ingest.readers.conftest import SMALL
from dt2it_pipeline_tests.support import parquet_lies
from dt2it_pipeline_tests.support.bounded_sources import LINE, ROW, read, repeated, tar_with
from dt2it_pipeline_tests.support.parquet_lies import DICTIONARY_PAGE, RLE_DICTIONARY, Page, zstd
from dt2it_pipeline_tests.support.reading_memory import peak_mib


@pytest.mark.usefixtures("small")
def test_a_line_without_end_costs_that_line(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(LINE + b"x" * (3 * SMALL) + b"\n" + LINE + b'{"a": "' + b"x" * SMALL)
    found = read(tmp_path / "rows.jsonl")
    assert [isinstance(each, Row) for each in found] == [True, False, True, False]
    assert found[1] == Quarantined("line 2", "line too long", "more than 4,096 bytes")


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("rows.csv", b"a,b\n1,2\n" + b"x" * 9000, "line 3 of rows.csv is longer than 4,096 characters"),
        ("rows.json", b"[" + LINE + b', {"a": "' + b"x" * 3_000_000, "element 2 of rows.json is longer than 4,096"),
        ("rows.json", b'{\n"a": "' + b"x" * 3_000_000, "rows.json is one JSON object of more than 12,288 characters"),
        ("rows.jsonl.gz", gzip.compress(LINE + b"\n" * 900_000), "rows.jsonl.gz expands to more than 200 times"),
        ("rows.jsonl.zst", pa.compress(b"\n" * 3_000_000, "zstd", asbytes=True), "rows.jsonl.zst expands to more than"),
    ],
)
def test_what_is_meant_to_fill_memory_ends_with_one_error(
    tmp_path: Path, name: str, content: bytes, fault: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=f"source 'own': {fault}"):
        read(tmp_path / name)


@pytest.mark.usefixtures("small")
def test_members_of_archives_and_columns_are_bounded_before_they_are_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "rows.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("rows.jsonl", LINE + b"\n" * 900_000)
    with pytest.raises(SourceError, match=r"rows.jsonl of .*rows.zip expands to more than 200 times"):
        read(tmp_path / "rows.zip")
    table = pa.table({"question": ["x" * 2_000_000], "chosen": ["a"], "rejected": ["b"]})
    pq.write_table(table, tmp_path / "rows.parquet", compression="zstd")
    with pytest.raises(SourceError, match=r"column 'question' of rows.parquet expands to more than 200 times"):
        read(tmp_path / "rows.parquet")


def test_ordinary_files_are_read_as_before(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(LINE * 5000))
    assert len(read(tmp_path / "rows.jsonl.gz")) == 5000
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([ROW] * 500), buffer)
    (tmp_path / "rows.parquet.gz").write_bytes(gzip.compress(buffer.getvalue()))
    assert len(read(tmp_path / "rows.parquet.gz")) == 500


@pytest.mark.heavy
def test_a_bomb_of_gigabytes_takes_bounded_memory(tmp_path: Path) -> None:
    """More than a gigabyte without a line's end, in one megabyte."""
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(b"a" * (1 << 24)) * 72)
    code = (
        "import sys\nfrom pathlib import Path\nfrom dt2it_pipeline.observe.memory import peak_memory\n"
        "from dt2it_pipeline_tests.ingest.readers.test_bounds import read\n"
        "try:\n    read(Path(sys.argv[1]))\nexcept Exception as error:\n    print(type(error).__name__, error)\n"
        "print(peak_memory())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "rows.jsonl.gz")], capture_output=True, text=True, timeout=120
    )
    *said, peak = done.stdout.splitlines()
    assert said and said[0].startswith("SourceError source 'own': rows.jsonl.gz expands to more than 200 times")
    assert int(peak) < 1_200_000_000, f"{int(peak) / 1e9:.2f} GB"


@pytest.mark.parametrize("name", ["x" * 101, "..", "-x", "a/b", "a\nb", ""])
def test_names_of_sources_fit_into_files_names(tmp_path: Path, name: str) -> None:
    (tmp_path / "own.yaml").write_text(json.dumps({"name": name, "kind": "preferences", "path": "x", "licence": "MIT"}))
    with pytest.raises(ManifestError, match="name"):
        load_manifest(tmp_path / "own.yaml")


@pytest.mark.usefixtures("small")
def test_rows_of_a_dictionary_are_counted_as_they_are_read(tmp_path: Path) -> None:
    table = pa.table({"question": ["q" * 2000] * 5000, "chosen": ["a"] * 5000, "rejected": ["b"] * 5000})
    pq.write_table(table, tmp_path / "rows.parquet", compression="zstd")
    with pytest.raises(SourceError, match=r"source 'own': rows.parquet expands to more than 200 times"):
        read(tmp_path / "rows.parquet")
    assert (
        pq.ParquetFile(tmp_path / "rows.parquet").metadata.row_group(0).total_byte_size < 1 << 16
    )  # the footer's word


@pytest.mark.parametrize(
    ("dictionary", "least", "most"),
    [({"dictionary_pagesize_limit": 1 << 12, "write_batch_size": 4}, 64, 64), ({}, 1, 2)],
)
@pytest.mark.parametrize("compression", ["snappy", "zstd", "none"])
def test_batches_are_small_only_where_a_dictionary_is_large(
    monkeypatch: pytest.MonkeyPatch, dictionary: dict[str, Any], least: int, most: int, compression: str
) -> None:
    """The first has a dictionary that the writer gave up, as most long columns have: nearly all values are plain."""
    monkeypatch.setattr(parquet_rows, "_BATCH_BYTES", 1 << 20)
    table = pa.table({"question": [f"{row:06d}" * 150 for row in range(640)], "numbers": [[row] for row in range(640)]})
    stream = io.BytesIO()
    pq.write_table(table, stream, compression=compression, **dictionary)
    chunks = parquet_pages.ChunkedFile(stream)
    batches = list(
        parquet_rows._batches(
            pq.ParquetFile(chunks, pre_buffer=False), row_groups(chunks.footer()), chunks, "rows.parquet"
        )
    )
    assert least <= max(batch.num_rows for batch in batches) <= most
    assert pa.Table.from_batches(batches).equals(table)


def test_real_bombs_take_little_memory(tmp_path: Path) -> None:
    harmless = tar_with(tmp_path / "good.tar.gz", "w:gz", ("rows.jsonl", LINE))
    member = tarfile.TarInfo("rows.jsonl")
    member.size = 3 * 2**29
    (tmp_path / "bomb.tar.gz").write_bytes(repeated(member.tobuf(), bytes(2**20), 3 * 2**9))
    assert (tmp_path / "bomb.tar.gz").stat().st_size < 2**23
    peak, words = peak_mib(tmp_path / "bomb.tar.gz", harmless)
    assert "expands to more than 200 times" in words and peak < 700, peak
    pq.write_table(pa.Table.from_pylist([ROW]), tmp_path / "good.parquet")
    pq.write_table(pa.table({"question": long_values()}), tmp_path / "bomb.parquet", compression="zstd")
    assert (tmp_path / "bomb.parquet").stat().st_size < 2**20
    peak, words = peak_mib(tmp_path / "bomb.parquet", tmp_path / "good.parquet")
    assert "expands to more than 200 times" in words and peak < 1500, peak


def long_values() -> pa.Array:
    """2,048 rows of one text of 32 MiB, which lies in memory once."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * 2048, pa.int32()), pa.array(["x" * 2**25]))


def length_of(octets: bytes) -> bytes:
    """A text as a plain page has it."""
    return len(octets).to_bytes(4, "little") + octets


def in_every_row(text: bytes, rows: int, size: int | None = None, values: int = 1) -> list[Page]:
    """A dictionary of one text, and a page in which each row has it."""
    held = length_of(text)
    keys = bytes([0]) + parquet_lies.varint(rows << 1)
    return [
        Page(zstd(held), len(held) if size is None else size, values, DICTIONARY_PAGE),
        Page(zstd(keys), len(keys), rows, encoding=RLE_DICTIONARY),
    ]


def one_long_list(elements: int, text: bytes = b"a") -> list[Page]:
    """One row: a list that has one text many times, in some twenty bytes beside the text."""
    of_one_row = parquet_lies.varint(1 << 1) + b"\0" + parquet_lies.varint(elements - 1 << 1) + b"\1"
    present = parquet_lies.varint(elements << 1) + b"\1"
    content = length_of(of_one_row) + length_of(present) + bytes([0]) + parquet_lies.varint(elements << 1)
    return [in_every_row(text, 1)[0], Page(zstd(content), len(content), elements, encoding=RLE_DICTIONARY)]


def test_files_made_by_hand_are_read_where_they_tell_the_truth(tmp_path: Path) -> None:
    """Else the tests below could fail for another reason."""
    (tmp_path / "rows.parquet").write_bytes(parquet_lies.parquet(in_every_row(b"abc", 5), 5, 5, 60))
    assert [row.values for row in read(tmp_path / "rows.parquet")] == [{"question": b"abc"}] * 5
    (tmp_path / "rows.parquet").write_bytes(parquet_lies.parquet(one_long_list(7), 1, 7, 60, repeated=True))
    assert [row.values for row in read(tmp_path / "rows.parquet")] == [{"question": [b"a"] * 7}]


ZEROS = 1_900_000_000
BEYOND = "expands to more than 200 times its size"
LIES = {
    "a page of gigabytes": (
        lambda: parquet_lies.parquet([Page(parquet_lies.zstd_of_zeros(ZEROS), ZEROS, ZEROS // 4)], 99, ZEROS // 4, 99),
        f"column 'question' of bomb.parquet {BEYOND} \\(1,900,000,000 bytes of 58,",
    ),
    "many columns of less": (
        lambda: parquet_lies.columns_of(
            [[Page(parquet_lies.zstd_of_zeros(2**29), 2**29, 2**27)]] * 6, 2**27, 2**27, 99, parquet_lies.BYTE_ARRAY
        ),
        f"row group 1 of bomb.parquet {BEYOND} \\(3,221,225,472 bytes",
    ),
    "a dictionary that its footer calls small": (
        lambda: parquet_lies.parquet(in_every_row(b"x" * 10**8, 64), 64, 64, 99),
        f"bomb.parquet {BEYOND}",
    ),
    "a list without end": (
        lambda: parquet_lies.parquet(one_long_list(2**30 - 1), 1, 2**30 - 1, 99, repeated=True),
        f"column 'question' of bomb.parquet {BEYOND}",
    ),
    "a list of one long text": (
        lambda: parquet_lies.parquet(one_long_list(4000, b"x" * 2**20), 1, 4000, 99, repeated=True),
        f"column 'question' of bomb.parquet {BEYOND} \\(4,195,3",
    ),
    "a dictionary of too many values": (
        lambda: parquet_lies.parquet(in_every_row(b"abc", 5, values=2**31 - 1), 5, 5, 60),
        "no whole Parquet file .behind row 0.: a dictionary of 7 bytes gives 2,147,483,647",
    ),
    "a header that holds itself": (
        lambda: parquet_lies.parquet([Page(b"", 0, 0, header=b"\x1c" * 10**6)], 5, 5, 60),
        "its structures hold each other without end",
    ),
    "pages without values": (
        lambda: parquet_lies.parquet([Page(zstd(b""), 0, 0)] * 2000, 5, 5, 60),
        "too many of its pages have no value",
    ),
    "a header that ends nowhere": (
        lambda: parquet_lies.parquet([Page(b"", 0, 0, header=b"\x15")], 5, 5, 60),
        "no header of a page stands at byte 0 of its column",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_pages_that_say_more_than_the_footer_are_refused_before_they_take_memory(tmp_path: Path, lie: str) -> None:
    made, fault = LIES[lie]
    (tmp_path / "bomb.parquet").write_bytes(made())
    assert (tmp_path / "bomb.parquet").stat().st_size < 2**20
    pq.write_table(pa.Table.from_pylist([ROW]), tmp_path / "good.parquet")
    peak, words = peak_mib(tmp_path / "bomb.parquet", tmp_path / "good.parquet")
    assert re.search(fault, words), words
    assert peak < 1400, peak


def test_columns_that_lie_on_each_other_are_refused(tmp_path: Path) -> None:
    """Each of a thousand columns would be the whole file."""
    made = parquet_lies.columns_of([in_every_row(b"abc", 5)] * 2, 5, 5, 60, parquet_lies.BYTE_ARRAY)
    size = (7, 6, parquet_lies.i32(len(b"".join(map(parquet_lies.page_bytes, in_every_row(b"abc", 5))))))
    true, larger = (parquet_lies.struct(each)[:-1] for each in (size, (7, 6, parquet_lies.i32(8000))))
    assert made.count(true) == 2
    longer = made.replace(true, larger)
    footer = int.from_bytes(made[-8:-4], "little") + len(longer) - len(made)
    (tmp_path / "rows.parquet").write_bytes(longer[:-8] + footer.to_bytes(4, "little") + b"PAR1")
    with pytest.raises(
        SourceError,
        match=r"rows.parquet is no whole Parquet file \(behind row 0\): its columns take more bytes than it has",
    ):
        read(tmp_path / "rows.parquet")


def test_a_compressed_parquet_file_may_be_long(tmp_path: Path) -> None:
    """A decompressed stream gives a mebibyte at a time, and a column may have more."""
    rows = [ROW | {"question": os.urandom(2**18)} for _ in range(12)]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    (tmp_path / "rows.parquet.gz").write_bytes(gzip.compress(buffer.getvalue(), 1))
    assert [row.values for row in read(tmp_path / "rows.parquet.gz")] == rows
