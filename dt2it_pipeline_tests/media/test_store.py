from __future__ import annotations

import hashlib
import json
import subprocess
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dt2it_pipeline.media import video
from dt2it_pipeline.media.errors import MediaError
from dt2it_pipeline.media.root import MediaRoot
from dt2it_pipeline.media.store import store_image, store_video
from dt2it_pipeline_tests.support.ingest_world import PIXELS, encoded, image
from dt2it_pipeline_tests.support.tiny import make_frames, make_video_file, moving


def test_a_folder_of_frames_is_stored_once_by_content(tmp_path: Path) -> None:
    root, media = tmp_path / "root", tmp_path / "media"
    make_frames(root / "a", 12, 5.0)
    make_frames(root / "b", 12, 5.0)
    make_frames(root / "slow", 12, 1.0)
    first, second, slow = (store_video(name, root, media).row for name in ("a", "b", "slow"))
    assert first == second
    assert first["sha256"] != slow["sha256"]
    stored = media / first["path"]
    assert json.loads((stored / "video.json").read_text())["fps"] == 5.0
    assert video.read_header(stored) == video.VideoHeader(12, 5.0, 32, 48)
    frames = list(video.frames(stored, range(12)))
    assert all(np.array_equal(*pair) for pair in zip(frames, moving(12, (32, 48)), strict=True))  # 10 comes after 9
    assert sorted(entry.name for entry in media.rglob("tmp*")) == []


