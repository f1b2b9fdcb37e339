"""Images for the page: decoded, made smaller and encoded anew, so that no byte of a source reaches a browser."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Literal

from PIL import Image

from dt2it_pipeline.human_review.review_page.catalogue import Medium
from dt2it_pipeline.media.images import ImageSource
from dt2it_pipeline.media.opening import open_image

CONTENT_TYPE = "image/png"
Size = Literal["small", "large"]
_SIDES: dict[Size, int] = {"small": 160, "large": 1600}  # pixels
_MOST_BYTES = 128 << 20


class Thumbnails:
    """Images, and first frames of videos, made when they are first asked for. The last ones stay in memory.

    Args:
        read: gives the image, or the frame, of a medium. It raises MediaError where there is none.
        most_bytes: of encoded images that stay in memory.
    """

    def __init__(self, read: Callable[[Medium], ImageSource], most_bytes: int = _MOST_BYTES) -> None:
        self._read, self._most = read, most_bytes
        self._kept: OrderedDict[tuple[Medium, Size], bytes] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        self._making = threading.BoundedSemaphore(4)  # a decoded image may take hundreds of megabytes

    @property
    def bytes_kept(self) -> int:
        """Bytes of encoded images in memory."""
        return self._bytes

    def png(self, medium: Medium, size: Size) -> bytes:
        """An image as PNG, no larger than its size allows.

        Raises:
            MediaError: it is missing, damaged or too large.
            VideoDecoderError: it is a video, and this installation reads none.
        """
        key = (medium, size)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        with self._making:
            made = _encoded(self._read(medium), _SIDES[size])
        with self._lock:
            if key not in self._kept:
                self._kept[key] = made
                self._bytes += len(made)
            while self._bytes > self._most and len(self._kept) > 1:
                self._bytes -= len(self._kept.popitem(last=False)[1])
        return made


def _encoded(source: ImageSource, side: int) -> bytes:
    image = open_image(source)
    image.thumbnail((side, side))
    bare = Image.new("RGB", image.size)  # without the metadata of the source
    bare.paste(image)
    buffer = io.BytesIO()
    bare.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()
