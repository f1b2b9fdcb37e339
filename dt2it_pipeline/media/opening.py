"""How every stage opens an image or a video: what a media store holds must be as it was stored, or is fetched again.

What belongs here: what becomes of a stored medium that is damaged or gone. What does not: decoding (images.py,
video.py), and how one is told from a whole one (damage.py).
"""

from __future__ import annotations

import io
import logging
import shutil
import tarfile
import tempfile
import threading
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from dt2it_pipeline.media import images
from dt2it_pipeline.media.damage import TEMPORARY, has_other_content, is_stored, source_hash
from dt2it_pipeline.media.errors import MediaError, VideoDecoderError
from dt2it_pipeline.media.images import ImageSource
from dt2it_pipeline.media.index import MediaIndex, Origin
from dt2it_pipeline.media.root import MediaRoot
from dt2it_pipeline.media.store import store_image, store_video
from dt2it_pipeline.storage.atomic import sync
from dt2it_pipeline.storage.home.object_entries import SharedMedia
from dt2it_pipeline.storage.leftovers import owned_prefix

_logger = logging.getLogger(__name__)
_given_up: set[Path] = set()  # files that no source gives any more: asked for once per process
_fetching = threading.Lock()


def open_image(source: ImageSource, name: str = "", kind: str = "image") -> Image.Image:
    """An image decoded whole, as upright RGB (`pixels.to_rgb`).

    Arguments and errors are those of `images.opened_image`. A file of a media store must have the content that it was
    stored with; see `require_stored`.
    """
    if isinstance(source, Path):
        require_stored(source, name, kind)
    return images.decoded_image(source, name, kind)


def image_size(source: ImageSource, name: str = "", kind: str = "image") -> tuple[int, int]:
    """Width and height in pixels of an image as `open_image` gives it, from its header; errors likewise.

    Only a file whose header cannot be read is compared with what was stored.
    """
    try:
        return images.image_size(source, name, kind)
    except MediaError:
        if not isinstance(source, Path):
            raise
        require_stored(source, name, kind)
        return images.image_size(source, name, kind)


def png_thumbnail(source: ImageSource, side: int) -> bytes:
    """An image as a PNG of at most `side` x `side` pixels, without metadata; errors are those of `opened_image`."""
    small = open_image(source)
    small.thumbnail((side, side))
    bare = Image.new("RGB", small.size)
    bare.paste(small)
    buffer = io.BytesIO()
    bare.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def require_stored(file: Path, name: str = "", kind: str = "image") -> None:
    """Make sure that a file of a media store is as it was stored; any other file passes.

    One that is damaged or missing is fetched again from the source that it came from, with one line in the log.

    Args:
        file: whose path has been confined before.
        name: of it in messages; its own by default.
        kind: what the reasons of errors speak of.

    Raises:
        MediaError: it is damaged, and its source does not give it any more. One that is missing passes: who opens it
            says so.
    """
    fault = _fault_of(file)
    if fault is None or _fetched_again(file, fault) or not file.exists():
        return
    raise MediaError(
        f"unreadable {kind}",
        f"{name or file.name}: its content is not what was stored; "
        "`dt2it doctor --mend` and another run fetch it again",
    )


def shared_media(root: Path) -> SharedMedia:
    """What a copy of artifacts in an object store keeps and asks of the media store at `root`."""
    index = MediaIndex(root)

    def known(hashes: Iterable[str]) -> dict[str, Any]:
        found = index.origins(hashes)
        return {sha256: origin.for_others() for sha256, origin in found.items() if origin.is_for_others()}

    def keep(origins: Mapping[str, Any]) -> None:
        index.add_origins({sha256: Origin.from_others(origin) for sha256, origin in origins.items()})

    def fetch(file: Path) -> bool:
        fault = _fault_of(file)
        return fault is None or _fetched_again(file, fault)

    return SharedMedia(known, keep, fetch)


def _fault_of(file: Path) -> str | None:
    try:
        return "its content is not what was stored" if has_other_content(file) else None
    except FileNotFoundError:
        return "it is missing" if is_stored(file) else None
    except OSError:
        return None  # whoever opens it says why it cannot


def _fetched_again(file: Path, fault: str) -> bool:
    """Put a stored file back from its source. Returns whether it is as it was stored now."""
    with _fetching:  # of several threads that find the same file damaged, the first one mends it
        if _fault_of(file) is None:
            return True
        sha256 = source_hash(file)
        origin = None if file in _given_up else MediaIndex(file.parent.parent).origins([sha256]).get(sha256)
        why = "" if origin is None else _put_back(file, origin)
        if origin is None or why:
            if why and origin is not None:
                _logger.warning("%s: %s, and %s: %s", file, fault, origin, why, extra={"media_ids": [sha256]})
            _given_up.add(file)
            return False
    _logger.warning("%s: %s; it was fetched again from %s", file, fault, origin, extra={"media_ids": [sha256]})
    return True


def _put_back(file: Path, origin: Origin) -> str:
    """Store a medium from its source anew. Returns why that was not possible, empty where it was."""
    place = file.parent
    aside: Path | None = None
    try:
        # Beside the damaged one first: what the source gives now may be something else.
        aside = Path(tempfile.mkdtemp(prefix=owned_prefix(TEMPORARY), dir=place))
        root = MediaRoot(None if origin.root is None else Path(origin.root), origin.prefix, origin.web)
        try:
            stored = (store_video if origin.kind == "video" else store_image)(origin.name, root, aside)
        finally:
            root.close()
        if stored.row["sha256"] != source_hash(file):
            return "its source has another content now"
        if stored.row["path"].rpartition("/")[2] != file.name:
            return "an earlier version stored it so; start with an empty media folder and run construct again"
        if file.is_dir():
            file.rename(aside / "damaged")
        (aside / stored.row["path"]).rename(file)
        sync(place)
    except (MediaError, VideoDecoderError, OSError, ValueError, zipfile.BadZipFile, tarfile.TarError) as error:
        return str(error)
    finally:
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)
    return ""
