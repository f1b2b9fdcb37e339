"""Media are on the disk before anything names them: the order of syncs, renaming and entries of the index."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dt2it_pipeline.media.bulk_import import MediaImporter
from dt2it_pipeline.media.index import MediaIndex
from dt2it_pipeline.media.opening import require_stored
from dt2it_pipeline.media.root import MediaRoot
from dt2it_pipeline.media.store import Medium
from dt2it_pipeline_tests.support.ingest_world import numbered_image

Event = tuple[str, Any]


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """What is synced (the number of its inode), named (that, and its new path), and written to the index, in order."""
    seen: list[Event] = []
    fsync, add = os.fsync, MediaIndex.add

    def synced(descriptor: int) -> None:
        seen.append(("synced", os.fstat(descriptor).st_ino))
        fsync(descriptor)

    def naming(rename: Callable[[Path, Path], Path]) -> Callable[[Path, Path], Path]:
        def named(path: Path, target: Path) -> Path:
            seen.append(("named", (path.stat().st_ino, target)))
            return rename(path, target)

        return named

    def indexed(index: MediaIndex, *arguments: Any) -> None:
        seen.append(("indexed", None))
        add(index, *arguments)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", naming(Path.rename))
    monkeypatch.setattr(Path, "replace", naming(Path.replace))
    monkeypatch.setattr(MediaIndex, "add", indexed)
    return seen


def imported(folder: Path, media: list[Medium]) -> list[Path]:
    importer = MediaImporter(MediaRoot(folder / "root"), folder / "media", 1)
    found = importer.rows(media)
    importer.close()
    return [folder / "media" / one["path"] for one in found if isinstance(one, dict)]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """An image and a video of two frames, in the store."""
    for number in range(3):
        numbered_image(tmp_path / ("root/0.png" if number == 0 else f"root/video/{number}.png"), number)
    (tmp_path / "root/video/video.json").write_text('{"fps": 1}')
    return imported(tmp_path, [Medium("image", "0.png"), Medium("video", "video")])


def test_imported_images_are_on_the_disk_before_the_index_names_them(tmp_path: Path, events: list[Event]) -> None:
    for number in range(3):
        numbered_image(tmp_path / f"root/{number}.png", number)
    made = imported(tmp_path, [Medium("image", f"{number}.png") for number in range(3)])
    assert len(made) == 3
    indexed = events.index(("indexed", None))
    for place in {*made, *(file.parent for file in made)}:
        named = [at for at, event in enumerate(events) if event[0] == "named" and event[1][1] in (place, *made)]
        assert max(named) < events.index(("synced", place.stat().st_ino)) < indexed


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("harm", ["damaged", "missing"])
def test_a_medium_that_is_fetched_again_is_on_the_disk_before_it_has_its_name(
    files: list[Path], events: list[Event], kind: str, harm: str
) -> None:
    file = files[0 if kind == "image" else 1]
    held = file if kind == "image" else file / "000001.png"
    if harm == "damaged":
        held.write_bytes(held.read_bytes()[:-9])
    else:
        held.unlink()
    require_stored(file)
    inode = file.stat().st_ino
    named = events.index(("named", (inode, file)))
    parts = [file] if kind == "image" else [file, *file.iterdir()]
    assert all(events.index(("synced", part.stat().st_ino)) < named for part in parts)
    assert ("synced", file.parent.stat().st_ino) in events[named:]
