"""Looks at everything that an artifact home keeps: what is damaged, and what nothing needs any more.

What belongs here: looking. What does not: media (media/damage.py), what killed processes left (leftovers.py),
and what a command prints.
"""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dt2it_pipeline.storage import leftovers, locks
from dt2it_pipeline.storage.artifacts import Store
from dt2it_pipeline.storage.atomic import StoreError
from dt2it_pipeline.storage.home import feature_files
from dt2it_pipeline.storage.home.compiled_code import DAYS, unused_folders

_CURRENT, _MANIFEST = "current", "manifest.json"
_FRESH = 24 * 3600.0  # seconds; what has changed since may belong to something that is just being made
_DATABASES = {".db", ".sqlite", ".sqlite3"}


@dataclass(frozen=True)
class Slot:
    """A place of artifacts: a stage's name, and its partition where it has some."""

    name: str
    partition: str | None = None

    def folder(self, store: Store) -> Path:
        """Where its versions lie."""
        folder = store.home / "artifacts" / self.name
        return folder if self.partition is None else folder / self.partition

    def __str__(self) -> str:
        return self.name if self.partition is None else f"{self.name}, round {self.partition}"


def slots_of(store: Store) -> list[Slot]:
    """The places of a home that have an artifact in force, or had one."""
    root = store.home / "artifacts"
    found = [Slot(file.parent.name) for file in root.glob("*/current")]
    found += [Slot(file.parent.parent.name, file.parent.name) for file in root.glob("*/*/current")]
    return sorted(found, key=lambda slot: (slot.name, len(slot.partition or ""), slot.partition or ""))


def damaged_artifacts(store: Store) -> Iterator[tuple[Slot, str]]:
    """Artifacts in force of which a file is not as it was written, with what is wrong in words."""
    for slot in slots_of(store):
        try:
            if store.current(slot.name, slot.partition) is not None:
                store.read(slot.name, slot.partition)
            else:
                file = slot.folder(store) / _CURRENT
                yield slot, f"{slot}: the folder that {file} names is gone; run its stage again, which makes it anew"
        except StoreError as error:
            yield slot, str(error)


def media_named(store: Store) -> dict[str, list[Slot]]:
    """Media that tables of artifacts in force name, by their paths in the store, each with these artifacts."""
    named: dict[str, list[Slot]] = {}
    for slot in slots_of(store):
        try:
            tables = store.read(slot.name, slot.partition).tables
        except StoreError:
            continue
        for path in {path for table in tables.values() for path in media_in(table)}:
            named.setdefault(path, []).append(slot)
    return named


def media_in(table: pa.Table) -> Iterator[str]:
    """Paths of the media that a table names, in whichever column."""
    for field, column in zip(table.schema, table.columns, strict=True):
        if _holds_media(field.type):
            for value in column.to_pylist():
                yield from (medium["path"] for medium in (value if isinstance(value, list) else [value]) if medium)


def _holds_media(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind):
        return _holds_media(kind.value_type)
    return pa.types.is_struct(kind) and {"sha256", "path"} <= {field.name for field in kind}


def remove_artifact(store: Store, slot: Slot) -> None:
    """Remove the version in force and the file that names it, so that the next run makes it again."""
    with store.locked(slot.name, slot.partition):
        try:
            key = store.current(slot.name, slot.partition)
        except StoreError:  # the file that names it is damaged
            key = None
        (slot.folder(store) / _CURRENT).unlink(missing_ok=True)
        if key is not None:
            shutil.rmtree(slot.folder(store) / key)


def damaged_databases(folder: Path) -> Iterator[tuple[Path, str]]:
    """SQLite files below a folder that SQLite's own check finds fault with; those that are in use are only read."""
    for file in sorted(path for path in folder.rglob("*") if path.suffix in _DATABASES and path.is_file()):
        try:
            with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=10)) as database:
                found = [row[0] for row in database.execute("PRAGMA quick_check(1)")]
        except sqlite3.Error as error:
            found = [str(error)]
        if found != ["ok"]:
            yield file, found[0] if found else "its check says nothing"


@dataclass(frozen=True)
class Unneeded:
    """A file or folder that nothing in force needs.

    Attributes:
        path: of it.
        why: in words.
        bytes: of all its files.
    """

    path: Path
    why: str
    bytes: int


