"""Digests of files: taken when a file is made, compared when it is used, so that a damaged one is never used.

What belongs here: whether a file still has the content that it was written with. What does not: what becomes of one
that has not (artifacts.py makes it anew, `dt2it doctor` names it).
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

_THREADS = 4  # files that are read at once
_LARGE = 2**20  # bytes; hashing fewer takes less than starting a thread
_known: dict[tuple[int, int, int, int], str] = {}
_lock = threading.Lock()


def sha256_of(file: Path) -> str:
    """SHA-256 of a file's content in hex; read once per process, and again when its size or time has changed.

    A file is known by its inode, so that renaming it costs no second reading.

    Raises:
        OSError: it cannot be read.
    """
    with file.open("rb") as stream:
        state = file.stat()
        key = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)
        with _lock:
            found = _known.get(key)
        if found is None:
            found = hashlib.file_digest(stream, "sha256").hexdigest()  # in blocks, whatever the size
            with _lock:
                _known[key] = found
    return found


def digests_of(folder: Path, files: Iterable[Path] | None = None) -> dict[str, str]:
    """SHA-256 of files below a folder (all of them by default), by their paths from there, in order."""
    chosen = sorted((file for file in folder.rglob("*") if file.is_file()) if files is None else files)
    large = [file for file in chosen if file.stat().st_size > _LARGE]
    # Hashing does not hold the interpreter's lock. Where memory has run out, Python 3.11 waits for ever for a thread
    # that could not start, so that none is started without need.
    if len(large) > 1:
        with ThreadPoolExecutor(_THREADS) as threads:
            list(threads.map(sha256_of, large))
    return {file.relative_to(folder).as_posix(): sha256_of(file) for file in chosen}


def damage_in(folder: Path, digests: Mapping[str, str]) -> tuple[str, str] | None:
    """The first file of a folder that is not as it was written, and what is wrong with it; None where all are.

    Args:
        folder: holds the files; others than those in `digests` do not count.
        digests: as `digests_of` gave them when the files were written.
    """
    for name, digest in digests.items():
        try:
            if sha256_of(folder / name) != digest:
                return name, "its content is not what was written"
        except OSError as error:
            return name, f"it cannot be read ({error.strerror})"
    return None


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with a checksum of itself under `checksum`.

    >>> is_sealed(sealed({"rows": 3})), is_sealed(sealed({"rows": 3}) | {"rows": 7})
    (True, False)
    """
    plain = {name: value for name, value in content.items() if name != "checksum"}
    return plain | {"checksum": hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()}


def is_sealed(content: Mapping[str, Any]) -> bool:
    """Whether a JSON object, as it was read, is the one that `sealed` gave."""
    return sealed(content)["checksum"] == content.get("checksum")
