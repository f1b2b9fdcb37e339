"""Where artifacts lie, and how they are written so that a reader never sees half of one.

    DT2IT_HOME/
      artifacts/<name>[/<partition>]/<key>/   one finished version of a stage's output: *.parquet, or a checkpoint
      artifacts/<name>[/<partition>]/current  a small file that names the key in force
      media/<aa>/<sha256>.<ext>               images and videos, once per content
      work/<name>[/<partition>]/<key>/        what a running stage needs to resume; removed when it has finished
      cache/                                  what may be removed and is then asked for or computed again
      sources/                                source files that the demo writes
      locks/<name>[.<partition>]              held by the process that makes a stage's output; see locks.py

A version is written to a temporary folder, renamed to its key, and only then named by `current`; each step is atomic on
a POSIX file system. The key is a hash of the stage's inputs and settings, so that a stage started again with the same
inputs finds its result finished, and one that was killed finds its work.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from dt2it_pipeline.storage import content_ids, integrity, leftovers, locks, schemas
from dt2it_pipeline.storage.atomic import (
    StoreError,
    atomic_directory,
    json_text,
    make_folder,
    move_into_place,
    read_parquet,
    replace_text,
    temporary_beside,
    write_json_atomic,
    write_parquet,
)

_ADVICE = "set DT2IT_HOME to a folder that can be written to"
_CARDS = ("reward_model.json",)
_CONTENT_SUFFIXES = {".parquet", ".safetensors"}
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_logger = logging.getLogger(__name__)
_MANIFEST = "manifest.json"
_KEPT_VERSIONS = 2  # the current one, and the one before for readers that are still open


@dataclass(frozen=True)
class Artifact:
    """The tables that one stage hands on, by kind, for instance `pairs`, `prompts` and `quarantine`.

    `metadata` are JSON-able scalars and small structures about the making of the tables; they may differ between two
    runs (durations, for instance) where the tables do not. `path` and `digest` are set once the artifact lies in the
    store; a checkpoint is an artifact with files at `path`.
    """

    tables: Mapping[str, pa.Table] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    path: Path | None = None
    stored_digest: str | None = None

    def __getitem__(self, kind: str) -> pa.Table:
        try:
            return self.tables[kind]
        except KeyError:
            raise StoreError(f"{self.path or 'artifact'} has no table {kind!r}, only {sorted(self.tables)}") from None

    def table_path(self, kind: str) -> Path:
        """Parquet file of one table of a stored artifact."""
        return self.folder / f"{kind}.parquet"

    @property
    def folder(self) -> Path:
        """Folder of a stored artifact; raises StoreError while it is not stored."""
        if self.path is None:
            raise StoreError("this artifact has not been stored yet")
        return self.path

    @property
    def digest(self) -> str:
        """Hash of the stored tables and weights; it stands for them in the keys of later stages."""
        if self.stored_digest is None:
            raise StoreError("this artifact has not been stored yet")
        return self.stored_digest


class Store:
    """All artifacts below one home folder."""

    def __init__(self, home: str | Path) -> None:
        self.home = Path(home).absolute()

    @property
    def media(self) -> Path:
        """Root of the media store; paths in tables are relative to it."""
        return self.home / "media"

    @property
    def cache(self) -> Path:
        """Folder of what outlives a stage but may be removed: replies of judges, for instance."""
        return self.home / "cache"

    @property
    def sources(self) -> Path:
        """Folder of the source files that the demo writes."""
        return self.home / "sources"

    def work(self, name: str, key: str, partition: str | None = None) -> Path:
        """Folder where a stage keeps what it needs to resume; made if absent."""
        folder = _slot(self.home / "work", name, partition) / key
        make_folder(folder, _ADVICE)
        return folder

    def finish_work(self, name: str, partition: str | None = None) -> None:
        """Remove everything that a stage kept to resume, older keys included."""
        shutil.rmtree(_slot(self.home / "work", name, partition), ignore_errors=True)

    @contextlib.contextmanager
    def locked(
        self, name: str, partition: str | None = None, on_wait: Callable[[str], None] = _logger.warning
    ) -> Iterator[None]:
        """Keep other processes from making the same output meanwhile; waits for one that does and calls `on_wait`.

        What a writer that was killed left behind is removed: while the lock is held, nobody writes there.
        """
        path = self.home / "locks" / (name if partition is None else f"{name}.{partition}")
        make_folder(path.parent, _ADVICE)
        with locks.exclusive(path, lambda words: on_wait(f"{_described(name, partition)} {words}")) as taken:
            slot = _slot(self.home / "artifacts", name, partition)
            for left in slot.glob(".*") if taken else ():
                leftovers.clear(left)
            yield

    def current(self, name: str, partition: str | None = None) -> str | None:
        """Key of the version in force, or None when the stage has not finished yet.

        Raises:
            StoreError: the file that names it is damaged.
        """
        file = _slot(self.home / "artifacts", name, partition) / "current"
        try:
            key = file.read_text(encoding="utf-8").strip()
            if not _KEY.fullmatch(key):
                raise ValueError(f"expected the name of a version, found {key[:80]!r}")
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise StoreError(
                f"{_described(name, partition)} is damaged: {file}: {error}; run its stage again, which mends it"
            ) from error
        return key if self.folder(name, key, partition).is_dir() else None

    def folder(self, name: str, key: str, partition: str | None = None) -> Path:
        """Folder of one version, whether it is there or not."""
        return _slot(self.home / "artifacts", name, partition) / key

    def partitions(self, name: str) -> list[str]:
        """Partitions (rounds) for which a stage has finished, in order; none where the stage has no partitions."""
        found = (file.parent.name for file in (self.home / "artifacts" / name).glob("*/current") if file.is_file())
        return sorted(found, key=lambda partition: (len(partition), partition))

    def has(self, name: str, key: str, partition: str | None = None) -> bool:
        """Whether exactly this version is finished."""
        return self.folder(name, key, partition).is_dir()

    def find(
        self,
        name: str,
        key: str,
        partition: str | None = None,
        on_damage: Callable[[str], None] = _logger.warning,
    ) -> Artifact | None:
        """The version `key`, made the current one; None where it is not finished, or damaged and to be made again."""
        if not self.has(name, key, partition):
            return None
        try:
            found = self.read(name, partition, key)
        except StoreError as error:
            on_damage(f"{error}; it is made again now")
            return None
        self.point(name, key, partition)
        return found

    def read(self, name: str, partition: str | None = None, key: str | None = None) -> Artifact:
        """Load a finished version (the current one by default), every table validated.

        Raises:
            StoreError: there is none, or a file in it is damaged.
        """
        key = key or self.current(name, partition)
        where = _described(name, partition)
        if key is None:
            raise StoreError(self._absent(name, partition))
        folder = self.folder(name, key, partition)
        manifest = _manifest(folder, where)
        kinds, metadata, digest = list(manifest["tables"]), dict(manifest["metadata"]), str(manifest["digest"])
        if found := integrity.damage_in(folder, manifest["files"]):
            raise _damaged(where, folder / found[0], found[1])
        tables = {}
        file = folder
        try:
            for kind in kinds:
                file = folder / f"{kind}.parquet"
                tables[kind] = read_parquet(file, kind)
        except schemas.RecordError as error:
            raise _of_another_version(where, file, error) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _damaged(where, file, f"it cannot be read ({_in_a_line(error)})") from error
        return Artifact(tables, metadata, folder, digest)

    def table_file(self, name: str, kind: str, partition: str | None = None) -> Path:
        """Parquet file of a table of the version in force, for who does not want all of it in memory.

        Raises:
            StoreError: there is no version, or it has no such table.
        """
        key = self.current(name, partition)
        if key is None:
            raise StoreError(self._absent(name, partition))
        file = self.folder(name, key, partition) / f"{kind}.parquet"
        if not file.is_file():
            raise StoreError(f"{_described(name, partition)} has no table {kind!r}: there is no file {file}")
        return file

    def metadata(self, name: str, partition: str | None = None) -> dict[str, Any] | None:
        """Metadata of the current version; None where there is none. Raises StoreError where it is damaged."""
        key = self.current(name, partition)
        if key is None:
            return None
        folder = self.folder(name, key, partition)
        return dict(_manifest(folder, _described(name, partition))["metadata"])

    def _absent(self, name: str, partition: str | None) -> str:
        """Why there is no version in force, and what there is instead."""
        there = self.partitions(name)
        if partition is None and there:
            return f"{name} is made for each round, and none is named; in {self.home} there are: {', '.join(there)}"
        if partition is not None and self.current(name) is not None:
            return f"{name} is not made by rounds; leave round {partition} out"
        instead = (
            f"there are: {', '.join(there)}"
            if there
            else "run the job that makes it first (`dt2it run construct`, `dt2it run round --round K`)"
        )
        made = [folder.name for folder in (self.home / "artifacts").glob("*")]
        if not there and (close := difflib.get_close_matches(name, made, n=3, cutoff=0.85)):
            instead = f"did you mean {' or '.join(close)}?"
        return f"{_described(name, partition)} has not been materialised in {self.home}; {instead}"

    @contextlib.contextmanager
    def writing(self, name: str, key: str, partition: str | None = None) -> Iterator[Path]:
        """Give a temporary folder to fill; on success it becomes the version `key` and the current one."""
        with self.locked(name, partition):
            with atomic_directory(self.folder(name, key, partition)) as folder:
                yield folder
            self.point(name, key, partition)

    def write(self, name: str, artifact: Artifact, key: str, partition: str | None = None) -> Artifact:
        """Store an artifact as version `key` and make it the current one; returns it as it is read back.

        An artifact that has a `path` outside the store (a checkpoint that a child process wrote) brings that folder's
        files along: they are moved.
        """
        with self.writing(name, key, partition) as folder:
            if artifact.path is not None:
                for file in sorted(artifact.path.iterdir()):
                    shutil.move(file, folder / file.name)
            for kind, value in artifact.tables.items():
                write_parquet(schemas.validate(value, kind), folder / f"{kind}.parquet")
            manifest = {
                "tables": sorted(artifact.tables),
                "metadata": dict(artifact.metadata),
                "digest": content_digest(folder),
                "files": integrity.digests_of(folder, _files_without_cards(folder)),
            }
            plain = json.loads(json_text(manifest))  # as it will be read
            write_json_atomic(integrity.sealed(plain), folder / _MANIFEST)
        return self.read(name, partition, key)

    def publish(self, file: Path, name: str) -> Path:
        """Copy a finished file to the home's top, where a person looks for it; returns the copy."""
        copy = self.home / name
        with temporary_beside(copy) as temporary:
            shutil.copyfile(file, temporary)
            move_into_place(temporary, copy)
        return copy

    def point(self, name: str, key: str, partition: str | None = None) -> None:
        """Make version `key` the current one and drop versions that no reader can still want."""
        slot = _slot(self.home / "artifacts", name, partition)
        try:
            before = self.current(name, partition)
        except StoreError:
            before = None  # damaged, and written afresh below
        if before != key:
            replace_text(slot / "current", key)
        versions = [p for p in slot.iterdir() if p.is_dir() and (p / "manifest.json").exists()]
        versions.sort(key=lambda p: (p.name == key, p.name == before, p.stat().st_mtime), reverse=True)
        for old in versions[_KEPT_VERSIONS:]:
            shutil.rmtree(old, ignore_errors=True)


