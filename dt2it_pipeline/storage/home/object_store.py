"""A copy of finished artifacts in an object store, from which other machines take them instead of computing them.

    URL/artifacts/<name>[/<partition>]/<key>.json   what a version consists of: its files and media with their digests,
                                                    and where each medium came from
    URL/blobs/<aa>/<sha256>                         their contents, each once
    URL/check/<random>                              what `dt2it check` writes, reads and removes

Blobs are named by their content and the entry is written last, so that nobody reads half a version, and two machines
that store the same key at once do no harm: the entry that is written last is whole. Every blob is compared with its
digest when it is fetched, and nothing is written outside the artifact's folder and the media store.

What belongs here: storing and fetching. What does not: when either is done (orchestrate/stage/cached_stage.py). What
stays on a machine, or on a file system that machines share: locks, work that resumes, caches, Dagster's own records.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, TypeVar

from dt2it_pipeline.errors import UserError
from dt2it_pipeline.storage import integrity, permissions
from dt2it_pipeline.storage.artifacts import Artifact, Store
from dt2it_pipeline.storage.atomic import StoreError, atomic_directory, make_folder, move_all_into_place
from dt2it_pipeline.storage.home.object_entries import (
    DamagedVersion,
    SharedMedia,
    checked,
    keep,
    media_of,
    medium_of,
    sources_of,
)
from dt2it_pipeline.storage.leftovers import owned_prefix

_T = TypeVar("_T")
_AT_ONCE = 256  # files in one call, which an object store of the network transfers at the same time
_TEMPORARY = "tmp"  # begins the names of media that are being written
_TRY_SECONDS = 30.0
_WITHOUT = "unset DT2IT_OBJECT_STORE to go on without it"


class ObjectStoreError(UserError, RuntimeError):
    """The object store cannot be used; the message says why and what to do."""

    help_page: ClassVar[str] = "troubleshooting#object-store"


class ObjectStore:
    """Artifacts below one URL of an object store, or of anything else that fsspec reaches.

    Args:
        url: such as `s3://bucket/folder`; credentials and endpoint come from the environment, as the store's library
            reads them (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, ...).

    Raises:
        ObjectStoreError: there is no such protocol, its library is not installed, or a folder's path is not absolute.

    Examples:
        >>> ObjectStore("memory://example").has("debiased_pairs", "3f2a")
        False
        >>> ObjectStore("s4://bucket")
        Traceback (most recent call last):
            ...
        dt2it_pipeline.storage.home.object_store.ObjectStoreError: object store s4://bucket: Protocol not known: s4; \
