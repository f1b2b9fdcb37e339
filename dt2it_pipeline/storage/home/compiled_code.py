"""How long compiled code is kept: what nothing has read or written for 30 days goes, and what exceeds 5 GiB.

Each start that compiles removes both from its own folder (reward/modeling/compile_cache.py), but only where no other
process uses the folder: each one holds the lock of a file in it, together with the others, until it ends. `dt2it gc`
lists whole folders that nothing has used for as long, such as those of a processor that is gone.

A use is the time of the last access as the file system keeps it, to a day on Linux (`relatime`); where it keeps none
(`noatime`), of the last change. What is removed too early is compiled again. Files that lie in one folder go together,
since PyTorch and Triton look for one of them by another.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dt2it_pipeline.storage import locks

DAYS = 30
MOST_BYTES = 5 * 2**30
LOCK = "in-use.lock"


@dataclass(frozen=True)
class _Files:
    """The files right in a folder.

    Attributes:
        folder: it.
        used: when one of them was last used, in seconds since 1970.
        bytes: of all of them.
    """

    folder: Path
    used: float
    bytes: int


def prune_and_hold(folder: Path) -> int:
    """Hold a folder of compiled code until this process ends; returns the bytes of old code that went before.

    Args:
        folder: of one user and kind of processor. Nothing goes where another process holds it.

    Raises:
        OSError: the lock's file cannot be made.
    """
    removed = 0

    def prune() -> None:
        nonlocal removed
        removed = _prune(folder)

    locks.share_until_exit(folder / LOCK, prune)
    return removed


def unused_folders(place: Path) -> Iterator[Path]:
    """The folders in a place of compiled code that no process holds and nothing has used for 30 days."""
    for folder in sorted(place.glob("*")):
        if folder.is_symlink() or not folder.is_dir():
            continue
        lock = folder / LOCK
        if lock.exists() and not locks.is_free(lock):
            continue
        used = [files.used for files in _all_files(folder)] or [folder.lstat().st_mtime]
        if max(used) < _oldest():
            yield folder


def _prune(folder: Path) -> int:
    kept, gone = 0, 0
    for files in sorted(_all_files(folder), key=lambda files: -files.used):
        removed = 0
        if files.used < _oldest() or kept + files.bytes > MOST_BYTES:
            _remove_files(files.folder)
            # Others may own a file, so that it stays and takes its room.
            removed = files.bytes - _files_in(files.folder).bytes
        gone += removed
        kept += files.bytes - removed
    return gone


def _oldest() -> float:
    return time.time() - DAYS * 24 * 3600


def _all_files(top: Path) -> Iterator[_Files]:
    return (files for name, _, _ in os.walk(top) if (files := _files_in(Path(name))).used)


def _files_in(folder: Path) -> _Files:
    used, size = 0.0, 0
    with contextlib.suppress(OSError):
        for file in folder.iterdir():
            with contextlib.suppress(OSError):
                found = file.lstat()
                if file.name != LOCK and not stat.S_ISDIR(found.st_mode):
                    used, size = max(used, found.st_atime, found.st_mtime), size + found.st_size
    return _Files(folder, used, size)


def _remove_files(folder: Path) -> None:
    """Remove the files right in a folder, and the folder where nothing else is in it."""
    with contextlib.suppress(OSError):
        inside = [entry for entry in folder.iterdir() if entry.name != LOCK]
        if all(entry.is_symlink() or not entry.is_dir() for entry in inside) and not (folder / LOCK).exists():
            shutil.rmtree(folder)
            return
        for entry in inside:
            if entry.is_symlink() or not entry.is_dir():
                with contextlib.suppress(OSError):
                    entry.unlink()
