"""Media that are not as they were stored: found, never used, and read from their source again."""

from __future__ import annotations

import io
import json
import logging
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from PIL import Image

from dt2it_pipeline.engines.chat import ChatError, chat_prompt, opened
from dt2it_pipeline.media.bulk_import import MediaImporter
from dt2it_pipeline.media.damage import GIVEN, TEMPORARY, UPRIGHT, has_other_content, source_hash
from dt2it_pipeline.media.errors import MediaError
from dt2it_pipeline.media.opening import image_size, open_image, require_stored
from dt2it_pipeline.media.root import MediaRoot
from dt2it_pipeline.media.store import Medium, damaged_media, store_image
from dt2it_pipeline.observe.logs import file_handler
from dt2it_pipeline_tests.support.commands import dt2it
from dt2it_pipeline_tests.support.processes import name_of_a_dead_process


def photograph(kind: str, sideways: bool = False) -> bytes:
    image, buffer = Image.effect_noise((60, 40), 80).convert("RGB"), io.BytesIO()
    exif = Image.Exif()
    if sideways:
        exif[0x0112] = 6
    image.save(buffer, kind, exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "suffix"),
    [
        (photograph("JPEG"), ".jpg"),
        (photograph("PNG"), ".png"),
        (photograph("WEBP"), ".webp"),
        (photograph("JPEG", sideways=True), ".png"),
    ],
    ids=["jpeg", "png", "webp", "stored upright"],
)
def test_no_bit_of_a_stored_image_changes_unnoticed(tmp_path: Path, content: bytes, suffix: str) -> None:
    file = tmp_path / store_image(content, tmp_path, tmp_path).row["path"]
    assert file.suffix == suffix and not has_other_content(file)
    before, whole = open_image(file).tobytes(), file.read_bytes()
    random = Random(3)
    for _ in range(60):
        changed = bytearray(whole)
        changed[random.randrange(len(whole))] ^= 1 << random.randrange(8)
        file.write_bytes(changed)
        with pytest.raises(MediaError, match="its content is not what was stored; `dt2it doctor --mend`"):
            open_image(file)
        assert list(damaged_media(tmp_path)) == [(file, "its content is not what was stored")]
        # Importing it again mends it.
        assert tmp_path / store_image(content, tmp_path, tmp_path).row["path"] == file
        assert file.read_bytes() == whole and not list(damaged_media(tmp_path))
    assert open_image(file).tobytes() == before


def whole_png(name: str, shade: int) -> bytes:
    """A PNG that is stored as it came, or (sideways) as another one that was made of it."""
    image, buffer, exif = Image.new("RGB", (60, 40), (shade, 0, 0)), io.BytesIO(), Image.Exif()
    if name == UPRIGHT:
        exif[0x0112] = 6
    image.save(buffer, "PNG", exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize("name", [GIVEN, UPRIGHT])
@pytest.mark.parametrize("other", ["of this store", "of elsewhere"])
def test_a_whole_image_under_the_name_of_another_one_is_damaged(tmp_path: Path, name: str, other: str) -> None:
    first, second = (
        tmp_path / store_image(whole_png(name, shade), tmp_path, tmp_path).row["path"] for shade in (7, 90)
    )
    assert first.name == f"{source_hash(first)}.{name}" and not has_other_content(first)
    first.write_bytes(second.read_bytes() if other == "of this store" else whole_png(GIVEN, 200))
    assert has_other_content(first) and list(damaged_media(tmp_path)) == [(first, "its content is not what was stored")]
    with pytest.raises(MediaError, match="its content is not what was stored"):
        open_image(first)
    open_image(second)


def test_a_png_that_is_not_that_of_its_name_is_damaged_without_the_name_of_one_made_of_it(tmp_path: Path) -> None:
    made = tmp_path / store_image(whole_png(UPRIGHT, 7), tmp_path, tmp_path).row["path"]
    assert not has_other_content(made)
    assert has_other_content(made.rename(made.with_name(f"{source_hash(made)}.png")))


def test_a_stored_image_is_read_once_for_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / store_image(whole_png(UPRIGHT, 7), tmp_path, tmp_path).row["path"]
    assert not has_other_content(file)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} is read again"))
    assert not has_other_content(file)


