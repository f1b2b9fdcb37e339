"""Temporary files and folders whose names say who writes them, so that those of killed processes can be removed.

A name holds the process's number, when it began, and where that number means something: the running kernel and its
namespace of processes. What another machine or container left is judged by its age.

A folder that was moved aside to be replaced is not removed until the new one is there: where its owner was killed
before that, it is put back.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

ASIDE, KEPT = ".old.", "old"  # begins the name of a folder that holds what was replaced, and what that is called in it
_QUIET = 24 * 3600.0  # seconds since the last change after which nobody can still be at it, whoever it was
_OWNER = re.compile(r"\.(?P<place>[0-9a-f]{8})-(?P<process>\d+)-(?P<start>\d+)\.")


def owned_prefix(prefix: str) -> str:
    """The prefix of a temporary name, with this process as its owner.

    >>> is_left(Path(owned_prefix(".table.parquet") + "x7f"))  # this process lives
    False
    """
    process = os.getpid()
    return f"{prefix}.{_place()}-{process}-{_own_start(process)}."


def is_left(path: Path) -> bool:
    """Whether the owner of a temporary file or folder is surely gone; False for names that `owned_prefix` did not make.

    A file of another machine, or of a container with process numbers of its own, counts as left when it has not changed
    for a day.
    """
    found = _OWNER.search(path.name)
    if found is None:
        return False
    if found["place"] == _place():
        return str(_start_of(int(found["process"])) or 0) != found["start"]
    return _seconds_quiet(path) > _QUIET


def sweep(folders: Iterable[Path]) -> list[Path]:
    """Clear what dead processes left right below some folders; returns what that was. What lives is not touched."""
    found = left_in(folders)
    for path in found:
        clear(path)
    return found


def left_in(folders: Iterable[Path]) -> list[Path]:
    """What dead processes left right below some folders."""
    return sorted(filter(is_left, _entries(folders)))


def places_of(home: Path) -> Iterator[Path]:
    """Folders of an artifact home, and the system's own, in which temporary files are made."""
    yield from (Path(tempfile.gettempdir()), home)
    artifacts = ("artifacts/*", "artifacts/*/*", "artifacts/*/*/*")
    for pattern in (*artifacts, "media/*", "sources", "sources/*", "cache", "cache/vision_features/*/*"):
        yield from home.glob(pattern)


def remove(path: Path) -> None:
    """Remove a file, a link or a whole folder; one that is gone already is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def clear(path: Path) -> None:
    """Remove a temporary file or folder, but first put back what its owner had moved aside and not replaced yet."""
    target = place_of_kept(path)
    if target is not None:
        with contextlib.suppress(OSError):  # somebody has just made another one there
            (path / KEPT).rename(target)
    remove(path)


def place_of_kept(path: Path) -> Path | None:
    """Where what a temporary folder holds belongs, if it is the only copy; else None.

    >>> import tempfile
    >>> aside = Path(tempfile.mkdtemp(prefix=owned_prefix(f"{ASIDE}key")))
    >>> (aside / KEPT).mkdir()
    >>> place_of_kept(aside).name
    'key'
    """
    found = _OWNER.search(path.name)
    if found is None or not path.name.startswith(ASIDE) or not (path / KEPT).exists():
        return None
    target = path.with_name(path.name[len(ASIDE) : found.start()])
    return None if target.exists() else target


def _entries(folders: Iterable[Path]) -> Iterator[Path]:
    for folder in folders:
        try:
            with os.scandir(folder) as found:
                names = [entry.path for entry in found if _OWNER.search(entry.name)]
        except OSError:  # no folder, or somebody has just renamed it
            continue
        yield from map(Path, names)


def _seconds_quiet(path: Path) -> float:
    try:
        inside = [path, *path.rglob("*")] if path.is_dir() and not path.is_symlink() else [path]
        return time.time() - max(entry.lstat().st_mtime for entry in inside)
    except OSError:  # somebody is at work on it, who has just removed or renamed a part
        return 0.0


@functools.cache
def _place() -> str:
    """Where process numbers of this process mean something, as eight hex digits."""
    try:
        kernel = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:  # not Linux: by its name, and numbers of dead processes may be taken again
        kernel, namespace = socket.gethostname(), ""
    return hashlib.sha256(f"{kernel} {namespace}".encode()).hexdigest()[:8]


@functools.cache
def _own_start(process: int) -> int:
    """When this process, of that number, began; 0 where that is not known."""
    return _start_of(process) or 0


def _start_of(process: int) -> int | None:
    """When a process began, in ticks since the machine did; None where there is none, 1 where nobody says when."""
    try:
        line = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
        return int(line.rpartition(")")[2].split()[19])  # the name before it may hold anything
    except FileNotFoundError:
        pass
    except (OSError, ValueError, IndexError):
        return None
    if Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return 1
