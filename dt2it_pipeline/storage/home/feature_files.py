"""Features of images that a home keeps: how much they take, and which of them nothing has used for long.

What belongs here: looking at files. What does not: what they hold (reward/data/kept_features.py).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

FOLDER = "vision_features"  # below `cache` of a home
DAYS = 30


def folder_bytes(root: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(found.st_size for _, found in _files(root))


def unused_features(root: Path) -> Iterator[Path]:
    """Features that nothing has read or written for 30 days, as the file system keeps the time of the last access.

    Where it keeps none (`noatime`), they are those that were written so long ago; what is removed is made again.
    """
    oldest = time.time() - DAYS * 24 * 3600
    for file, found in _files(root):
        if max(found.st_atime, found.st_mtime) < oldest:
            yield file


def _files(root: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for folder, _, names in os.walk(root):
        for name in sorted(names):
            file = Path(folder) / name
            with contextlib.suppress(OSError):  # another process has just renamed it
                yield file, file.lstat()