def content_digest(folder: Path) -> str:
    """Hash of the tables and weights below a folder; logs, timings and configuration do not count."""
    return _digest_of(folder, sorted(p for p in folder.rglob("*") if p.suffix in _CONTENT_SUFFIXES))


def _digest_of(folder: Path, files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for name, found in integrity.digests_of(folder, files).items():
        digest.update(name.encode())
        digest.update(bytes.fromhex(found))
    return digest.hexdigest()[:32]


def model_digest(model: str) -> str:
    """What stands for a model in the keys of stages: the content of a local folder, else the name itself (a Hub id).

    An adapter (LoRA) is merged with the base model that its files name, so that model's content counts too. A file is
    read once per process, and again only when its size or time has changed.
    """
    folder = Path(model)
    if not folder.is_dir():
        return model
    # Tokenizer, chat template and configuration make a model too; its cards do not.
    own = _digest_of(folder, _files_without_cards(folder))
    base = _adapted_model(folder)
    if base is None or not base.is_dir() or base.resolve() == folder.resolve():
        return own
    return content_ids.content_hash(own, _digest_of(base, _files_without_cards(base)))


def _adapted_model(folder: Path) -> Path | None:
    """The base model that an adapter's files name; None where the folder holds no adapter that names one."""
    try:
        name = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):  # whoever loads the adapter reports it
        return None
    return Path(name) if isinstance(name, str) and name else None