def test_the_frames_of_another_video_are_damage(tmp_path: Path) -> None:
    for name in ("one", "two"):
        numbered(tmp_path / "root" / name, 2)
    one, two = imported(tmp_path / "root", tmp_path / "media", [Medium("video", "one"), Medium("video", "two")])
    shutil.rmtree(one)
    shutil.copytree(two, one)
    assert has_other_content(one) and not has_other_content(two)


@pytest.mark.parametrize("size", [0, 7, 500])
def test_a_truncated_file_is_damaged(tmp_path: Path, size: int) -> None:
    file = tmp_path / store_image(photograph("JPEG", sideways=True), tmp_path, tmp_path).row["path"]
    file.write_bytes(file.read_bytes()[:size])
    assert has_other_content(file)


def numbered(folder: Path, count: int, kind: str = "jpg") -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        image = Image.effect_noise((40, 40), 60 + number).convert("RGB")
        image.save(folder / f"{number}.{kind}")
    return [f"{number}.{kind}" for number in range(count)]


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def imported(root: Path, store: Path, media: list[Medium]) -> list[Path]:
    importer = MediaImporter(MediaRoot(root), store)
    try:
        return [store / row["path"] for row in importer.rows(media) if isinstance(row, dict)]
    finally:
        importer.close()


def zipped(root: Path) -> Path:
    with zipfile.ZipFile(root.with_suffix(".zip"), "w") as packed:
        for file in root.iterdir():
            packed.write(file, file.name)
    return root.with_suffix(".zip")


@pytest.mark.parametrize("place", [Path, zipped], ids=["folder", "archive"])
def test_a_damaged_image_is_fetched_again_where_it_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, place: Callable[[Path], Path]
) -> None:
    root, store = tmp_path / "root", tmp_path / "media"
    names = numbered(root, 3)
    files = imported(place(root), store, [Medium("image", name) for name in names])
    whole = [file.read_bytes() for file in files]
    flip(files[0])
    files[1].unlink()
    files[2].write_bytes(b"")
    assert image_size(files[2]) == (40, 40)
    for file in files[:2]:
        open_image(file)
    assert [file.read_bytes() for file in files] == whole
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 3 and all("it was fetched again from" in line and str(tmp_path) in line for line in lines)
    assert "it is missing" in lines[2]
    assert [record.media_ids for record in caplog.records] == [[source_hash(file)] for file in (files[2], *files[:2])]  # type: ignore[attr-defined]
    assert not list(store.glob("*/tmp*"))


def test_what_its_source_does_not_give_any_more_stays_damaged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root, store = tmp_path / "root", tmp_path / "media"
    names = numbered(root, 2)
    files = imported(root, store, [Medium("image", name) for name in names])
    for file in files:
        flip(file)
    (root / names[0]).unlink()
    numbered(root / "other", 3)
    (root / "other" / "2.jpg").replace(root / names[1])
    for _ in range(2):
        for file in files:
            with pytest.raises(MediaError, match="its content is not what was stored"):
                open_image(file)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2 and "missing image" in lines[0] and "another content now" in lines[1]
    assert not list(store.glob("*/tmp*")) and len([path for path in store.glob("*/*") if path.is_file()]) == 2


def test_an_import_does_not_take_a_damaged_file_for_one_that_it_has(tmp_path: Path) -> None:
    root, store = tmp_path / "root", tmp_path / "media"
    media = [Medium("image", name) for name in numbered(root, 2)]
    files = imported(root, store, media)
    flip(files[1])
    assert imported(root, store, media) == files and not list(damaged_media(store))


