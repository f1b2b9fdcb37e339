"""What a version in the object store consists of: the entry that is written last, and what one may say.

What belongs here: entries. What does not: moving files (object_store.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from dt2it_pipeline.storage import integrity
from dt2it_pipeline.storage.artifacts import Artifact
from dt2it_pipeline.storage.atomic import StoreError
from dt2it_pipeline.storage.home.checkup import media_in

_SHA256 = re.compile(r"[0-9a-f]{64}")


class DamagedVersion(StoreError):
    """A version in the object store is not as it was written."""


@dataclass(frozen=True)
class SharedMedia:
    """What is kept and asked of a media store, which lies in a layer above.

    Attributes:
        origins: gives where media came from, by their content hashes, as far as that is known; JSON-able.
        keep: is handed what another machine's `origins` gave. Raises ValueError where it is no such thing.
        fetch: puts a medium, given by its place in the media store, back from its source where it is damaged or
            missing; whether it is whole now.
    """

    origins: Callable[[Iterable[str]], Mapping[str, Any]]
    keep: Callable[[Mapping[str, Any]], None]
    fetch: Callable[[Path], bool]


def media_of(artifact: Artifact, root: Path) -> dict[str, str]:
    """Digests of the media files that an artifact's tables name, by their paths in the media store."""
    found: dict[str, str] = {}
    for path in sorted({path for table in artifact.tables.values() for path in media_in(table)}):
        place = root / path
        files = sorted(p for p in place.rglob("*") if p.is_file()) if place.is_dir() else [place]
        try:
            found |= {file.relative_to(root).as_posix(): integrity.sha256_of(file) for file in files}
        except OSError as error:
            raise StoreError(f"media/{path} cannot be read ({error.strerror}); run `dt2it doctor`") from error
    return found


def medium_of(path: str) -> PurePosixPath:
    """The medium that a file of the media store belongs to: the file itself, or the folder whose frame it is.

    >>> str(medium_of("ab/ab12.png")), str(medium_of("ab/ab34/000001.png"))
    ('ab/ab12.png', 'ab/ab34')
    """
    return PurePosixPath(*PurePosixPath(path).parts[:2])


def sources_of(paths: Iterable[str]) -> set[str]:
    """The hashes of what the media were made of to which files of the media store belong.

    >>> sources_of(["ab/ab12.upright.png", "ab/ab34/000001.png"]) == {"ab12", "ab34"}
    True
    """
    return {medium_of(path).name.partition(".")[0] for path in paths}


def keep(shared: SharedMedia, origins: Mapping[str, Any]) -> None:
    """Hand a version's origins on. Raises DamagedVersion where one is none."""
    try:
        shared.keep(origins)
    except ValueError as error:
        raise DamagedVersion(f"its entry has an origin of media that is none ({error})") from error


def checked(
    entry: Any, name: str, key: str, partition: str | None
) -> tuple[dict[str, str], dict[str, str], dict[str, Any]]:
    """Files, media and origins of an entry.

    Raises:
        DamagedVersion: it is no entry, names a place that is not its own, or the origin of a medium that it has not.
    """
    if not isinstance(entry, dict) or not integrity.is_sealed(entry):
        raise DamagedVersion("its entry is not what was written")
    if (entry.get("name"), entry.get("key"), entry.get("partition")) != (name, key, partition):
        raise DamagedVersion(f"its entry is that of {entry.get('name')}, {entry.get('key')}")
    both: list[dict[str, str]] = []
    for kind in ("files", "media"):
        files = entry.get(kind)
        if not isinstance(files, dict):
            raise DamagedVersion(f"its entry has no {kind}")
        for path, digest in files.items():
            parts = PurePosixPath(path).parts
            if path.startswith("/") or not parts or ".." in parts or "\\" in path or "\0" in path:
                raise DamagedVersion(f"its entry names the file {path!r}, which leads outside")
            if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
                raise DamagedVersion(f"its entry has no digest of {path}")
        both.append(files)
    origins = entry.get("origins", {})  # an entry of before origins were kept has none
    if not isinstance(origins, dict) or not origins.keys() <= sources_of(both[1]):
        raise DamagedVersion("its entry has origins of other media")
    return both[0], both[1], origins
