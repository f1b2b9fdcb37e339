"""Whether a medium in a store still is what was stored: its name is the hash of what came from the source.

Most media are stored as they came, so that their content has the hash of their name. An image that was stored as PNG
instead has another content. It is called <hash>.upright.png and ends with a seal: a text chunk that names what it was
made of and the hash of all its other bytes. So a whole PNG that is another one counts as damaged, too. One that came as
PNG is called <hash>.given.png. The frames of a video have their digests in a sealed video.json, which names what they
were made of.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from pathlib import Path

from dt2it_pipeline.storage.integrity import digests_of, is_sealed, sha256_of

_STORED = re.compile(r"[0-9a-f]{64}")
_PNG = b"\x89PNG\r\n\x1a\n"
_END = 12  # bytes of a PNG's last chunk
_SEAL = b"dt2it-stored"  # keyword of the text chunk (PNG specification, third edition, 11.3.3.2)
FRAMES = "video.json"  # in the folder of a video that is stored as frames: their rate, digests and source
UPRIGHT, GIVEN = "upright.png", "given.png"  # end the names of images that were stored as PNG, and came as PNG
TEMPORARY = "tmp"  # begins the names of files that are being written
_known: dict[tuple[str, str], bool] = {}  # by the digests of a PNG and of its source: whether it was made of that


def source_hash(file: Path) -> str:
    """The hash of what a file or folder of a media store was made of, by its name."""
    return file.name.partition(".")[0]


def is_stored(file: Path) -> bool:
    """Whether a path is that of a file in a media store."""
    source = source_hash(file)
    return bool(_STORED.fullmatch(source)) and file.parent.name == source[:2]


def has_other_content(file: Path) -> bool:
    """Whether a file of a media store surely has another content than it was stored with; False for any other file.

    A video that is stored as a folder of frames counts as one file. Each file is read once per process.

    Raises:
        OSError: it cannot be read.
    """
    if not is_stored(file):
        return False
    if file.is_dir():
        return _has_other_frames(file)
    source, found = source_hash(file), sha256_of(file)
    if found == source:
        return False
    if file.name != f"{source}.{UPRIGHT}":
        return True
    if (found, file.name) not in _known:
        _known[found, file.name] = is_sealed_png(file.read_bytes(), source)
    return not _known[found, file.name]


def sealed_png(content: bytes, source: str) -> bytes:
    """A PNG with a seal before its last chunk.

    Args:
        content: of the PNG.
        source: hash of what it was made of.
    """
    return content[:-_END] + _seal(content, source) + content[-_END:]


def is_sealed_png(content: bytes, source: str) -> bool:
    """Whether a PNG is the one that `sealed_png` made of that source."""
    place = len(content) - _END - len(_seal(b"", source))
    if place < len(_PNG):
        return False
    return sealed_png(content[:place] + content[-_END:], source) == content


def _seal(content: bytes, source: str) -> bytes:
    text = b"tEXt" + _SEAL + f"\0{source} {hashlib.sha256(content).hexdigest()}".encode()
    return (len(text) - 4).to_bytes(4) + text + zlib.crc32(text).to_bytes(4)


def _has_other_frames(folder: Path) -> bool:
    """Whether anything in the folder of a stored video has changed, by the digests in its video.json."""
    try:
        known = json.loads((folder / FRAMES).read_text(encoding="utf-8"))
        if not is_sealed(known) or known["sha256"] != folder.name:
            return True
        frames = [file for file in folder.iterdir() if file.name != FRAMES]
        return digests_of(folder, frames) != known["frames"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, FileNotFoundError):
        return True