@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_a_frame_that_has_changed_is_found_and_mended(tmp_path: Path, kind: str) -> None:
    root, store = tmp_path / "root", tmp_path / "media"
    numbered(root / "clip", 4, kind)
    (folder,) = imported(root, store, [Medium("video", "clip")])
    whole = {file.name: file.read_bytes() for file in folder.iterdir()}
    require_stored(folder, kind="video")
    for harm in (flip, Path.unlink, lambda file: file.write_bytes(b"")):
        harm(folder / f"000002.{kind}")
        assert has_other_content(folder)
        assert list(damaged_media(store)) == [(folder, "its content is not what was stored")]
        require_stored(folder, kind="video")
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == whole
    flip(folder / f"000002.{kind}")
    assert imported(root, store, [Medium("video", "clip")]) == [folder]
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == whole


def test_files_outside_a_store_are_none_of_its_business(tmp_path: Path) -> None:
    (tmp_path / "photograph.jpg").write_bytes(photograph("JPEG"))
    assert not has_other_content(tmp_path / "photograph.jpg")
    (tmp_path / "ab").mkdir()
    (tmp_path / "ab" / "tmp123").write_bytes(b"half")
    assert not list(damaged_media(tmp_path))


def test_doctor_passes_over_links_that_lead_nowhere_and_follows_none(tmp_path: Path) -> None:
    home, outside = tmp_path / "home", tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("mine")
    place = home / "media" / "ab"
    place.mkdir(parents=True)
    left = [place / f"{name_of_a_dead_process(TEMPORARY)}{end}" for end in ("nowhere", "folder", "half")]
    left[0].symlink_to(tmp_path / "nowhere")
    left[1].symlink_to(outside)
    left[2].mkdir()
    (left[2] / "link").symlink_to(tmp_path / "nowhere")
    assert "3 temporary files" in dt2it("doctor", "--home", home)
    assert "3 temporary files" in dt2it("doctor", "--home", home, "--mend")
    assert not list(place.iterdir()) and (outside / "kept").read_text() == "mine"


@pytest.mark.parametrize("gone", [False, True], ids=["fetched again", "given up"])
def test_a_line_about_a_damaged_image_names_the_prompt_that_it_is_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: bool
) -> None:
    root, store = tmp_path / "root", tmp_path / "media"
    (name,) = numbered(root, 1)
    (file,) = imported(root, store, [Medium("image", name)])
    flip(file)
    if gone:
        shutil.rmtree(root)
    turns = [{"role": "user", "text": "<image> What is it?"}]
    media = [{"kind": "image", "sha256": source_hash(file), "path": file.relative_to(store).as_posix()}]
    row = {"prompt_id": "p1", "turns": turns, "system": "", "media": media}
    monkeypatch.setenv("DT2IT_LOG_FILE", str(tmp_path / "lines.jsonl"))
    handler = file_handler()
    assert handler is not None
    logger = logging.getLogger("dt2it_pipeline.media.opening")
    logger.addHandler(handler)
    try:
        found = [made for _, made in opened([row], lambda row: chat_prompt(row, store))]
    finally:
        logger.removeHandler(handler)
    assert isinstance(found[0], ChatError) is gone
    (line,) = map(json.loads, (tmp_path / "lines.jsonl").read_text().splitlines())
    assert (line["row_ids"], line["media_ids"]) == (["p1"], [source_hash(file)])


def test_a_png_without_a_seal_is_not_put_in_the_place_of_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root, store = tmp_path / "root", tmp_path / "media"
    root.mkdir()
    (root / "a.jpg").write_bytes(photograph("JPEG", sideways=True))
    (made,) = imported(root, store, [Medium("image", "a.jpg")])
    old = made.rename(made.with_name(f"{source_hash(made)}.png"))
    for _ in range(2):
        with pytest.raises(MediaError):
            open_image(old)
    assert ["an earlier version stored it so" in record.getMessage() for record in caplog.records] == [True]
