"""The landing folder: manifests that are dropped with their data beside them, and are read from the next run on.

    DT2IT_HOME/landing/NAME.yaml     a manifest as in configs/datasets; its paths count from this folder and stay in it
    DT2IT_HOME/landing/...           its data and media

Files may still be on their way when somebody looks. So nothing is taken whose stamp (sizes and times of the manifest,
its data and its media) changes between two looks. A manifest that is broken never keeps the others from being read.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from dt2it_pipeline.config.sections.landing import LandingSettings
from dt2it_pipeline.config.strict_yaml import load_yaml
from dt2it_pipeline.ingest.manifest import Manifest, ManifestError, load_manifest
from dt2it_pipeline.media.errors import MediaError
from dt2it_pipeline.media.paths import OUTSIDE, confined

_SETTLE_SECONDS = 1.0
_HASHED_BYTES = 2**20  # of a file's start and end that count as its content
_SUFFIXES = (".yaml", ".yml")
_DATA_SUFFIXES = frozenset((
    ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".zip", ".tar", ".gz", ".tgz", ".zst"
))  # fmt: skip


@dataclass(frozen=True)
class Landed:
    """One manifest as it lies in the landing folder.

    Attributes:
        file: its file.
        stamp: hash of the names, sizes and times of the manifest, its data and its media.
        manifest: with absolute paths; None where there is a fault.
        fault: what is wrong with it, else "".
        kind: the kind of source that it names, also where it has a fault; "" where it names none.
    """

    file: Path
    stamp: str
    manifest: Manifest | None = None
    fault: str = ""
    kind: str = ""

    def broken(self, fault: str) -> Landed:
        """The same file with a fault instead of a manifest."""
        return replace(self, manifest=None, fault=fault)

    @property
    def content(self) -> str:
        """Hash of what it holds: the manifest, start and end of its data files, names and sizes of all files.

        Images are too many to be opened at every change. Times do not count, so that the same files dropped again are
        nothing new.
        """
        digest = hashlib.sha256()
        data = None if self.manifest is None or self.manifest.path is None else Path(self.manifest.path)
        for file in (self.file, *_files(self.manifest)):
            digest.update(os.fsencode(os.path.relpath(file, self.file.parent.resolve())) + b"\0")
            size = file.stat().st_size
            digest.update(f"{size}:".encode())
            if file in (self.file, data) or file.suffix.lower() in _DATA_SUFFIXES:
                with file.open("rb") as stream:
                    digest.update(stream.read(_HASHED_BYTES))
                    stream.seek(max(0, size - _HASHED_BYTES))
                    digest.update(stream.read(_HASHED_BYTES))
        return digest.hexdigest()[:32]


@dataclass(frozen=True)
class Landing:
    """What a run reads from the landing folder, and what it cannot read there."""

    manifests: tuple[Manifest, ...] = ()
    unread: tuple[Landed, ...] = ()

    @property
    def faults(self) -> dict[str, str]:
        """Why manifests cannot be read, by file name."""
        return {landed.file.name: landed.fault for landed in self.unread}


def look(folder: Path, network: bool = False) -> list[Landed]:
    """Every manifest in the folder as it lies there now, by name; none where there is no folder.

    Args:
        folder: the landing folder.
        network: whether a manifest may ask for images by address or for a dataset of the Hub.
    """
    files = sorted(file for file in folder.glob("*") if file.suffix in _SUFFIXES and not file.name.startswith("."))
    found = [_look_at(file, network) for file in files]
    seen: dict[str, str] = {}
    for place, landed in enumerate(found):
        if landed.manifest is None:
            continue
        name = landed.manifest.name
        if name in seen:
            found[place] = landed.broken(f"{seen[name]} has the name {name!r} already; rename one")
        seen.setdefault(name, landed.file.name)
    return found


def landed_manifests(
    home: Path,
    settings: LandingSettings | None = None,
    taken: tuple[str, ...] = (),
    settle_seconds: float = _SETTLE_SECONDS,
) -> Landing:
    """Manifests that have landed whole, looked up when a run starts.

    Args:
        home: the artifact home.
        settings: the recipe's section `landing`: the folder, and whether requests are allowed.
        taken: names that other manifests have; a landed one of the same name is a fault.
        settle_seconds: between the two looks; a manifest that changes meanwhile is left for the next run.
    """
    settings = settings or LandingSettings()
    folder = home / settings.folder
    before = {landed.file.name: landed.stamp for landed in look(folder, settings.network)}
    if not before:
        return Landing()
    time.sleep(settle_seconds)
    manifests, unread = [], []
    for landed in look(folder, settings.network):
        if before.get(landed.file.name) != landed.stamp:
            continue
        if landed.manifest is not None and landed.manifest.name in taken:
            unread.append(landed.broken(f"the recipe has a source named {landed.manifest.name!r} already; rename one"))
        elif landed.manifest is None:
            unread.append(landed)
        else:
            manifests.append(landed.manifest)
    return Landing(tuple(manifests), tuple(unread))


def _look_at(file: Path, network: bool) -> Landed:
    """One manifest; whatever is wrong with it is its fault, not its neighbours'."""
    try:
        if not stat.S_ISREG(file.stat().st_mode):  # opening a pipe would wait for whoever writes into it
            raise ManifestError(f"{file.name} is no regular file")
        manifest = _placed(load_manifest(file), file.parent)
        if not network:
            _require_no_requests(manifest)
        stamp = _stamp(file, manifest)
        missing = [name for name in (manifest.path, manifest.media_root) if name and not Path(name).exists()]
        if missing:
            return Landed(file, stamp, None, f"there is no {Path(missing[0]).name} beside it", manifest.kind)
        _require_confined(manifest, file.parent.resolve())
        return Landed(file, stamp, manifest, kind=manifest.kind)
    except ManifestError as error:
        fault = str(error)
    except (OSError, ValueError, RuntimeError) as error:  # too long a path, a NUL in it, links that go in a circle
        fault = f"{file.name} cannot be read: {getattr(error, 'strerror', None) or error}"
    return Landed(file, _stamp(file, None), None, fault, _kind(file))


