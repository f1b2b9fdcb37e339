"""What a stage resumes from: files, and a marker beside them that is written last and holds their digests.

What belongs here: whether such work is finished and as it was written. What does not: what the files hold, and what
becomes of work that is damaged (its stage does it again).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dt2it_pipeline.errors import UserError
from dt2it_pipeline.storage import integrity
from dt2it_pipeline.storage.atomic import sync, write_json_atomic

_FILES = "files"


class DamagedWorkError(UserError, ValueError):
    """Finished work is not as it was written; the message names the file. Its stage does it again."""


def synced_digests(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    """Bring files to the disk; returns their digests by their paths from `folder`, as `finish` wants them.

    Raises:
        OSError: a file cannot be written to the disk, or read.
    """
    chosen = list(files)
    for file in chosen:
        sync(file)
    return integrity.digests_of(folder, chosen)


def finish(marker: Path, digests: Mapping[str, str], content: Mapping[str, Any] | None = None) -> None:
    """Write the marker of finished work; its folders are brought to the disk first.

    Args:
        marker: the file to write; paths of `digests` count from its folder.
        digests: of the files, as `synced_digests` gives them.
        content: what else the marker is to hold, JSON-able.

    Raises:
        OSError: it cannot be written.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> part, marker = folder / "part.txt", folder / "part.json"
    >>> _ = part.write_text("done")
    >>> finish(marker, synced_digests(folder, [part]), {"rows": 3})
    >>> finished(marker)["rows"]
    3
    """
    for folder in sorted({(marker.parent / name).parent for name in digests}):
        sync(folder)
    write_json_atomic(integrity.sealed({**(content or {}), _FILES: dict(digests)}), marker)


def read_marker(marker: Path) -> dict[str, Any] | None:
    """What a marker holds; None where there is none, as where its work was under way when the process died.

    Raises:
        DamagedWorkError: it is not as it was written.
    """
    try:
        content = json.loads(marker.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not integrity.is_sealed(content):
            raise ValueError("its content is not what was written")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedWorkError(f"{marker}: {str(error).partition(chr(10))[0]}") from error
    return content


def check_files(marker: Path, content: Mapping[str, Any], part: slice = slice(None)) -> None:
    """Compare the files of a marker with their digests.

    Args:
        marker: lies beside the files.
        content: of the marker, from `read_marker`.
        part: which of the files, in the order of their names; so several processes can share them.

    Raises:
        DamagedWorkError: one is missing or not as it was written.
    """
    digests = content[_FILES]
    if found := integrity.damage_in(marker.parent, {name: digests[name] for name in sorted(digests)[part]}):
        raise DamagedWorkError(f"{marker.parent / found[0]}: {found[1]}")


def finished(marker: Path) -> dict[str, Any] | None:
    """What a marker holds, once all its files are found to be as they were written; None where there is no marker.

    Raises:
        DamagedWorkError: the marker or a file is not as it was written.
    """
    content = read_marker(marker)
    if content is not None:
        check_files(marker, content)
    return content
