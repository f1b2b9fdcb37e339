"""Folders that a person names for a command's output: what lies there is replaced only where this project made it.

A command leaves a small hidden file in what it writes, which lists what that was. So a folder that holds a thesis, or
an output that somebody has since made a repository of, is refused instead of being replaced.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, ClassVar

from dt2it_pipeline.errors import UserError


class OutputFolderError(UserError, ValueError):
    """A folder may not be replaced; the message says why and what to do."""

    help_page: ClassVar[str] = "troubleshooting#output-folder"


def replaceable(folder: Path, marker: str, what: str) -> Path:
    """The real path of a folder that is not there, is empty, or is an earlier output that nobody has changed.

    Args:
        folder: as the person named it.
        marker: name of the file that `mark` leaves there.
        what: what such an output is called in errors, without an article.

    Raises:
        OutputFolderError: it is anything else; whatever is replaced is lost, so that nothing else may be.
    """
    try:
        target = folder.resolve()
        if target.exists() and not target.is_dir():
            raise NotADirectoryError
        left = target / marker
        made = json.loads(left.read_text(encoding="utf-8"))["content"] if left.is_file() else None
        here = _content(target, marker) if target.exists() else {}
        other = sorted(name for name, content in here.items() if (made or {}).get(name) != content)
    except NotADirectoryError:
        raise OutputFolderError(f"{folder} is a file; name a folder") from None
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:  # RuntimeError: links that go in a circle
        raise OutputFolderError(f"cannot look into {folder}: {error}; name a new folder") from error
    if Path.cwd().is_relative_to(target) or os.path.ismount(target):
        raise OutputFolderError(f"{folder} cannot be replaced while it is in use; name a folder in it")
    if here and made is None:
        raise OutputFolderError(
            f"{folder} is not empty and no {what} (it has no {marker}); name a new folder, or remove it"
        )
    if other:
        raise OutputFolderError(
            f"{folder} holds more than was written there, or it was changed since ({', '.join(other[:5])}"
            f"{', ...' if len(other) > 5 else ''}); name a new folder"
        )
    return target


def mark(folder: Path, marker: str, **metadata: Any) -> None:
    """Say in a finished folder what is in it, by content; `metadata` are kept beside that."""
    value = {**metadata, "content": _content(folder, marker)}
    (folder / marker).write_text(json.dumps(value) + "\n", encoding="utf-8")


def _content(folder: Path, marker: str) -> dict[str, str]:
    """What lies below a folder but for the marker's file, by path from there: SHA-256 of a file, or what else it is."""
    found = {}
    for entry in sorted(folder.rglob("*")):
        name = entry.relative_to(folder).as_posix()
        if entry.is_symlink() or not (entry.is_file() or entry.is_dir()):
            found[name] = "something that no command writes"
        elif entry.is_dir():
            found[name] = "folder"
        elif name != marker:
            with entry.open("rb") as stream:
                found[name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found
