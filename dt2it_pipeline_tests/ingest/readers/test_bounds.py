"""Files that make much of little cost their own source, in bounded memory."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dt2it_pipeline.ingest.manifest import Manifest, ManifestError, load_manifest
from dt2it_pipeline.ingest.readers import bounds, file_formats, parquet_pages, parquet_rows, webdataset
from dt2it_pipeline.ingest.readers.parquet_footer import row_groups
from dt2it_pipeline.ingest.reading import read_rows
from dt2it_pipeline.ingest.rows import Quarantined, Row, SourceError
from dt2it_pipeline.ingest.sources import read_source
from dt2it_pipeline.media import tar_files
from dt2it_pipeline_tests.support import parquet_lies
from dt2it_pipeline_tests.support.parquet_lies import DICTIONARY_PAGE, RLE_DICTIONARY, Page, zstd
from dt2it_pipeline_tests.support.reading_memory import peak_mib

ROW = {"question": "q", "chosen": "a", "rejected": "b"}
LINE = json.dumps(ROW).encode() + b"\n"
SMALL = 4096


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds that a test can pass quickly."""
    for name, value in {"LONGEST_LINE": SMALL, "LONGEST_OBJECT": 3 * SMALL, "_FREE": 1 << 16}.items():
        monkeypatch.setattr(bounds, name, value)
        if hasattr(file_formats, name):
            monkeypatch.setattr(file_formats, name, value)


def read(file: Path) -> list[Row | Quarantined]:
    made = Manifest.model_validate({"name": "own", "kind": "preferences", "path": str(file), "licence": "MIT"})
    return list(read_rows(made, file.parent))


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


def tar_with(file: Path, mode: str, *members: tuple[str, bytes]) -> Path:
    with tarfile.open(file, mode) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_a_compressed_tar_is_bounded_as_a_whole(tmp_path: Path, kind: str) -> None:
    blank = b"\n" * 3_000_000
    whole = tar_with(tmp_path / "whole.tgz", f"w:{kind}", ("rows.jsonl", 3 * LINE))
    assert [isinstance(each, Row) for each in read(whole)] == [True] * 3
    for members in ([("rows.jsonl", LINE + blank)], [("notes.bin", blank), ("rows.jsonl", LINE)]):
        file = tar_with(tmp_path / "rows.tgz", f"w:{kind}", *members)
        with pytest.raises(SourceError, match=r"source 'own': .*rows.tgz expands to more than 200 times"):
            read(file)


def test_a_tar_members_header_is_bounded(tmp_path: Path) -> None:
    file = tmp_path / "rows.tar.gz"
    with tarfile.open(file, "w:gz", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("x" * 3_000_000))
    with pytest.raises(SourceError, match=r"source 'own': a header of 3,000,001 bytes in '.*/rows.tar.gz'"):
        read(file)
    with tarfile.open(file, "w:gz", format=tarfile.PAX_FORMAT, pax_headers={"comment": "x" * 3_000_000}) as archive:
        archive.addfile(tarfile.TarInfo("a"))
    with pytest.raises(SourceError, match="a header of 3,000,"):
        read(file)


def repeated(first: bytes, part: bytes, times: int) -> bytes:
    """A tar in gzip of which a part is there many times; it is compressed once, since files in gzip may be joined."""
    return gzip.compress(first) + gzip.compress(part) * times + gzip.compress(bytes(1024))


def with_empty_members(file: Path, name: str, thousands: int) -> None:
    """A tar in gzip of a row and many members without content."""
    member = tarfile.TarInfo("rows.jsonl")
    member.size = len(LINE)
    content = member.tobuf() + LINE.ljust(512, b"\0")
    file.write_bytes(repeated(content, tarfile.TarInfo(name).tobuf() * 1000, thousands))


@pytest.mark.parametrize("name", ["x.json", "row.x", "folder/.x"])
def test_members_without_content_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with_empty_members(tmp_path / "rows.tar.gz", name, 2)
    if name != "x.json":  # whose name is there many times
        assert [type(row) for row in read(tmp_path / "rows.tar.gz")] == [Row]
    monkeypatch.setattr(tar_files, "_MOST_EMPTY", 1500)
    with pytest.raises(SourceError, match=r"rows.tar.gz' has more than 1,500 members without content"):
        read(tmp_path / "rows.tar.gz")


def test_millions_of_members_without_content_take_little_memory(tmp_path: Path) -> None:
    """Two million of them lie in some ten megabytes; in memory they would be more than a gigabyte."""
    with_empty_members(tmp_path / "rows.tar.gz", "x.json", 2000)
    peak, words = peak_mib(tmp_path / "rows.tar.gz", tar_with(tmp_path / "good.tar.gz", "w:gz", ("a.jsonl", LINE)))
    assert "rows.tar.gz' has more than 100,000 members without content" in words and peak < 300, (peak, words)


