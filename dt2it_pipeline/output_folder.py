"""Folders that a person names for a command's output: what lies there is replaced only where this project made it.

A command leaves a small hidden file in what it writes, which says what that was. So a folder that holds a thesis, or an
output that somebody has since made a repository of, is refused instead of being replaced.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class OutputFolderError(ValueError):
    """A folder may not be replaced; the message says why and what to do."""


def replaceable(folder: Path, marker: str, what: str) -> Path:
    """The real path of a folder that is not there, is empty, or is an earlier output to which nobody added anything.

    Args:
        folder: as the person named it.
        marker: name of the file that `mark` leaves there.
        what: what such an output is called in errors, without an article.

    Raises:
        OutputFolderError: it is anything else; whatever is replaced is lost, so that nothing else may be.
    """
    try:
        target = folder.resolve()
        here = {entry.name for entry in target.iterdir()} if target.exists() else set()
        left = target / marker
        made = {marker, *json.loads(left.read_text(encoding="utf-8"))["entries"]} if left.is_file() else set()
    except NotADirectoryError:
        raise OutputFolderError(f"{folder} is a file; name a folder") from None
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:  # RuntimeError: links that go in a circle
        raise OutputFolderError(f"cannot look into {folder}: {error}; name a new folder") from error
    if Path.cwd().is_relative_to(target) or os.path.ismount(target):
        raise OutputFolderError(f"{folder} cannot be replaced while it is in use; name a folder in it")
    if here and not made:
        raise OutputFolderError(
            f"{folder} is not empty and no {what} (it has no {marker}); name a new folder, or remove it"
        )
    if more := sorted(here - made):
        raise OutputFolderError(f"{folder} holds more than was written there ({', '.join(more)}); name a new folder")
    return target


def mark(folder: Path, marker: str, **facts: Any) -> None:
    """Say in a finished folder which of its entries are the command's; `facts` are kept beside them."""
    value = {**facts, "entries": sorted(entry.name for entry in folder.iterdir())}
    (folder / marker).write_text(json.dumps(value) + "\n", encoding="utf-8")
