"""Imports the media of many items at once: over several threads, each file once, going on where a killed import was."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dt2it_pipeline.media.errors import MediaError, VideoDecoderError
from dt2it_pipeline.media.index import MediaIndex, Origin
from dt2it_pipeline.media.root import MediaRoot
from dt2it_pipeline.media.store import Medium, Stored, inline_content, store_image, store_video
from dt2it_pipeline.storage.atomic import sync_all

Imported = dict[str, str] | Exception
_LONGEST_NAME = 1024  # characters
_REMEMBERED = 100_000  # names of media, at about a kilobyte each


class MediaImporter:
    """Imports media below one root into one store.

    A name stands for one file as long as the importer lives: a source is read as it is when its reading begins.

    Args:
        root: the source's media root.
        store: the media store.
        threads: decoders at a time; Pillow's release the interpreter's lock. As many as processors where None.
    """

    def __init__(self, root: MediaRoot, store: Path, threads: int | None = None) -> None:
        self.root, self.store = root, store
        self.index = MediaIndex(store)
        threads = threads or len(os.sched_getaffinity(0))
        self._pool = None if threads == 1 else ThreadPoolExecutor(threads, thread_name_prefix="media")
        self._named: dict[Medium, Stored] = {}  # media by their names, as far as they are in the store

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()

    def rows(self, media: Sequence[Medium]) -> list[Imported]:
        """For every medium its row (kind, sha256, path), or the error that says why it cannot be used."""
        made: dict[Medium, Stored | Exception] = {}
        for one in dict.fromkeys(media):
            if (named := self._named.get(one)) is not None:
                made[one] = named
        if asked := [one for one in dict.fromkeys(media) if one not in made]:
            made |= self._imported(asked)
        return [found.row if isinstance(found := made[one], Stored) else found for one in media]

    def _imported(self, media: Sequence[Medium]) -> dict[Medium, Stored | Exception]:
        """Media that this importer has not met yet, each once."""
        stamps = {one: self._stamp(one) for one in media}
        hashes = {one: _hash(one) for one in media}
        by_stamp, by_hash = self.index.known(
            [stamp for stamp in stamps.values() if stamp], [key for key in hashes.values() if key]
        )
        made: dict[Medium, Stored | Exception] = {}
        for one in media:
            known = by_stamp.get(stamps[one] or "") or by_hash.get(hashes[one] or "")
            if known is not None:
                made[one] = known
        todo = [one for one in media if one not in made]
        mapped = map if self._pool is None else self._pool.map
        made |= zip(todo, mapped(self._stored, todo), strict=True)
        new = [(one, found) for one in todo if isinstance(found := made[one], Stored)]
        files = {self.store / found.row["path"] for one, found in new if one.kind == "image"}
        sync_all(files | {file.parent for file in files})  # before the index says that they are there
        self.index.add(
            ((stamps[one], found) for one, found in new),
            ((found.row["sha256"], self._origin(one.kind, one.value)) for one, found in new if _is_name(one.value)),
        )
        for one, found in made.items():
            if isinstance(found, Stored) and isinstance(one.value, str) and len(one.value) <= _LONGEST_NAME:
                self._named[one] = found
        if len(self._named) > _REMEMBERED:
            self._named.clear()
        return made

    def _stored(self, medium: Medium) -> Stored | Exception:
        try:
            if medium.kind == "video":
                return store_video(medium.value, self.root, self.store)
            return store_image(medium.value, self.root, self.store, synced=False)
        except (MediaError, VideoDecoderError, ValueError, TypeError, RuntimeError, OverflowError) as error:
            return error  # also a decoder's own, a path with a NUL, ...

    def _origin(self, kind: str, name: str | bytes) -> Origin:
        root = None if self.root.root is None else str(self.root.root.absolute())
        return Origin(kind, root, self.root.prefix, self.root.web, str(name))

    def _stamp(self, medium: Medium) -> str | None:
        """Stamp of an image's file. A folder of frames has none: its time does not show changes within a frame."""
        if medium.kind != "image" or isinstance(medium.value, bytes) or len(medium.value) > _LONGEST_NAME:
            return None
        return self.root.stamp(medium.value)


def _is_name(value: str | bytes) -> bool:
    """Whether a medium is given by its name, and not by its content."""
    try:
        return inline_content(value) is None
    except MediaError:
        return False


def _hash(medium: Medium) -> str | None:
    if medium.kind != "image":
        return None
    try:
        content = inline_content(medium.value)
    except MediaError:
        return None
    return None if content is None else hashlib.sha256(content).hexdigest()
