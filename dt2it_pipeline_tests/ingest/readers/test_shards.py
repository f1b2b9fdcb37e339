"""Shards of a WebDataset, and folders of `save_to_disk`."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dt2it_pipeline.ingest.manifest import Manifest
from dt2it_pipeline.ingest.sources import fingerprint, read_source
from dt2it_pipeline_tests.support.ingest_world import encoded


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
