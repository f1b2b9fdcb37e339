"""Files of few: those that only some may read, and those that are used only where nobody else could have written them.

Kept replies and people's notes are for the eyes of whoever may write their folder; tables and checkpoints are not here.

A folder that its group may write is shared: what is made in it is for user and group, as the umask has it. In any other
folder it is for the user alone. Nobody else reads it in either case.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path


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