def _kind(file: Path) -> str:
    """Kind that a broken manifest names, "" where there is none to be read."""
    try:
        content = load_yaml(file.read_text(encoding="utf-8")) if file.is_file() else None
    except (OSError, ValueError, yaml.YAMLError):
        return ""
    kind = content.get("kind") if isinstance(content, dict) else None
    return kind if isinstance(kind, str) else ""


def _placed(manifest: Manifest, folder: Path) -> Manifest:
    """The manifest with absolute paths below `folder`. Raises ManifestError where one leaves it."""
    if manifest.kind == "truth":
        raise ManifestError(f"{manifest.name}: a source of kind truth belongs to the demo and is not landed")
    root = folder.resolve()
    update = {}
    for key in ("path", "media_root"):
        given = getattr(manifest, key)
        if given is None:
            continue
        try:
            update[key] = str(confined(given, root, "file"))
        except MediaError as error:
            fault = "leaves the landing folder; lay the data beside it" if error.reason == OUTSIDE else error.detail
            raise ManifestError(f"{manifest.name}: {key} {given!r} {fault}") from error
    return manifest.model_copy(update=update)


def _require_no_requests(manifest: Manifest) -> None:
    asks = "media_urls" if manifest.media_urls else "hub" if manifest.path is None else None
    if asks is not None:
        raise ManifestError(
            f"{manifest.name}: `{asks}` would make requests, which a dropped manifest may not; lay the data beside it, "
            "or set landing.network in the recipe"
        )


def _require_confined(manifest: Manifest, root: Path) -> None:
    """Raise ManifestError where a data file is no regular file or, through a link, leaves `root`.

    Media need no look here: the reader of media keeps to the media root, which lies in it.
    """
    if manifest.path is None:  # of the Hub: nothing lies here
        return
    data = Path(manifest.path)
    for file in [data] if not data.is_dir() else sorted(data.rglob("*")):
        try:
            confined(file, root, "file")
        except MediaError as error:
            fault = "leads out of the landing folder; lay the data there" if error.reason == OUTSIDE else error.detail
            raise ManifestError(f"{manifest.name}: {file.name} {fault}") from error
        if not file.is_dir() and not file.is_file():
            raise ManifestError(f"{manifest.name}: {file.name} is no regular file")


def _files(manifest: Manifest | None) -> Iterator[Path]:
    """Data and media files of a manifest, in order; each once."""
    seen: set[Path] = set()
    for name in () if manifest is None else (manifest.path, manifest.media_root):
        if name is None:
            continue
        place = Path(name)
        for file in [place] if place.is_file() else sorted(place.rglob("*")):
            if file.is_file() and file not in seen:
                seen.add(file)
                yield file


def _stamp(file: Path, manifest: Manifest | None) -> str:
    digest = hashlib.sha256()
    for one in (file, *_files(manifest)):
        try:
            found = one.stat()
        except OSError:
            continue  # it has just been moved away; the next look sees that
        digest.update(os.fsencode(one) + f":{found.st_size}:{found.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]
