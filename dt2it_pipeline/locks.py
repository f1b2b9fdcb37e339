"""Locks between processes. The kernel holds them, so a lock ends with its process, however that ends.

They work between processes of one machine, containers included, and over network file systems that carry `flock`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # a file system without locks
_own = threading.local()  # paths that this thread holds


@contextlib.contextmanager
def exclusive(path: Path, on_wait: Callable[[str], None]) -> Iterator[bool]:
    """Hold the lock of a file (made if absent) during the block; waits while another process or thread holds it.

    Args:
        path: the lock's file, in a folder that exists. It stays: whoever waits for it has it open.
        on_wait: is told once, in words, who holds the lock, when there is somebody to wait for.

    Yields:
        Whether this call took the lock: False where this thread holds it already, or the file system has no locks.
    """
    held: set[Path] = _own.__dict__.setdefault("held", set())
    if path in held:
        yield False
        return
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        taken = _take(descriptor, path, on_wait)
        held.add(path)
        yield taken
    finally:
        held.discard(path)
        os.close(descriptor)  # which gives the lock back


def hold_until_exit(path: Path) -> None:
    """Take the lock of a file that is this process's alone, and keep it until the process ends."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_free(path: Path) -> bool:
    """Whether a lock's file is there and no process holds it."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _take(descriptor: int, path: Path, on_wait: Callable[[str], None]) -> bool:
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = path.read_text(encoding="utf-8", errors="replace").strip() or "another process"
            on_wait(f"waits for {holder}")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno in UNSUPPORTED:
            return False
        raise
    os.truncate(descriptor, 0)
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}, at it since {since}\n".encode())
    return True
