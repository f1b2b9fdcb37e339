"""What is known of the media in a store: which file of a source became which, and the perceptual hash of each.

It is a cache beside the media, in one SQLite file: an import that was killed finds there what it had done, and
decontamination finds hashes that were computed when the images were decoded. Without the file everything is computed
again, with the same result.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from dt2it_pipeline.config.paths import project_root
from dt2it_pipeline.media import video
from dt2it_pipeline.media.damage import has_other_content
from dt2it_pipeline.media.errors import MediaError, VideoDecoderError
from dt2it_pipeline.media.images import opened_image
from dt2it_pipeline.media.pixels import perceptual_hash
from dt2it_pipeline.media.store import Stored
from dt2it_pipeline.media.web import is_address
from dt2it_pipeline.storage.sqlite_cache import CacheKind, SqliteCache

_VERSION = 2  # of the perceptual hash: another one is another file
_MEDIA = CacheKind(
    name="the index of the media store",
    tables="""
CREATE TABLE IF NOT EXISTS media (sha256 TEXT PRIMARY KEY, kind TEXT, path TEXT, perceptual BLOB) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS files (stamp TEXT PRIMARY KEY, sha256 TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS origins (sha256 TEXT PRIMARY KEY, origin TEXT) WITHOUT ROWID;
""",
    probe="""SELECT (SELECT sha256 FROM media LIMIT 1), (SELECT sha256 FROM files LIMIT 1),
    (SELECT origin FROM origins LIMIT 1)""",
    if_lost="what it held is computed again",
    durable=False,
)


@dataclass(frozen=True)
class Origin:
    """Where a medium came from, so that it can be read again.

    Attributes:
        kind: `image` or `video`.
        root: of the source's media; None where names are addresses.
        prefix: taken off the front of names; see `MediaRoot`.
        web: whether names may be addresses of the web.
        name: of the medium below the root.
    """

    kind: str
    root: str | None
    prefix: str
    web: bool
    name: str

    def __str__(self) -> str:
        return self.name if self.root is None else f"{self.name} of {self.root}"

    def is_for_others(self) -> bool:
        """Whether its name can be shown to others: an address with a user, a password or a query may hold a key.

        >>> Origin("image", None, "", True, "https://host.example/a.png?signature=1").is_for_others()
        False
        """
        if not is_address(self.name):
            return True
        try:
            address = urlsplit(self.name)
        except ValueError:  # none that could be fetched
            return False
        return not address.query and "@" not in address.netloc

    def for_others(self) -> dict[str, Any]:
        """As another machine can use it, JSON-able: a root in the project is written as it counts from the project."""
        root = None if self.root is None else Path(self.root)
        if root is not None and root.is_relative_to(project_root()):
            root = root.relative_to(project_root())
        return vars(self) | {"root": None if root is None else root.as_posix()}

    @classmethod
    def from_others(cls, given: Any) -> Origin:
        """The origin that another machine's `for_others` wrote. Raises ValueError where it is none."""
        wanted: dict[str, type | UnionType] = {
            "kind": str, "root": str | None, "prefix": str, "web": bool, "name": str
        }  # fmt: skip
        if not isinstance(given, dict) or given.keys() != wanted.keys():
            raise ValueError("not the fields of an origin")
        if not all(isinstance(given[name], kind) for name, kind in wanted.items()):
            raise ValueError("a field of another type")
        root = given["root"]
        if given["kind"] not in ("image", "video") or (root is not None and ("\0" in root or ".." in Path(root).parts)):
            raise ValueError(f"kind {given['kind']!r:.20}, root {root!r:.200}")
        return cls(**given | {"root": None if root is None else str(project_root() / root)})


class MediaIndex:
    """The index of one media store; used by one thread, and by several processes at a time."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.file = store / f"index.{_VERSION}.sqlite"

    def known(self, stamps: Sequence[str], hashes: Sequence[str]) -> tuple[dict[str, Stored], dict[str, Stored]]:
        """Media by the stamp of the file that they came from and by content hash, as far as they still lie there."""
        if not self.file.exists():
            return {}, {}
        if not os.access(self.store, os.W_OK):  # a store that others wrote is read without its index
            return {}, {}
        with SqliteCache(_MEDIA, self.file) as cache:
            by_stamp = dict(cache.select("SELECT stamp, sha256 FROM files WHERE stamp IN", stamps))
            wanted = sorted({*by_stamp.values(), *hashes})
            found = {
                sha256: Stored({"kind": kind, "sha256": sha256, "path": path}, _number(value))
                for sha256, kind, path, value in cache.select(
                    "SELECT sha256, kind, path, perceptual FROM media WHERE sha256 IN", wanted
                )
            }
        with ThreadPoolExecutor() as threads:  # reading takes less than decoding, which the index saves
            whole = dict(zip(found, threads.map(self._is_whole, found.values()), strict=True))
        found = {sha256: medium for sha256, medium in found.items() if whole[sha256]}
        return {stamp: found[sha] for stamp, sha in by_stamp.items() if sha in found}, found

    def _is_whole(self, medium: Stored) -> bool:
        """Whether a medium lies in the store as it was stored."""
        file = self.store / medium.row["path"]
        try:
            return file.exists() and not has_other_content(file)
        except OSError:
            return False

    def origins(self, hashes: Iterable[str]) -> dict[str, Origin]:
        """Where media came from, by their content hashes, as far as that is known."""
        if not self.file.exists() or not os.access(self.store, os.W_OK):
            return {}
        with SqliteCache(_MEDIA, self.file) as cache:
            asked = "SELECT sha256, CAST(origin AS BLOB) FROM origins WHERE sha256 IN"
            rows = list(cache.select(asked, sorted(set(hashes))))
        found: dict[str, Origin] = {}
        for sha256, origin in rows:
            with contextlib.suppress(ValueError, TypeError, RecursionError):  # a damaged row counts as unknown
                found[sha256] = Origin(**json.loads(origin))
        return found

    def add_origins(self, origins: Mapping[str, Origin]) -> None:
        """Remember where media came from, by their content hashes; what is known already stays."""
        if not origins:
            return
        with SqliteCache(_MEDIA, self.file) as cache:
            cache.write(("INSERT OR IGNORE INTO origins VALUES (?, ?)", _written(origins.items())))

    def add(self, media: Iterable[tuple[str | None, Stored]], origins: Iterable[tuple[str, Origin]] = ()) -> None:
        """Remember media, each with the stamp of its file where it has one, and where they came from (by sha256)."""
        rows = list(media)
        if not rows:
            return
        with SqliteCache(_MEDIA, self.file) as cache:
            cache.write(
                (
                    "INSERT OR REPLACE INTO media VALUES (?, ?, ?, ?)",
                    ((m.row["sha256"], m.row["kind"], m.row["path"], _blob(m.perceptual)) for _, m in rows),
                ),
                (
                    "INSERT OR REPLACE INTO files VALUES (?, ?)",
                    ((stamp, m.row["sha256"]) for stamp, m in rows if stamp is not None),
                ),
                (
                    "INSERT OR REPLACE INTO origins VALUES (?, ?)",
                    _written(origins),
                ),
            )

    def perceptual_hashes(self, media: Iterable[Mapping[str, str]]) -> dict[str, int]:
        """Content hash -> perceptual hash of media rows (kind, sha256, path); those without structure are left out.

        What is not known yet is computed from the store, in parallel, and remembered.
        """
        rows = {medium["sha256"]: medium for medium in media}
        found = self.known([], list(rows))[1]
        missing = [row for key, row in rows.items() if key not in found and (self.store / row["path"]).exists()]
        if missing:
            with ThreadPoolExecutor() as threads:
                computed = list(threads.map(self._computed, missing))
            self.add((None, medium) for medium in computed)
            found |= {medium.row["sha256"]: medium for medium in computed}
        return {key: medium.perceptual for key, medium in found.items() if medium.perceptual is not None}

    def _computed(self, row: Mapping[str, str]) -> Stored:
        try:
            if row["kind"] == "video":
                value = perceptual_hash(Image.fromarray(next(iter(video.frames(self.store / row["path"], (0,))))))
            else:
                with opened_image(self.store / row["path"]) as image:
                    value = perceptual_hash(image)
        except (MediaError, VideoDecoderError, OSError):
            value = None  # a stage that needs the image reports it; equal files are found all the same
        return Stored(dict(row), value)


def _written(origins: Iterable[tuple[str, Origin]]) -> Iterator[tuple[str, str]]:
    # ASCII escapes: a file's name need not be UTF-8.
    return ((sha256, json.dumps(vars(origin))) for sha256, origin in origins)


def _blob(value: int | None) -> bytes | None:
    return None if value is None else value.to_bytes(8, "big")


def _number(value: bytes | None) -> int | None:
    return None if value is None else int.from_bytes(value, "big")
