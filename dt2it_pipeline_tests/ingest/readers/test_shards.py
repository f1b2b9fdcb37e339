"""Shards of a WebDataset, and folders of `save_to_disk`."""

from __future__ import annotations

import gzip
import io
import json
import random
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dt2it_pipeline.ingest.manifest import Manifest
from dt2it_pipeline.ingest.rows import SourceError
from dt2it_pipeline.ingest.sources import fingerprint, read_source
from dt2it_pipeline_tests.support.ingest_world import encoded
from dt2it_pipeline_tests.support.source_files import values


def manifest(path: Path) -> Manifest:
    return Manifest(name="s", kind="preferences", path=str(path), licence="x")


def shard(path: Path, rows: list[dict[str, Any] | bytes], images: int = 1) -> None:
    with tarfile.open(path, "w") as archive:
        for number, row in enumerate(rows):
            content = row if isinstance(row, bytes) else json.dumps(row).encode()
            pictures = {
                f"{n}.png" if images > 1 else "png": encoded(Image.new("RGB", (4, 4), (n, number, 0)))
                for n in range(images)
            }
            for extension, data in {"json": content, **pictures}.items():
                member = tarfile.TarInfo(f"a/{number:04d}.{extension}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("place", ["", "shard-1.tar"])
def test_webdataset_shards_keep_their_images(tmp_path: Path, images: int, place: str) -> None:
    (tmp_path / "shards").mkdir()
    rows = [{"prompt": f"q{n}", "chosen": "good", "rejected": "bad"} for n in range(2)]
    shard(tmp_path / "shards/shard-1.tar", [*rows, b"{broken"], images)
    artifact = read_source(manifest(tmp_path / "shards" / place), tmp_path, tmp_path / "media")
    assert [len(media) for media in artifact["prompts"]["media"].to_pylist()] == [images] * 2
    assert artifact["quarantine"]["reason"].to_pylist() == ["malformed JSON"]
    assert artifact["pairs"]["row_id"].to_pylist() == ["shard-1.tar a/0000", "shard-1.tar a/0001"]
    assert fingerprint(manifest(tmp_path / "shards" / place), tmp_path)


def test_a_link_in_a_shard_costs_its_row_and_what_a_mac_adds_nothing(tmp_path: Path) -> None:
    shard(tmp_path / "one.tar", [{"prompt": "q", "chosen": "good", "rejected": "bad"}])
    with tarfile.open(tmp_path / "one.tar", "a") as archive:
        for name, kind in (
            ("a/._0000.json", tarfile.REGTYPE),
            ("b/0.json", tarfile.REGTYPE),
            ("b/0.png", tarfile.SYMTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd" if kind == tarfile.SYMTYPE else ""
            content = b'{"prompt": "q2", "chosen": "good", "rejected": "bad"}' if name == "b/0.json" else b""
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    artifact = read_source(manifest(tmp_path / "one.tar"), tmp_path, tmp_path / "media")
    assert artifact["pairs"].num_rows == 1
    assert artifact["quarantine"]["reason"].to_pylist() == ["link in an archive"]


def test_a_folder_of_save_to_disk_needs_no_format(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_list([{"prompt": "q", "chosen": "good", "rejected": "bad"}]).save_to_disk(tmp_path / "saved")
    found = manifest(tmp_path / "saved")
    assert read_source(found, tmp_path, tmp_path / "media")["pairs"].num_rows == 1 and fingerprint(found, tmp_path)


def test_a_compressed_shard_is_read_forwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies behind is read from the archive's start again, so that a shard's rows must be read as they pass."""
    content = random.Random(1).randbytes(3 << 20)
    with tarfile.open(tmp_path / "rows.tar.gz", "w:gz", compresslevel=0) as archive:
        for row in range(8):
            for name, data in ((f"{row}.json", b'{"a": 1}'), (f"{row}.bin", content), (f"{row}.txt", b"t")):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    seek = gzip.GzipFile.seek
    back = 0

    def counted(stream: gzip.GzipFile, offset: int, whence: int = io.SEEK_SET) -> int:
        nonlocal back
        back += whence == io.SEEK_SET and offset < stream.tell()
        return seek(stream, offset, whence)

    monkeypatch.setattr(gzip.GzipFile, "seek", counted)
    assert [row["txt"] for row in values(manifest(tmp_path / "rows.tar.gz"), tmp_path)] == ["t"] * 8
    assert back <= 2  # of the first row, whose members say that this is a shard


def test_a_fault_of_a_shard_within_a_row_ends_it_and_costs_no_row_alone(tmp_path: Path) -> None:
    """What lies behind it is lost, and a quarantined row would hide that."""
    shard(tmp_path / "rows.tar", [{"prompt": "q", "chosen": "good", "rejected": "bad"}] * 2)
    with tarfile.open(tmp_path / "rows.tar", "a") as archive:
        archive.addfile(tarfile.TarInfo("a/0001." + "x" * (2 << 20)))
        archive.addfile(tarfile.TarInfo("a/0002.json"))
    with pytest.raises(SourceError, match="a header of"):
        values(manifest(tmp_path / "rows.tar"), tmp_path)
