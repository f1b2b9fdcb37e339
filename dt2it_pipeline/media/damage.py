"""Whether a medium in a store still is what was stored: its name is the hash of its content.

An image that was stored as PNG instead of as it came has another content than its name says; the checksums that a PNG
holds of its own parts then have to do.
"""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path

from dt2it_pipeline.storage.integrity import digests_of, is_sealed, sha256_of

_STORED = re.compile(r"[0-9a-f]{64}")
_PNG = b"\x89PNG\r\n\x1a\n"
FRAMES = "video.json"  # in the folder of a video that is stored as frames: their rate and digests
TEMPORARY = "tmp"  # begins the names of files that are being written


def is_stored(file: Path) -> bool:
    """Whether a path is that of a file in a media store."""
    return bool(_STORED.fullmatch(file.stem)) and file.parent.name == file.stem[:2]


def has_other_content(file: Path) -> bool:
    """Whether a file of a media store surely has another content than it was stored with; False for any other file.

    A video that is stored as a folder of frames counts as one file.

    Raises:
        OSError: it cannot be read.
    """
    if not is_stored(file):
        return False
    if file.is_dir():
        return _has_other_frames(file)
    return sha256_of(file) != file.stem and not (file.suffix == ".png" and _is_whole_png(file))


def _has_other_frames(folder: Path) -> bool:
    """Whether anything in the folder of a stored video has changed, by the digests in its video.json."""
    try:
        known = json.loads((folder / FRAMES).read_text(encoding="utf-8"))
        if not is_sealed(known):
            return True
        frames = [file for file in folder.iterdir() if file.name != FRAMES]
        return digests_of(folder, frames) != known["frames"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, FileNotFoundError):
        return True


def _is_whole_png(file: Path) -> bool:
    """Whether the checksums of all chunks of a PNG hold, to the last one (PNG specification, third edition, 5.3)."""
    content = file.read_bytes()
    if not content.startswith(_PNG):
        return False
    place = len(_PNG)
    while place + 12 <= len(content):
        length = int.from_bytes(content[place : place + 4])
        end = place + 8 + length
        kind = content[place + 4 : place + 8]
        if zlib.crc32(content[place + 4 : end]) != int.from_bytes(content[end : end + 4]):
            return False
        place = end + 4
        if kind == b"IEND":
            return place == len(content)
    return False
