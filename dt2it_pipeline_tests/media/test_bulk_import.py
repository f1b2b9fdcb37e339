"""Importing many media: archives, several threads, and going on where a killed import was."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from dt2it_pipeline.ingest.rows import Medium
from dt2it_pipeline.ingest.sources import SourceError, read_source
from dt2it_pipeline.media import bulk_import
from dt2it_pipeline.media.bulk_import import MediaImporter
from dt2it_pipeline.media.damage import source_hash
from dt2it_pipeline.media.errors import MediaError
from dt2it_pipeline.media.index import MediaIndex
from dt2it_pipeline.media.root import MediaRoot
from dt2it_pipeline.media.store import store_image
from dt2it_pipeline_tests.support.ingest_world import image, numbered_image, source


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number in range(6):
        numbered_image(tmp_path / f"root/{number}.png", number)
    return tmp_path / "root"


def rows(count: int) -> list[dict[str, Any]]:
    return [{"image": f"{n}.png", "question": "q", "chosen": "a", "rejected": "b"} for n in range(count)]


def counted(monkeypatch: pytest.MonkeyPatch, fail_at: int | None = None) -> list[Any]:
    """Images that are decoded from now on; the import is killed at one of them."""
    seen: list[Any] = []

    def store(value: Any, *more: Any, **named: Any) -> Any:
        seen.append(value)
        if len(seen) - 1 == fail_at:
            raise KeyboardInterrupt
        return store_image(value, *more, **named)

    monkeypatch.setattr(bulk_import, "store_image", store)
    return seen


def test_a_killed_import_goes_on_where_it_was(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dt2it_pipeline.ingest.pieces._BATCH", 2)
    made = source(tmp_path, rows(6), "auto")
    whole = read_source(made, tmp_path, tmp_path / "other")
    counted(monkeypatch, fail_at=4)
    with pytest.raises(KeyboardInterrupt):
        read_source(made, tmp_path, tmp_path / "media")
    seen = counted(monkeypatch)
    artifact = read_source(made, tmp_path, tmp_path / "media")
    assert set(seen) == {"4.png", "5.png"}
    assert all(artifact[kind].equals(whole[kind]) for kind in ("pairs", "prompts", "quarantine"))
    numbered_image(root / "0.png", 77)  # a changed file is imported anew, and so is one that the store lost
    for file in (tmp_path / "media").rglob("*.png"):
        if source_hash(file) == whole["prompts"]["media"].to_pylist()[1][0]["sha256"]:
            file.unlink()
    seen.clear()
    read_source(made, tmp_path, tmp_path / "media")
    assert set(seen) == {"0.png", "1.png"}


def test_a_damaged_index_costs_time_only(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = source(tmp_path, rows(2), "auto")
    first = read_source(made, tmp_path, tmp_path / "media")
    MediaIndex(tmp_path / "media").file.write_bytes(b"no database at all" * 100)
    seen = counted(monkeypatch)
    assert read_source(made, tmp_path, tmp_path / "media")["prompts"].equals(first["prompts"])
    assert len(seen) == 2


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_images_are_read_from_archives(tmp_path: Path, root: Path, kind: str) -> None:
    archive = tmp_path / f"media.{kind}"
    files = sorted(root.iterdir())
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as packed:
            for file in files:
                packed.write(file, f"images/{file.name}")
    else:
        with tarfile.open(archive, "w") as packed_tar:
            for file in files:
                packed_tar.add(file, f"./images/{file.name}")
            link = tarfile.TarInfo("./images/link.png")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            packed_tar.addfile(link)
    wanted = [
        *rows(6),
        *(
            {"image": name, "question": "q", "chosen": "a", "rejected": "b"}
            for name in ("gone.png", "link.png", "../0.png")
        ),
    ]
    more: dict[str, Any] = {"media_root": str(archive), "media_prefix": "/their/disk/"}
    for row in wanted:
        row["image"] = f"/their/disk/images/{row['image']}"
    artifact = read_source(source(tmp_path, wanted, "auto", **more), tmp_path, tmp_path / "media")
    assert (artifact.metadata["rows_out"], artifact["quarantine"]["reason"].to_pylist()) == (6, ["missing image"] * 3)
    assert (
        artifact["prompts"].to_pylist()[0]["media"][0]["sha256"]
        == store_image("0.png", root, tmp_path / "m").row["sha256"]
    )
    videos = [{"video": "clip", "question": "q", "chosen": "a", "rejected": "b"}]
    (aside,) = read_source(source(tmp_path, videos, "auto", **more), tmp_path, tmp_path / "m")["quarantine"].to_pylist()
    assert "archives hold images only" in aside["detail"]


def test_an_archive_that_cannot_be_read_is_one_clear_error(tmp_path: Path) -> None:
    for name, content in (("a.zip", b"nothing"), ("a.tar", b"nothing"), ("a.tar.gz", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SourceError, match=r"source 's': media_root cannot be read"):
            read_source(
                source(tmp_path, rows(1), "auto", media_root=str(tmp_path / name)), tmp_path, tmp_path / "media"
            )


def test_a_source_without_a_media_root_may_only_hold_its_images(tmp_path: Path, root: Path) -> None:
    content = (root / "0.png").read_bytes()
    importer = MediaImporter(MediaRoot(None), tmp_path / "media")
    inside, path = importer.rows([Medium("image", content), Medium("image", "/etc/passwd")])
    importer.close()
    assert isinstance(inside, dict)
    assert isinstance(path, MediaError) and "no media_root" in path.detail


def test_a_file_name_need_not_be_utf_8(tmp_path: Path, root: Path) -> None:
    (root / "0.png").rename(root / os.fsdecode(b"\xff.png"))
    made = source(tmp_path, rows(2), "auto")
    lines = (tmp_path / "rows.jsonl").read_bytes()
    (tmp_path / "rows.jsonl").write_bytes(lines.replace(b"0.png", b"\xff.png"))
    for _ in range(2):
        assert read_source(made, tmp_path, tmp_path / "media").metadata["rows_out"] == 2


def test_one_image_in_many_rows_is_decoded_once(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = counted(monkeypatch)
    repeated = [{**row, "question": f"q{n}"} for n in range(5) for row in rows(2)]
    artifact = read_source(source(tmp_path, repeated, "auto"), tmp_path, tmp_path / "media")
    assert artifact["pairs"].num_rows == 10
    assert sorted(seen) == ["0.png", "1.png"]


def test_frames_of_a_video_are_stored_upright(tmp_path: Path) -> None:
    from PIL import Image

    from dt2it_pipeline.media import video
    from dt2it_pipeline.media.store import store_video

    exif = Image.Exif()
    exif[0x0112] = 6
    for number, colour in enumerate(("red", "blue")):
        buffer = io.BytesIO()
        Image.new("RGB", (20, 10), colour).save(buffer, format="JPEG", exif=exif)
        image(tmp_path / f"root/clip/{number}.jpg").write_bytes(buffer.getvalue())
    stored = store_video("clip", tmp_path / "root", tmp_path / "media")
    assert video.read_header(tmp_path / "root/clip").width == 10
    header = video.read_header(tmp_path / "media" / stored.row["path"])
    assert (header.width, header.height, header.frames) == (10, 20, 2)
    assert sorted(file.suffix for file in (tmp_path / "media" / stored.row["path"]).iterdir()) == [
        ".json",
        ".png",
        ".png",
    ]