def test_a_video_file_is_stored_by_content(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    root, media = tmp_path / "root", tmp_path / "media"
    root.mkdir()
    made = make_video_file(root / "clip.dat.avi", 20, 10.0)
    row = store_video("clip.dat.avi", root, media).row
    assert row == {"kind": "video", "sha256": made["sha256"], "path": f"{made['sha256'][:2]}/{made['sha256']}.avi"}
    assert video.read_header(media / row["path"]) == video.VideoHeader(20, 10.0, 32, 48)
    every = list(video.frames(media / row["path"], range(20)))
    some = list(video.frames(media / row["path"], (3, 3, 17)))
    assert [np.array_equal(some[i], every[n]) for i, n in enumerate((3, 3, 17))] == [True] * 3


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("absent", "missing video"),
        ("../outside", "path outside the media root"),
        ("link", "path outside the media root"),
        ("damaged", "unreadable image"),
        ("text.mp4", "unknown video format"),
        ("header.mp4", "unreadable video"),
    ],
)
def test_what_cannot_be_used_is_refused_and_leaves_nothing(tmp_path: Path, name: str, reason: str) -> None:
    pytest.importorskip("cv2")
    root, media = tmp_path / "root", tmp_path / "media"
    make_frames(tmp_path / "outside", 3, 2.0)
    make_frames(root / "damaged", 3, 2.0)
    (root / "damaged" / "frame2.png").write_bytes(b"nothing")
    make_frames(root / "link", 3, 2.0)
    (root / "link" / "frame1.png").unlink()
    (root / "link" / "frame1.png").symlink_to(tmp_path / "outside" / "frame1.png")
    (root / "text.mp4").write_text("not a video at all")
    (root / "header.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + b"\0" * 64)
    with pytest.raises(MediaError) as caught:
        store_video(name, root, media)
    assert caught.value.reason == reason
    assert not media.exists() or not list(media.rglob("*"))


def test_a_photograph_with_further_images_behind_it_is_a_jpeg(tmp_path: Path) -> None:
    photo = Image.fromarray(PIXELS)
    row = store_image(encoded(photo, "MPO", save_all=True, append_images=[photo]), tmp_path, tmp_path / "store").row
    assert row["path"].endswith(".jpg")


@pytest.mark.parametrize("damage", ["overwritten", "ends early"])
def test_a_damaged_image_in_a_zip_costs_no_other(tmp_path: Path, damage: str) -> None:
    pixels = encoded(Image.fromarray(PIXELS), "BMP")
    with zipfile.ZipFile(tmp_path / "m.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.bmp", pixels)
        archive.writestr("b.bmp", pixels)
        size = archive.getinfo("a.bmp").compress_size
    raw = bytearray((tmp_path / "m.zip").read_bytes())
    start = 30 + len("a.bmp")
    raw[start : start + 20] = b"\xff" * 20 if damage == "overwritten" else raw[start : start + 20]
    if damage == "ends early":  # both headers say that the stream is half as long
        for place in (18, raw.index(b"PK\x01\x02") + 20):
            raw[place : place + 4] = (size // 2).to_bytes(4, "little")
    (tmp_path / "m.zip").write_bytes(raw)
    root = MediaRoot(tmp_path / "m.zip")
    with pytest.raises(MediaError, match=r"unreadable image: a\.bmp"):
        store_image("a.bmp", root, tmp_path / "store")
    assert store_image("b.bmp", root, tmp_path / "store").row["path"].endswith(".bmp")
    root.close()


@pytest.mark.parametrize("name", ["loop", "loop/a.png"])
def test_a_link_that_leads_to_itself_is_a_missing_image(tmp_path: Path, name: str) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root/loop").symlink_to("loop")
    root = MediaRoot(tmp_path / "root")
    assert root.stamp(name) is None
    with pytest.raises(MediaError, match="missing image: loop"):
        store_image(name, root, tmp_path / "store")


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_two_files_of_an_archive_have_means_neither(tmp_path: Path, kind: str) -> None:
    files = [image(tmp_path / f"{colour}.png", colour) for colour in ("red", "blue", "green")]
    names = ("a.png", "a.png", "b.png")
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "m.zip", "w") as packed:
            for file, name in zip(files, names, strict=True):
                packed.write(file, name)
    else:
        with tarfile.open(tmp_path / "m.tar", "w") as archive:
            for file, name in zip(files, names, strict=True):
                archive.add(file, f"./{name}")
    root = MediaRoot(tmp_path / f"m.{kind}")
    for name in ("a.png", "./a.png"):
        with pytest.raises(MediaError, match=r"ambiguous image: .*a\.png: the archive holds several files"):
            store_image(name, root, tmp_path / "store")
    assert store_image("b.png", root, tmp_path / "store") == store_image("green.png", tmp_path, tmp_path / "store")
    root.close()


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_images_in_a_folder_of_an_archive_are_found_where_one_alone_can_be_meant(tmp_path: Path, kind: str) -> None:
    red, blue = (image(tmp_path / f"{colour}.png", colour) for colour in ("red", "blue"))
    members = {"data/images/a.png": red, "data/xa.png": blue, "one/b.png": red, "two/b.png": blue, "a.png.txt": blue}
    file = tmp_path / f"m.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as packed:
            for name, each in members.items():
                packed.write(each, name)
    else:
        with tarfile.open(file, "w") as archive:
            for name, each in members.items():
                archive.add(each, name)
    root = MediaRoot(file)
    wanted = store_image("red.png", tmp_path, tmp_path / "store")
    for name in ("images/a.png", "a.png", "./images/a.png", "data/images/a.png", "one/b.png"):
        assert root.holds(name) and store_image(name, root, tmp_path / "store") == wanted
    for name in ("b.png", "ages/a.png", "../images/a.png", "/images/a.png", "", "images/"):
        assert not root.holds(name)
        with pytest.raises(MediaError, match=r"ambiguous image" if name == "b.png" else "missing image"):
            store_image(name, root, tmp_path / "store")
    root.close()


def test_a_file_with_holes_in_a_tar_is_refused(tmp_path: Path) -> None:
    """What lies in the archive is not the file."""
    file = image(tmp_path / "red.png", "red")
    with file.open("r+b") as stream:
        stream.truncate(2**20)
    subprocess.run(["tar", "--sparse", "-cf", tmp_path / "m.tar", "-C", tmp_path, "red.png"], check=True)
    assert (tmp_path / "m.tar").stat().st_size < 2**17
    root = MediaRoot(tmp_path / "m.tar")
    with pytest.raises(MediaError, match=r"file with holes: .*red\.png: pack the archive anew, without --sparse"):
        store_image("red.png", root, tmp_path / "store")
    root.close()


def test_a_hard_link_in_a_tar_is_the_file_that_it_links_to(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    (tmp_path / "b.png").hardlink_to(tmp_path / "a.png")
    with tarfile.open(tmp_path / "m.tar", "w") as archive:
        for name in ("a.png", "b.png"):
            archive.add(tmp_path / name, f"./{name}")
        assert archive.getmembers()[1].islnk()
    root = MediaRoot(tmp_path / "m.tar")
    first, second = (store_image(name, root, tmp_path / "store").row for name in ("a.png", "b.png"))
    assert first == second
    root.close()


@pytest.mark.parametrize(
    ("format", "mode"), [("TIFF", "RGB"), ("TIFF", "I;16"), ("TIFF", "CMYK"), ("JPEG2000", "RGB"), ("AVIF", "RGBA")]
)
def test_formats_that_few_readers_know_are_stored_as_png(tmp_path: Path, format: str, mode: str) -> None:
    pixels = Image.new("RGB", (12, 8), (200, 40, 40))
    made = Image.new(mode, (12, 8), 40_000) if mode == "I;16" else pixels.convert(mode)
    content = encoded(made, format)
    stored = store_image(content, tmp_path, tmp_path / "store").row
    assert stored["path"].endswith(".png") and stored["sha256"] == hashlib.sha256(content).hexdigest()
    with Image.open(tmp_path / "store" / stored["path"]) as image:
        assert image.format == "PNG" and image.size == (12, 8)


def test_of_a_tiff_with_several_pages_the_first_is_stored(tmp_path: Path) -> None:
    first, second = (Image.new("RGB", (4, 4), colour) for colour in ("red", "blue"))
    first.save(tmp_path / "a.tiff", save_all=True, append_images=[second])
    stored = store_image("a.tiff", tmp_path, tmp_path / "store").row
    with Image.open(tmp_path / "store" / stored["path"]) as image:
        assert image.getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("images\\a b.png", ""),
        ("C:\\data\\images\\a b.png", "C:\\data\\"),
        ("file:///far/images/a%20b.png", "/far/"),
        ("file:///far/images/a%20b.png", "file:///far/"),
        ("back\\slash.png", ""),
    ],
)
def test_paths_of_other_systems_and_file_addresses_are_paths(tmp_path: Path, name: str, prefix: str) -> None:
    for place in ("images/a b.png", "back\\slash.png"):
        image(tmp_path / place)
    root = MediaRoot(tmp_path, prefix)
    assert store_image(name, root, tmp_path / "store").row["path"].endswith(".png")
    with pytest.raises(MediaError, match="outside"):
        store_image("file:///etc/passwd", MediaRoot(tmp_path), tmp_path / "store")
    with pytest.raises(MediaError, match="outside"):
        store_image("..\\..\\etc\\passwd", MediaRoot(tmp_path / "images"), tmp_path / "store")
