"""What an image looks like to every reader: upright, 8 bits, on white; and what its hash says."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dt2it_pipeline.media.errors import MediaError
from dt2it_pipeline.media.pixels import ORIENTATION, perceptual_hash, to_rgb
from dt2it_pipeline.media.store import inline_content, store_image
from dt2it_pipeline_tests.support.ingest_world import PIXELS, RNG, encoded, sideways, transparent


def test_a_image_on_its_side_is_stored_upright_under_the_hash_of_what_came(tmp_path: Path) -> None:
    content = sideways()
    stored = store_image(content, tmp_path, tmp_path)
    with Image.open(tmp_path / stored.row["path"]) as image:
        assert (image.format, image.size, image.getexif().get(0x0112)) == ("PNG", (48, 64), None)
        upright = np.asarray(image).astype(int)
    assert np.abs(upright - np.rot90(PIXELS, -1)).mean() < 12  # JPEG's loss
    plain = store_image(encoded(Image.fromarray(PIXELS), "JPEG", quality=95), tmp_path, tmp_path)
    assert plain.row["sha256"] != stored.row["sha256"]
    assert Path(plain.row["path"]).suffix == ".jpg"
    again = store_image(content, tmp_path, tmp_path / "other")
    assert again == stored
    assert (tmp_path / "other" / again.row["path"]).read_bytes() == (tmp_path / stored.row["path"]).read_bytes()


def test_sixteen_bits_do_not_turn_white(tmp_path: Path) -> None:
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    stored = store_image(encoded(Image.fromarray(values)), tmp_path, tmp_path)
    with Image.open(tmp_path / stored.row["path"]) as image:
        assert np.asarray(to_rgb(image))[0, :, 0].tolist() == [0, 1, 128, 255]
    exif = Image.Exif()
    exif[0x0112] = 6  # and they may lie on their side as well
    turned = store_image(encoded(Image.fromarray(values), exif=exif), tmp_path, tmp_path)
    with Image.open(tmp_path / turned.row["path"]) as image:
        assert np.asarray(image)[:, 0].tolist() == [0, 1, 128, 255]
    dark = np.array([[0, 100, 200, 250]], dtype=np.uint16)  # all but black, and stays so
    assert np.asarray(to_rgb(Image.fromarray(dark))).max() == 1


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(kind: str) -> None:
    rgb = to_rgb(transparent(kind))
    assert rgb.mode == "RGB"
    assert rgb.getpixel((1, 1)) == (255, 255, 255)
    if kind == "RGBA":
        assert rgb.getpixel((0, 0)) == (255, 0, 0)
        assert rgb.getpixel((2, 2)) == pytest.approx((127, 127, 127), abs=1)


def test_images_in_the_row_are_those_of_the_file(tmp_path: Path) -> None:
    import base64

    content = encoded(Image.fromarray(RNG.integers(0, 255, (40, 40, 3), dtype=np.uint8)))
    (tmp_path / "a.png").write_bytes(content)
    text = base64.b64encode(content).decode()
    forms: list[str | bytes] = ["a.png", content, text, f"data:image/png;base64,{text[:60]}\n{text[60:]}"]
    rows = [store_image(form, tmp_path, tmp_path / "media").row for form in forms]
    assert all(row == rows[0] for row in rows)


@pytest.mark.parametrize("value", ["data:image/png;base64,***", "not base64! " * 200])
def test_what_is_no_base64_is_refused(value: str) -> None:
    with pytest.raises(MediaError, match="neither a path nor base64") as caught:
        inline_content(value)
    assert caught.value.reason == "unreadable image"


@pytest.mark.parametrize("size", [11_000, 60_000])  # beyond our limit, and beyond Pillow's
def test_a_bomb_is_refused_by_its_header(tmp_path: Path, size: int) -> None:
    head = bytearray(encoded(Image.new("1", (8, 8))))
    head[16:24] = struct.pack(">II", size, size)
    head[29:33] = struct.pack(">I", zlib.crc32(head[12:29]))
    with pytest.raises(MediaError, match=r"image too large: image in the row"):
        store_image(bytes(head), tmp_path, tmp_path / "media")
    assert not (tmp_path / "media").exists()


def test_the_hash_is_of_structure() -> None:
    image = Image.fromarray(PIXELS)
    whole = perceptual_hash(image)
    assert whole is not None
    for changed in (
        image.resize((200, 150)),
        image.convert("L"),
        Image.open(io.BytesIO(encoded(image, "JPEG", quality=40))),
    ):
        other = perceptual_hash(changed)
        assert other is not None and (whole ^ other).bit_count() <= 6
    unlike = perceptual_hash(Image.fromarray(PIXELS[::-1]))
    assert unlike is not None and (whole ^ unlike).bit_count() > 12
    assert perceptual_hash(Image.new("RGB", (50, 50), "red")) is None


def photograph(width: int, height: int, seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 255, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("size", [(1200, 900), (641, 479), (90, 300), (20, 20)])
def test_a_jpeg_of_which_the_brightness_is_decoded_has_the_hash_of_the_whole_image(
    tmp_path: Path, mode: str, size: tuple[int, int]
) -> None:
    content = encoded(photograph(*size, seed=size[0]).convert(mode), "JPEG", quality=85, progressive=size[0] > 700)
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        whole = perceptual_hash(image)
        assert image.size == size
    stored = store_image(content, tmp_path, tmp_path)
    assert whole is not None and stored.perceptual is not None
    assert (whole ^ stored.perceptual).bit_count() <= 1  # brightness is rounded once less
    assert (tmp_path / stored.row["path"]).read_bytes() == content


@pytest.mark.parametrize("size", [(641, 479), (1000, 300)])
def test_a_jpeg_that_lies_on_its_side_has_the_hash_of_the_upright_one(size: tuple[int, int]) -> None:
    upright = photograph(*size, seed=size[0])
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    content = encoded(upright.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=85, exif=exif)
    with Image.open(io.BytesIO(content)) as image:  # not decoded yet: of its blocks the means alone are
        found, wanted = perceptual_hash(image), perceptual_hash(upright)
    assert found is not None and wanted is not None
    assert (found ^ wanted).bit_count() <= 2


def test_hashing_a_long_image_takes_little_memory_beside_it() -> None:
    image = photograph(400_000, 40, seed=3).convert("L")
    tracemalloc.start()
    try:
        assert perceptual_hash(image) is not None
        assert tracemalloc.get_traced_memory()[1] < 2**20  # numpy's arrays are traced
    finally:
        tracemalloc.stop()


def test_a_damaged_jpeg_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    content = encoded(photograph(300, 200, seed=1), "JPEG", quality=85)
    for end in (2, 100, len(content) // 3, len(content) // 2, len(content) - 100):
        with pytest.raises(MediaError, match="unreadable image"):
            store_image(content[:end], tmp_path, tmp_path)
