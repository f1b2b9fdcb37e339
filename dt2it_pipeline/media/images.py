"""The one safe way to decode an image: whatever opens one of a source, a store or a user comes through here.

Stages open images by opening.py, which also sees to those of a media store.

An image is hostile until it has been decoded: its file may be missing, cut off, huge or no image at all. One list of
formats (others of Pillow's decoders start programs), one limit of bytes and one of pixels hold everywhere, so that what
the import has stored can be read by all. Every fault is a MediaError.
"""

from __future__ import annotations

import io
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from PIL import Image, UnidentifiedImageError

from dt2it_pipeline.media.errors import MediaError
from dt2it_pipeline.media.pixels import to_rgb, upright_size

IMAGE_EXTENSIONS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "GIF": "gif", "BMP": "bmp"}  # by Pillow's format
IMAGE_FORMATS = (*IMAGE_EXTENSIONS, "TIFF", "JPEG2000", "AVIF")  # that are read; the last ones are stored as PNG
MAX_PIXELS = 100_000_000  # of an image; a decompression bomb fills memory long before it shows anything
MAX_BYTES = 512 << 20  # of an image's file; a PNG of MAX_PIXELS with four channels of noise has 400 MB
_FILTERS = threading.Lock()  # warning filters belong to the process, not to a thread

ImageSource = Path | bytes | Image.Image


@contextmanager
def opened_image(source: ImageSource, name: str = "", kind: str = "image") -> Iterator[Image.Image]:
    """An image whose header has been checked and whose pixels have not been decoded yet, open within the block.

    The block should only work on the image: whatever is raised in it counts as damage to the image.

    Args:
        source: a file, whose path has been confined before; a file's content; or an image of Pillow, whose bytes have
            no limit.
        name: of the image in messages; that of its file by default.
        kind: what the reasons of errors speak of; `video` where the image is a frame.

    Raises:
        MediaError: the image is missing, none of the formats that are read, damaged, or larger than MAX_BYTES or
            MAX_PIXELS.
    """
    name = name or (source.name if isinstance(source, Path) else "image in memory")
    try:
        if isinstance(source, Image.Image):
            _check_pixels(source, name, kind)
            yield source
            return
        with _stream(source, name, kind) as stream, _header(stream) as image:
            _check_pixels(image, name, kind)
            yield image
    except MediaError:
        raise
    except Image.DecompressionBombError as error:  # Pillow's own limit, above ours
        raise MediaError(f"{kind} too large", f"{name}: {error}") from error
    except UnidentifiedImageError as error:  # its words hold an address in memory
        raise MediaError(f"unreadable {kind}", f"{name}: no image of a known format") from error
    except Exception as error:  # Pillow's decoders raise many kinds for damaged files
        raise MediaError(f"unreadable {kind}", f"{name}: {error}") from error


def decoded_image(source: ImageSource, name: str = "", kind: str = "image") -> Image.Image:
    """An image decoded whole, as upright RGB (`pixels.to_rgb`); arguments and errors are those of `opened_image`."""
    with opened_image(source, name, kind) as image:
        return to_rgb(image)


def image_size(source: ImageSource, name: str = "", kind: str = "image") -> tuple[int, int]:
    """Width and height in pixels of an image as `decoded_image` gives it, from its header; errors likewise."""
    with opened_image(source, name, kind) as image:
        return upright_size(image)


def open_file(path: Path, name: str, kind: str = "image") -> IO[bytes]:
    """The file of an image or frame, open for reading. Arguments are those of `opened_image`.

    Raises:
        MediaError: there is none, it is no regular file (a pipe would never end), or larger than MAX_BYTES.
        OSError: it may not be read.
    """
    try:
        found = path.stat()
    except (OSError, ValueError) as error:  # also a name that is too long, or holds a NUL
        reason = getattr(error, "strerror", None) or error
        raise MediaError(f"missing {kind}", f"{name[:200]}: {reason}") from error
    if not stat.S_ISREG(found.st_mode):
        raise MediaError(f"missing {kind}", f"{name}: not a file")
    check_bytes(found.st_size, name, kind)
    return path.open("rb")


def check_bytes(size: int, name: str, kind: str = "image") -> None:
    """Raise MediaError where a file of `size` bytes is larger than any image may be."""
    if size > MAX_BYTES:
        raise MediaError(f"{kind} too large", f"{name}: {size} bytes")


def _check_pixels(image: Image.Image, name: str, kind: str) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise MediaError(f"{kind} too large", f"{name}: {image.width} x {image.height} pixels")


def _stream(source: Path | bytes, name: str, kind: str) -> IO[bytes]:
    if isinstance(source, Path):
        return open_file(source, name, kind)
    check_bytes(len(source), name, kind)
    return io.BytesIO(source)


def _header(stream: IO[bytes]) -> Image.Image:
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is near Pillow's first one
        return Image.open(stream, formats=IMAGE_FORMATS)