name a URL that fsspec knows, such as s3://bucket/folder
    """

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url.rstrip("/")
        protocol, path = fsspec.core.split_protocol(self.url)
        local = protocol in (None, "file", "local")
        if local and not Path(path.removeprefix("file:")).expanduser().is_absolute():
            raise ObjectStoreError(f"object store {url}: its path is not absolute; write file:///FOLDER")
        folders = {"auto_mkdir": True} if local else {}
        try:
            # What other machines store must be seen, so nothing is remembered of what was there.
            # fsspec would hand out an earlier instance, made with the credentials that the environment had then.
            self._files, self._root = fsspec.core.url_to_fs(
                self.url, use_listings_cache=False, skip_instance_cache=True, **folders
            )
        except ImportError as error:
            raise ObjectStoreError(
                f"object store {self.url}: {error}; install the extra `s3`, or the library of your store"
            ) from error
        except ValueError as error:
            raise ObjectStoreError(
                f"object store {self.url}: {error}; name a URL that fsspec knows, such as s3://bucket/folder"
            ) from error

    def has(self, name: str, key: str, partition: str | None = None) -> bool:
        """Whether a version is there.

        Raises:
            ObjectStoreError: the store does not answer.
        """
        return bool(self._asked(lambda: self._files.exists(self._entry(name, key, partition))))

    def try_out(self, seconds: float = _TRY_SECONDS) -> str:
        """Write a small object, read it back and remove it.

        Args:
            seconds: longest wait; a store that is not reached at all may be tried for minutes by its library.

        Returns:
            What does not work and does not end a run; empty where all does.

        Raises:
            ObjectStoreError: nothing can be written or read, or what is read is not what was written.

        Examples:
            >>> ObjectStore("memory://example").try_out()
            ''
        """
        content = os.urandom(64)
        place = f"{self._root}/check/{content[:16].hex()}"
        tried: list[str | Exception] = []

        def work() -> None:
            fault: Exception | None = None
            try:
                self._asked(lambda: self._files.pipe_file(place, content))
            except Exception as error:
                tried.append(error)
                return
            try:
                if self._asked(lambda: self._files.cat_file(place)) != content:
                    raise ObjectStoreError(f"object store {self.url}: what was read is not what was written")
            except Exception as error:
                fault = error
            try:  # in any case: nothing of a check stays where it can be removed
                self._files.rm_file(place)
            except Exception as error:
                tried.append(fault or f"{place} cannot be removed ({type(error).__name__}: {error})")
            else:
                tried.append(fault or "")

        worker = threading.Thread(target=work, daemon=True)  # it may hang, and must not keep this process
        worker.start()
        worker.join(seconds)
        if not tried:
            raise ObjectStoreError(
                f"object store {self.url} does not answer within {seconds:g} s; check its address and the network, or "
                f"{_WITHOUT}"
            )
        if isinstance(tried[0], Exception):
            raise tried[0]
        return tried[0]

    def store(
        self, store: Store, name: str, key: str, partition: str | None = None, shared: SharedMedia | None = None
    ) -> int:
        """Copy a finished version of an artifact home, and the media that its tables name; returns the files copied.

        Contents that are there already are not copied again. With `shared` the entry says where the media came from.

        Raises:
            ObjectStoreError: the store does not take them.
            StoreError: the artifact or one of its media cannot be read.
        """
        artifact = store.read(name, partition, key)
        files = integrity.digests_of(artifact.folder)
        media = media_of(artifact, store.media)
        blobs = {digest: artifact.folder / path for path, digest in files.items()}
        blobs |= {digest: store.media / path for path, digest in media.items()}
        entry = {"name": name, "partition": partition, "key": key, "files": files, "media": media}
        if shared is not None:
            entry["origins"] = dict(shared.origins(sources_of(media)))
        entry = integrity.sealed(entry)
        return self._asked(lambda: self._put(blobs, self._entry(name, key, partition), entry))

    def fetch(
        self,
        store: Store,
        name: str,
        key: str,
        partition: str | None = None,
        on_damage: Callable[[str], None] = print,
        shared: SharedMedia | None = None,
    ) -> Artifact | None:
        """Bring a version into an artifact home and make it the current one; None where it is not there.

        A version that is not as it was written is removed from the object store and reported to `on_damage`; None then,
        too. With `shared`, origins of media are kept. A medium that is damaged or missing there then comes from its
        origin and is copied there again. The caller holds the lock of the stage.

        Raises:
            ObjectStoreError: the store does not answer.
            StoreError: the artifact home cannot be written to.
        """
        place = self._entry(name, key, partition)
        try:
            found = self._asked(lambda: self._read(place))
            if found is None:
                return None
            files, media, origins = checked(found, name, key, partition)
            if shared is not None:
                keep(shared, origins)
            with atomic_directory(store.folder(name, key, partition)) as folder:
                self._asked(lambda: self._get({folder / path: digest for path, digest in files.items()}))
            self._asked(lambda: self._get_media(store.media, media, shared, on_damage))
            artifact = store.read(name, partition, key)
        except StoreError as error:
            on_damage(f"{name} in the object store {self.url} is damaged: {error}; it is removed and made again now")
            self._asked(lambda: self._files.rm_file(place))
            return None
        store.point(name, key, partition)
        return artifact

    def _entry(self, name: str, key: str, partition: str | None) -> str:
        return "/".join([self._root, "artifacts", name, *([] if partition is None else [partition]), f"{key}.json"])

    def _blob(self, digest: str) -> str:
        return f"{self._root}/blobs/{digest[:2]}/{digest}"

    def _read(self, place: str) -> Any:
        try:
            return json.loads(self._files.cat_file(place))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise DamagedVersion(f"{place} cannot be read ({error})") from error

    def _put(self, blobs: Mapping[str, Path], place: str, entry: Mapping[str, Any]) -> int:
        there: dict[str, int] = {}
        for folder in sorted({digest[:2] for digest in blobs}):
            try:
                found = self._files.ls(f"{self._root}/blobs/{folder}", detail=True)
            except FileNotFoundError:
                continue
            there |= {PurePosixPath(each["name"]).name: each["size"] for each in found}
        missing = [digest for digest, file in blobs.items() if there.get(digest) != file.stat().st_size]
        for part in _parts(missing):
            self._files.put([str(blobs[digest]) for digest in part], [self._blob(digest) for digest in part])
        self._files.pipe_file(place, json.dumps(entry, sort_keys=True).encode())
        return len(missing)

    def _get(self, wanted: Mapping[Path, str]) -> None:
        """Fetch blobs to files, and compare each with its digest."""
        for part in _parts(wanted):
            for file in part:
                make_folder(file.parent)
            try:
                self._files.get([self._blob(wanted[file]) for file in part], [str(file) for file in part])
            except FileNotFoundError as error:
                raise DamagedVersion(f"a blob is missing ({error})") from error
            for file in part:
                if integrity.sha256_of(file) != wanted[file]:
                    # Removed, so that it is stored anew with the version that is made now.
                    self._files.rm_file(self._blob(wanted[file]))
                    raise DamagedVersion(f"the content of {self._blob(wanted[file])} is not what its name says")

    def _get_media(
        self, root: Path, media: Mapping[str, str], shared: SharedMedia | None, on_damage: Callable[[str], None]
    ) -> None:
        """Bring the media that are not here: each from its blob, or from its origin where the blob is damaged."""
        for part in _parts([path for path in media if not (root / path).exists()]):
            try:
                self._get_blobs(root, {path: media[path] for path in part})
            except DamagedVersion:
                if shared is None:
                    raise
                for path in part:
                    self._get_medium(root, path, media[path], shared, on_damage)

    def _get_medium(
        self, root: Path, path: str, digest: str, shared: SharedMedia, on_damage: Callable[[str], None]
    ) -> None:
        """As `_get_media`, one file, and what a medium that came from its origin lacks there."""
        try:
            if not (root / path).exists():  # of several frames the first one has brought all
                self._get_blobs(root, {path: digest})
        except DamagedVersion:
            whole = shared.fetch(root / medium_of(path)) and (root / path).is_file()
            if not whole or integrity.sha256_of(root / path) != digest:
                raise
            after = "copied there again"
            try:
                self._files.put([str(root / path)], [self._blob(digest)])
            except Exception as error:  # of any library; who may only read there goes on all the same
                after = f"is whole here, but cannot be copied there again ({type(error).__name__}: {error})"
            on_damage(
                f"media/{path} in the object store {self.url} was damaged or missing; it was fetched from its source "
                f"and {after}"
            )

    def _get_blobs(self, root: Path, media: Mapping[str, str]) -> None:
        """Fetch media from their blobs, each through a temporary file beside its place."""
        places: dict[Path, str] = {}
        try:
            for path in media:
                make_folder((root / path).parent)
                handle, temporary = tempfile.mkstemp(prefix=owned_prefix(_TEMPORARY), dir=(root / path).parent)
                os.close(handle)
                places[Path(temporary)] = path
            self._get({file: media[path] for file, path in places.items()})
            for file in places:
                permissions.follow_umask(file)
            move_all_into_place({file: root / path for file, path in places.items()})
        finally:
            for file in places:
                file.unlink(missing_ok=True)

    def _asked(self, ask: Callable[[], _T]) -> _T:
        """What the store answers; its errors as ours."""
        try:
            return ask()
        except UserError:
            raise
        except Exception as error:  # every library has its own
            raise ObjectStoreError(
                f"object store {self.url} cannot be used ({type(error).__name__}: {error}); check its address and "
                f"credentials and start the run again, or {_WITHOUT}"
            ) from error


def _parts(files: Iterable[_T]) -> Iterable[list[_T]]:
    every = list(files)
    return (every[first : first + _AT_ONCE] for first in range(0, len(every), _AT_ONCE))
