"""Who may read and write what is made, and files that are used only where nobody else could have written them.

Kept replies and people's notes are for the eyes of whoever may write their folder; tables and checkpoints are not here.

A folder that its group may write is shared: what is made in it is for user and group, as the umask has it. In any other
folder it is for the user alone. Nobody else reads it in either case. What a team shares follows the umask.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

_UMASK = re.compile(r"^Umask:\s*([0-7]+)$", re.MULTILINE)


def make_private(path: Path) -> None:
    """Make an empty file for its owner (0600), or for owner and group (0660 less the umask) in a folder that is shared.

    A file that is there stays as it is. Raises OSError.
    """
    shared = bool(path.parent.stat().st_mode & stat.S_IWGRP)
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o660 if shared else 0o600))
    except FileExistsError:
        return


def foreign_file(folder: Path) -> str:
    """What in a folder another user wrote, or could have written, in words; empty where that is nothing.

    The folder itself counts, and all that is in it; a link counts as foreign, wherever it leads.

    >>> import tempfile
    >>> foreign_file(Path(tempfile.mkdtemp()))  # for its owner alone
    ''
    """
    for path in (folder, *sorted(folder.rglob("*"))):
        found = path.lstat()
        if stat.S_ISLNK(found.st_mode):
            return f"{path} is a link"
        if found.st_uid != os.geteuid():
            return f"{path} belongs to user {found.st_uid}, and this is user {os.geteuid()}"
        if path == folder and found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return f"other users may write to {path}"
    return ""


def follow_umask(path: Path) -> None:
    """Give what was made under a temporary name, for its owner alone, the permissions that it would have had otherwise.

    Raises OSError. A folder keeps its set-group-ID bit, by which a group's folder hands its group on.
    """
    found = path.stat().st_mode
    every = 0o777 if path.is_dir() else 0o666
    path.chmod((found & 0o7000) | (every & ~umask()))


def umask() -> int:
    """The umask of this process. Linux tells it; elsewhere it is read by setting it for a moment."""
    try:
        found = _UMASK.search(Path("/proc/self/status").read_text(encoding="ascii"))
    except OSError:
        found = None
    if found is not None:
        return int(found[1], 8)
    value = os.umask(0o077)
    os.umask(value)
    return value
