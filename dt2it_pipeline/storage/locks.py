"""Locks between processes. The kernel holds them, so a lock ends with its process, however that ends.

They work between processes of one machine, containers included, and over network file systems that carry `flock`.

A lock belongs to an open file, not to a process: a child that keeps the file open keeps the lock after its parent is
gone. So forked children close the files of all locks at once; programs that are started do not get them, unless they
are handed `held_here()`, since what they do belongs to what is locked.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # a file system without locks
_HOLDER = re.compile(r"process (\d+) on (\S+), ")  # begins the text of a lock's file
_own = threading.local()  # paths that this thread holds, with their open files
_open: set[int] = set()  # files of locks that this process has open
_guard = threading.Lock()  # held while _open changes, and by who forks, so that no file is missing there


@contextlib.contextmanager
def exclusive(path: Path, on_wait: Callable[[str], None]) -> Iterator[bool]:
    """Hold the lock of a file (made if absent) during the block; waits while another process or thread holds it.

    Args:
        path: the lock's file, in a folder that exists. It stays: a waiting process has it open.
        on_wait: called once with a sentence that names who holds the lock, where one has to wait.

    Yields:
        Whether this call took the lock: False where this thread holds it already, or the file system has no locks.
    """
    held: dict[Path, int] = _own.__dict__.setdefault("held", {})
    if path in held:
        yield False
        return
    descriptor = _opened(path, os.O_CREAT)
    try:
        taken = _take(descriptor, path, on_wait)
        held[path] = descriptor
        yield taken
    finally:
        held.pop(path, None)
        _close(descriptor)


def held_here() -> tuple[int, ...]:
    """Open files of the locks that this thread holds by `exclusive`: a program that gets them keeps the locks, too."""
    return tuple(_own.__dict__.get("held", {}).values())


def hold_until_exit(path: Path) -> None:
    """Take the lock of a file that is this process's alone, and keep it until the process ends; see `holder`."""
    descriptor = _opened(path, os.O_CREAT)
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _sign(descriptor)


def share_until_exit(path: Path, alone: Callable[[], None]) -> None:
    """Hold the lock of a file (made if absent) together with other processes, until this one ends.

    Args:
        path: the lock's file, in a folder that exists.
        alone: is called first where no other process holds the lock; none gets it until it returns.
    """
    descriptor = _opened(path, os.O_CREAT)
    with contextlib.suppress(OSError):  # another process holds it, or the file system has no locks
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        alone()
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_SH)


def is_free(path: Path) -> bool:
    """Whether a lock's file is there and no process holds it."""
    try:
        descriptor = _opened(path)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        _close(descriptor)
    return True


def _take(descriptor: int, path: Path, on_wait: Callable[[str], None]) -> bool:
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait(f"waits for {holder(path)}")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno in UNSUPPORTED:
            return False
        raise
    _sign(descriptor)
    return True


def _sign(descriptor: int) -> None:
    """Write into a lock's file who holds it."""
    os.truncate(descriptor, 0)
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}, at it since {since}\n".encode())


def holder(path: Path) -> str:
    """Who holds a lock, in words. Raises OSError where its file cannot be read."""
    signed = path.read_text(encoding="utf-8", errors="replace").strip()
    found = _HOLDER.match(signed)
    if found and found[2] == socket.gethostname() and not _runs(int(found[1])):
        return f"programs that were started by {signed}; that process has ended, and they end next"
    return signed or "another process"


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    return True


def _opened(path: Path, flags: int = 0) -> int:
    with _guard:
        descriptor = os.open(path, os.O_RDWR | flags, 0o666)
        _open.add(descriptor)
    return descriptor


def _close(descriptor: int) -> None:
    """Give a lock back and close its file."""
    with _guard:
        if descriptor in _open:  # else this is a forked child that leaves its parent's block
            _open.discard(descriptor)
            with contextlib.suppress(OSError):  # closing would leave the lock with the process that it was handed to
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)


def _close_in_child() -> None:
    """Close every lock's file in a forked child: the parent keeps its locks, and they end with the parent."""
    for descriptor in _open:
        with contextlib.suppress(OSError):  # closed by somebody else
            os.close(descriptor)
    _open.clear()
    _own.__dict__.clear()
    _guard.release()


os.register_at_fork(before=_guard.acquire, after_in_parent=_guard.release, after_in_child=_close_in_child)