def unneeded(store: Store, media_index: Path) -> list[Unneeded]:
    """What can be removed from a home without loss to any artifact in force.

    These are: versions that are not in force, work of attempts that a later version or attempt has replaced, media that
    no version names, caches that are damaged or of another version, folders of compiled code and features of images
    that nothing has used for long, and temporary files of killed processes. What has changed within a day stays, and
    all media do where an artifact cannot be read: nobody knows what it names.

    Args:
        store: of the home. Nothing may run in it meanwhile; see `at_work`.
        media_index: the index of the media store that this version of the project uses.
    """
    found = [*_old_versions(store), *_old_work(store), *_orphans(store)]
    for folder, pattern in ((store.cache, "*.damaged*"), (store.media, "*.damaged*")):
        found += [(path, "a damaged cache that was renamed") for path in folder.glob(pattern)]
    found += [
        (path, "the index of the media of another version of this project")
        for path in store.media.glob("index.*.sqlite*")
        if not path.name.startswith(media_index.name)
    ]
    found += [
        (path, f"compiled code that nothing has used for {DAYS} days")
        for path in unused_folders(store.cache / "compiled")
    ]
    found += [
        (path, f"features of an image that nothing has used for {feature_files.DAYS} days")
        for path in feature_files.unused_features(store.cache / feature_files.FOLDER)
    ]
    found += [
        (path, "a temporary file of a killed process")
        for path in leftovers.left_in(leftovers.places_of(store.home))
        if store.home in path.parents and leftovers.place_of_kept(path) is None
    ]
    old = ((path, why) for path, why in found if time.time() - path.lstat().st_mtime > _FRESH)
    return [Unneeded(path, why, _bytes_of(path)) for path, why in sorted(old)]


def at_work(store: Store) -> str | None:
    """The name of a stage of a home that a process makes right now; None where there is none."""
    held = (lock for lock in sorted((store.home / "locks").glob("*")) if not locks.is_free(lock))
    return next((lock.name for lock in held), None)


def _old_versions(store: Store) -> Iterator[tuple[Path, str]]:
    for slot in slots_of(store):
        try:
            current = store.current(slot.name, slot.partition)
        except StoreError:
            continue  # nobody knows which one is in force
        versions = [file.parent for file in slot.folder(store).glob(f"*/{_MANIFEST}")]
        for folder in versions if current is not None else ():
            if folder.name != current:
                yield folder, f"{slot}: not the version in force"


def _old_work(store: Store) -> Iterator[tuple[Path, str]]:
    """Work folders but for the one that a run would go on from: the newest, where no later version is in force."""
    made = {slot: slot.folder(store) / _CURRENT for slot in slots_of(store)}
    places: dict[Slot, list[Path]] = {}
    root = store.home / "work"
    known = {slot.name for slot in made if slot.partition is not None}
    for folder in root.glob("*/*"):
        if not folder.is_dir():
            continue
        name = folder.parent.name
        inside = [path for path in folder.iterdir() if path.is_dir()] if name in known else []
        if Slot(name, folder.name) in made:
            places.setdefault(Slot(name, folder.name), []).extend(inside)
        elif Slot(name) in made:
            places.setdefault(Slot(name), []).append(folder)
    for slot, folders in places.items():
        folders.sort(key=_changed)
        later = made[slot].stat().st_mtime
        for folder in folders:
            if _changed(folder) < later:
                yield folder, f"{slot}: work of an attempt before the version in force was made"
            elif folder != folders[-1]:
                yield folder, f"{slot}: work of an attempt that a later one replaced"


def _orphans(store: Store) -> Iterator[tuple[Path, str]]:
    """Media that no version of any artifact names; those of a version that goes now go the next time."""
    named: set[str] = set()
    for file in (store.home / "artifacts").rglob("*.parquet"):
        try:
            columns = [field.name for field in pq.read_schema(file) if _holds_media(field.type)]
            named.update(media_in(pq.read_table(file, columns=columns, partitioning=None)) if columns else ())
        except (OSError, ValueError, pa.ArrowException):
            return
    for slot in slots_of(store):
        try:
            store.metadata(slot.name, slot.partition)
        except StoreError:
            return
    for path in store.media.glob("[0-9a-f][0-9a-f]/*"):
        if path.relative_to(store.media).as_posix() not in named:
            yield path, "no artifact names this medium"


def _changed(folder: Path) -> float:
    return max(path.lstat().st_mtime for path in (folder, *folder.rglob("*")))


def _bytes_of(path: Path) -> int:
    inside = path.rglob("*") if path.is_dir() and not path.is_symlink() else (path,)
    return sum(entry.lstat().st_size for entry in inside if not entry.is_dir())
