"""From an opened image to RGB: the one way in which every reader of the pipeline sees an image.

Upright by its EXIF orientation, 16-bit values scaled to 8 bits, transparency on white, first frame of an animation.
Nothing else belongs here; opening a file that may be hostile is the task of images.py.
"""

from __future__ import annotations

import functools

import numpy as np
from PIL import Image, ImageOps

ORIENTATION = 0x0112  # the EXIF tag
_BLOCK = 8  # pixels a side of what a JPEG transforms at once
_GRID = 32  # pixels a side from which the perceptual hash is computed
_KEPT = 8  # lowest frequencies a direction
_FLAT = 4.0  # grey levels; an image that varies less has no structure to recognise


def to_rgb(image: Image.Image) -> Image.Image:
    """An opened image as upright RGB, whatever its mode; the image itself is left as it is."""
    if orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def eight_bits(image: Image.Image) -> Image.Image:
    """An image of 16 bits in grey levels as one of 8 bits: 0 to 65535 become 0 to 255.

    One of 32 bits does not say what its white is; values up to 255 are taken as they are, others as 16 bits.
    """
    values = np.asarray(image, dtype=np.float64)
    if image.mode.startswith("I;16") or values.max(initial=0) > 255:
        values = values / 257
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an opened image as `to_rgb` gives it, from its header."""
    width, height = image.size
    return (height, width) if orientation(image) in (5, 6, 7, 8) else (width, height)


def orientation(image: Image.Image) -> int:
    """EXIF orientation of an opened image, from its header; 1 is upright.

    A PNG may hold its EXIF behind its pixels; such an image counts as upright until it has been decoded, as the import
    does with every image.
    """
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    value = image.getexif().get(ORIENTATION, 1)
    return value if value in range(1, 9) else 1


def perceptual_hash(image: Image.Image) -> int | None:
    """64-bit hash of what an image looks like: close hashes (in bits that differ) mean alike images.

    The signs of the lowest 8 x 8 frequencies of the grey image's cosine transform against their median, the mean
    left out (pHash). Scaling and recompression change few bits. None for an image without structure, whose hash would
    be noise.

    Of an opened JPEG that is not decoded yet, only the brightness is decoded, and of a large one only the mean of each
    of its blocks of 8 x 8 pixels, which is all that is needed. Whoever needs its pixels loads it before.
    """
    width, height = upright_size(image)
    block = 1
    if image.format == "JPEG":
        # JPEG keeps the mean of a block by itself, so that the means of whole areas are the same either way.
        by_blocks = image.mode in ("L", "RGB") and min(width, height) >= _BLOCK * _GRID
        if image.draft("L", (image.width // _BLOCK, image.height // _BLOCK) if by_blocks else None) and by_blocks:
            block = _BLOCK
    plain = image.mode == "L" and orientation(image) == 1 and not image.has_transparency_data
    whole = image if plain else to_rgb(image).convert("L")
    across, down = (max(1, pixels // (2 * _GRID)) for pixels in whole.size)  # however long: little is left to be added
    if max(across, down) > 1:
        whole = whole.reduce((across, down))
    rows, columns = _areas(whole.height, height / block / down), _areas(whole.width, width / block / across)
    grey = rows @ np.asarray(whole, dtype=np.float64) @ columns.T
    if grey.std() < _FLAT:
        return None
    low = (_COSINES @ grey @ _COSINES.T).ravel()
    middle = (len(low) - 1) // 2
    bits = low > np.partition(low[1:], middle)[middle]  # the median of an odd number, which np.median takes longer for
    bits[0] = False  # the mean is brightness, no structure
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


@functools.lru_cache(256)
def _areas(pixels: int, length: float) -> np.ndarray:
    """Weights (_GRID, pixels) that make means of _GRID equal parts of `length` pixels, the last of them cut."""
    starts = np.arange(_GRID)[:, None] * (length / _GRID)
    places = np.arange(pixels)[None, :]
    shared = np.minimum(places + 1, starts + length / _GRID) - np.maximum(places, starts)
    return np.clip(shared, 0, None) / (length / _GRID)


def _cosines() -> np.ndarray:
    positions = np.arange(_GRID) + 0.5
    return np.cos(np.pi / _GRID * np.arange(_KEPT)[:, None] * positions[None, :])


_COSINES = _cosines()