def _files_without_cards(folder: Path) -> list[Path]:
    """Files that nobody changes once they are written; a calibration or a benchmark's figures go into the cards."""
    return [p for p in folder.rglob("*") if p.is_file() and p.suffix != ".md" and p.name not in _CARDS]


def _manifest(folder: Path, where: str) -> dict[str, Any]:
    """What the manifest of a version says. Raises StoreError where it is damaged or of another version of the code."""
    file = folder / _MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        if "files" not in manifest and {"tables", "metadata", "digest"} <= set(manifest):
            raise schemas.RecordError("it holds no digests of its files")
        if not isinstance(manifest, dict) or not integrity.is_sealed(manifest):
            raise ValueError("its content is not what was written")
        return manifest
    except schemas.RecordError as error:
        raise _of_another_version(where, file, error) from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(where, file, f"it cannot be read ({_in_a_line(error)})") from error


def _damaged(where: str, file: Path, fault: str) -> StoreError:
    return StoreError(f"{where} is damaged: {file}: {fault}; run its stage again, which makes it anew")


def _of_another_version(where: str, file: Path, error: Exception) -> StoreError:
    made = f"{where} was made by another version of this project"
    return StoreError(f"{made}: {file}: {error}; run its stage again, which makes it anew")


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def _described(name: str, partition: str | None) -> str:
    return name if partition is None else f"{name}, partition {partition}"


def _slot(root: Path, name: str, partition: str | None) -> Path:
    return root / name if partition is None else root / name / partition
