"""Tar archives that are meant to fill memory, or a million files long: refused, by a bound that is known."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from dt2it_pipeline.ingest.manifest import Manifest
from dt2it_pipeline.ingest.readers import bounds, webdataset
from dt2it_pipeline.ingest.rows import Quarantined, Row, SourceError
from dt2it_pipeline.ingest.sources import read_source
from dt2it_pipeline.media import tar_files
from dt2it_pipeline_tests.support.bounded_sources import LINE, read, repeated, tar_with
from dt2it_pipeline_tests.support.reading_memory import peak_mib


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
