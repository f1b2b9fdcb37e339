"""Permissions of what was made under a temporary name, which is for its owner alone at first."""

from __future__ import annotations

import os
import re
from pathlib import Path

_OF_PROCESS = re.compile(r"^Umask:\s*([0-7]+)$", re.MULTILINE)


def follow_umask(path: Path) -> None:
    """Give a file or folder the permissions that it would have under this name from the start. Raises OSError.

    A folder keeps its set-group-ID bit, by which a group's folder hands its group on.
    """
    found = path.stat().st_mode
    every = 0o777 if path.is_dir() else 0o666
    path.chmod((found & 0o7000) | (every & ~umask()))


def umask() -> int:
    """The umask of this process. Linux tells it; elsewhere it is read by setting it for a moment."""
    try:
        found = _OF_PROCESS.search(Path("/proc/self/status").read_text(encoding="ascii"))
    except OSError:
        found = None
    if found is not None:
        return int(found[1], 8)
    value = os.umask(0o077)
    os.umask(value)
    return value