def test_folders_of_an_ordinary_archive_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_files, "_MOST_EMPTY", 5)
    with tarfile.open(tmp_path / "rows.tar", "w") as archive:
        for number in range(50):
            folder = tarfile.TarInfo(f"{number}")
            folder.type = tarfile.DIRTYPE
            archive.addfile(folder)
            member = tarfile.TarInfo(f"{number}/rows.jsonl")
            member.size = len(LINE)
            archive.addfile(member, io.BytesIO(LINE))
    assert [type(row) for row in read(tmp_path / "rows.tar")] == [Row] * 50


def test_members_that_are_no_data_files_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each, `tarfile` keeps half a kilobyte; a shard's members are its rows, so none of these is kept either."""
    monkeypatch.setattr(webdataset, "_MOST_MEMBERS", 50)
    for name, first, other in (("rows.tar", "rows.jsonl", "{}.bin"), ("shard.tar", "0.json", "1.{}.txt")):
        others = [(other.format(number), b"x") for number in range(500)]
        file = tar_with(tmp_path / name, "w", (first, LINE), ("0.txt", b"x"), *others)
        with bounds.bounded_tar(file) as archive:
            assert sum(1 + len(archive.members) for _ in archive.passing()) == 502
        rows = read(file)
        assert isinstance(rows[0], Row)
        reasons = [row.reason for row in rows[1:] if isinstance(row, Quarantined)]
        assert reasons == (["too many members"] if name == "shard.tar" else [])


def test_data_files_of_a_tar_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_files, "_MOST_FILES", 5)
    for count in (5, 6):
        names = [f"{number}.jsonl" for number in reversed(range(count))]
        file = tar_with(tmp_path / "rows.tar", "w", *((name, LINE) for name in names), ("readme.txt", b"x"))
        if count == 5:
            assert [row.row_id for row in read(file)] == [f"{number}.jsonl line 1" for number in range(5)]
        else:
            with pytest.raises(SourceError, match=r"rows.tar' has more than 5 data files; join them to fewer"):
                read(file)


@pytest.mark.usefixtures("small")
@pytest.mark.skipif(shutil.which("tar") is None, reason="GNU tar makes members with holes")
def test_a_tar_member_of_holes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "rows.jsonl").open("wb") as rows:
        rows.truncate(50_000_000)
    packed = ["tar", "--sparse", "-cf", str(tmp_path / "rows.tar"), "-C", str(tmp_path), "rows.jsonl"]
    subprocess.run(packed, check=True)
    if (tmp_path / "rows.tar").stat().st_size > 1 << 20:
        pytest.skip("this tar or file system keeps no holes")
    with pytest.raises(SourceError, match=r"rows.jsonl of .*rows.tar expands to more than 200 times"):
        read(tmp_path / "rows.tar")


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


@pytest.mark.parametrize(
    ("headers", "fault"),
    [
        ({"comment": "x" * 3_000_000}, "a header of 3,000,"),
        ({"GNU.sparse.major": "0", "GNU.sparse.map": "x,y", "GNU.sparse.size": "1"}, "a malformed header"),
    ],
)
def test_a_tar_of_media_is_bounded_too(tmp_path: Path, headers: dict[str, str], fault: str) -> None:
    """Its members are read before any row."""
    with tarfile.open(tmp_path / "media.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("first"))
        archive.addfile(member := tarfile.TarInfo("second"))
        member.pax_headers = headers
        archive.addfile(member)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "p", "chosen": "a", "rejected": "b"}) + "\n")
    given = {"path": str(tmp_path / "rows.jsonl"), "media_root": str(tmp_path / "media.tar")}
    made = Manifest.model_validate({"name": "own", "kind": "preferences", "licence": "MIT", **given})
    with pytest.raises(SourceError, match=f"source 'own': media_root cannot be read: {fault}"):
        read_source(made, tmp_path, tmp_path / "media")


@pytest.mark.parametrize("form", ["1.0", "old"])
def test_a_long_map_of_holes_in_a_tar_is_refused(tmp_path: Path, form: str) -> None:
    """Both forms give the map's length themselves, and tarfile holds it in memory."""
    member = tarfile.TarInfo("rows.jsonl")
    if form == "1.0":
        content = b"3000000\n" + b"1\n" * 6_000_000
        member.size = len(content)
        member.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "rows.jsonl"}
        member.pax_headers["GNU.sparse.realsize"] = "3000000"
        head = member.tobuf(tarfile.PAX_FORMAT)
    else:
        member.type = tarfile.GNUTYPE_SPARSE
        block = bytearray(member.tobuf(tarfile.GNU_FORMAT))
        block[386:482] = b"00000000001\0" * 8  # four holes
        block[482] = 1  # and more in the next block
        block[483:495] = b"00000000001\0"
        block[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(block))[0]
        head = bytes(block)
        content = (b"00000000001\0" * 42 + b"\1" + bytes(7)) * 20_000
    (tmp_path / "rows.tar.gz").write_bytes(gzip.compress(head + content + bytes(1024)))
    with pytest.raises(SourceError, match="a map of holes of more than 1,048,576 bytes"):
        list(read(tmp_path / "rows.tar.gz"))
