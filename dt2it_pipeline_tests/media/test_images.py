"""The one way to open an image, confine a path and find markers."""

from __future__ import annotations

import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from dt2it_pipeline.media.errors import MediaError
from dt2it_pipeline.media.images import opened_image
from dt2it_pipeline.media.markers import marker_kinds, split_at_markers, user_marker_kinds, without_markers
from dt2it_pipeline.media.opening import image_size, open_image, png_thumbnail
from dt2it_pipeline.media.paths import confined
from dt2it_pipeline.media.store import store_image
from dt2it_pipeline_tests.support.ingest_world import PIXELS, encoded, sideways


def test_content_decides_the_format_and_not_the_name(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 4), (255, 0, 0, 128)).save(tmp_path / "wrong.jpg", format="PNG")
    assert open_image(tmp_path / "wrong.jpg").mode == "RGB"


def test_a_file_its_content_and_an_image_in_memory_are_the_same_image(tmp_path: Path) -> None:
    content = sideways()
    (tmp_path / "a.jpg").write_bytes(content)
    with Image.open(tmp_path / "a.jpg") as image:
        seen = [open_image(source) for source in (tmp_path / "a.jpg", content, image)]
        sizes = [image_size(source) for source in (tmp_path / "a.jpg", content, image)]
    assert len({image.tobytes() for image in seen}) == 1
    assert sizes == [seen[0].size] * 3


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("cut.png", "unreadable image"),
        ("empty.png", "unreadable image"),
        ("script.eps", "unreadable image"),  # a decoder that would start a program is never tried
        ("absent.png", "missing image"),
        ("a" * 300, "missing image"),
        ("folder", "missing image"),
        ("pipe", "missing image"),  # would never end
    ],
)
def test_what_is_no_image_is_refused(tmp_path: Path, name: str, reason: str) -> None:
    whole = encoded(Image.effect_noise((64, 64), 50))
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "script.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(MediaError) as caught:
        open_image(tmp_path / name)
    assert caught.value.reason == reason
    with pytest.raises(MediaError) as caught:
        open_image(tmp_path / name, "frame 1", "video")
    assert (caught.value.reason, caught.value.detail[:7]) == (reason.replace("image", "video"), "frame 1")


def test_one_limit_of_pixels_and_one_of_bytes_hold_for_every_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = Image.effect_noise((64, 64), 50)
    content = encoded(image)
    (tmp_path / "a.png").write_bytes(content)
    monkeypatch.setattr("dt2it_pipeline.media.images.MAX_PIXELS", 64 * 64 - 1)
    for source in (tmp_path / "a.png", content, image):
        with pytest.raises(MediaError, match=r"image too large: .*: 64 x 64 pixels"):
            image_size(source)
    monkeypatch.setattr("dt2it_pipeline.media.images.MAX_PIXELS", 64 * 64)
    assert image_size(content) == (64, 64)
    monkeypatch.setattr("dt2it_pipeline.media.images.MAX_BYTES", len(content) - 1)
    for stored in (tmp_path / "a.png", content):
        with pytest.raises(MediaError, match=rf"image too large: .*: {len(content)} bytes"):
            image_size(stored)
    with pytest.raises(MediaError, match=rf"image too large: a.png: {len(content)} bytes"):
        store_image("a.png", tmp_path, tmp_path / "store")


def test_images_up_to_the_limit_are_opened_without_a_warning_in_any_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("L", (64, 64)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 - 1)  # above it Pillow warns, above twice of it refuses
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        with ThreadPoolExecutor(8) as threads:
            sizes = list(threads.map(lambda _: image_size(tmp_path / "a.png"), range(200)))
        assert warnings.filters == before
    assert sizes == [(64, 64)] * 200
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 16)
    with pytest.raises(MediaError, match="image too large"):
        image_size(tmp_path / "a.png")


def test_damage_that_shows_in_the_block_is_an_error_of_the_image() -> None:
    whole = encoded(Image.effect_noise((64, 64), 50))
    with pytest.raises(MediaError, match="unreadable image: cut"), opened_image(whole[:2000], "cut") as image:
        assert image.size == (64, 64)  # the header is whole
        image.load()


def test_a_thumbnail_is_small_and_holds_pixels_alone() -> None:
    image = Image.fromarray(PIXELS).resize((300, 150))
    image.info["comment"] = "secret"
    with opened_image(png_thumbnail(image, 100)) as small:
        small.load()
        assert (small.format, small.size, small.info) == ("PNG", (100, 50), {})


def test_a_path_out_of_its_root_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "media"
    root.mkdir()
    (tmp_path / "outside.png").touch()
    (root / "link.png").symlink_to(tmp_path / "outside.png")
    for path in ("link.png", "../outside.png", str(tmp_path / "outside.png"), "a/../../media.png"):
        with pytest.raises(MediaError, match="path outside the media root"):
            confined(path, root)
    assert confined("a/../b.png", root) == confined(root / "b.png", root) == root.resolve() / "b.png"
    for path in ("a\0.png", "\ud800.png"):
        with pytest.raises(MediaError) as caught:
            confined(path, root, "video")
        assert caught.value.reason == "missing video"


def test_markers_are_found_split_and_taken_out() -> None:
    text = "<image>Is it like <video> <Image> <img>?<image>"
    assert marker_kinds(text) == ["image", "video", "image"]
    assert split_at_markers(text) == [
        ("image", "<image>"), ("text", "Is it like "), ("video", "<video>"), ("text", " <Image> <img>?"),
        ("image", "<image>"),
    ]  # fmt: skip
    assert "".join(piece for _, piece in split_at_markers(text)) == text
    assert without_markers(text, "\\1") == "\\1Is it like \\1 <Image> <img>?\\1"
    turns = [{"role": "user", "text": "<image>"}, {"role": "assistant", "text": "<video>"}]
    assert user_marker_kinds(turns) == ["image"]
