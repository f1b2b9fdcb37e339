"""Folders and repositories in the layout of the library `datasets`: which files hold the rows of a split.

The library says which these are, by the folder's card, the names of its files and folders, or the state that
`save_to_disk` left. The files, of a folder and of a repository alike, are then read by our own readers, whose memory is
bounded and which put a malformed row alone into the quarantine. What belongs here: the library. What does not: what a
card may name (dataset_folders.py), and rows (reading.py).
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from dt2it_pipeline.ingest.manifest import Manifest
from dt2it_pipeline.ingest.readers.dataset_folders import (
    CARDS,
    LONGEST_CARD,
    STATES,
    require_own_file,
    require_own_files,
)
from dt2it_pipeline.ingest.readers.file_formats import format_of
from dt2it_pipeline.ingest.rows import SourceError
from dt2it_pipeline.media.web import MAX_BYTES

_STATE, _SPLITS = "state.json", "dataset_dict.json"
_LOADERS = "datasets.packaged_modules."
_NO_OPTIONS = {"name", "version", "data_dir", "data_files", "description", "features", "delimiter"}
_METADATA = {"metadata.csv": "csv", "metadata.jsonl": "jsonl", "metadata.parquet": "parquet"}
_FOLDERS = {"imagefolder": "image", "videofolder": "video"}  # loaders of media, and their kind
_FILE_NAME, _FILE_NAMES = "file_name", "file_names"
_LONGEST_NAME = 1_024  # characters of the name of an image
_SECONDS = 30.0  # for connecting to the Hub, and between two parts of an answer
_ATTEMPTS = 3  # at an answer whose body breaks off
_WAIT = 1.0  # seconds before the second attempt, doubled before the third
_EMPTY, _NO_NAMES = 416, (400, 414)  # statuses for a file without a first byte, and for names that no file can have


class RepositoryFile:
    """A file of a repository of the Hub, read where it lies: only what is asked for is fetched.

    Args:
        address: of it, as `datasets` gives it (`hf://datasets/owner/name@revision/file`).
        below: its path within the repository.
    """

    def __init__(self, address: str, below: str) -> None:
        from fsspec.core import url_to_fs

        self.address, self.below, self.name = address, below, below.rpartition("/")[2]
        self._files, self._path = url_to_fs(address)

    def __str__(self) -> str:
        return self.address

    @property
    def size(self) -> int:
        """In bytes."""
        return int(self._files.info(self._path)["size"])

    def open(self, mode: str = "rb") -> IO[bytes]:
        """Its bytes, which can be sought."""
        found: IO[bytes] = self._files.open(self._path, mode)
        return found

    @contextmanager
    def copied(self) -> Iterator[Path]:
        """A copy of it on this machine, which is there as long as the block runs."""
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / self.name
            self._files.get_file(self._path, str(copy))
            yield copy

    def beside(self, name: str, most: int) -> bytes | None:
        """A file of its folder, of a longer one the first `most` + 1 bytes; None where there is none of that name.

        It is asked for by its name alone: the library's file system would search the list of the folder for each, and
        folders of images are the longest that there are.

        Raises:
            SourceError: its bytes break off at every attempt.
        """
        import huggingface_hub
        from huggingface_hub.errors import EntryNotFoundError
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

        parts = PurePosixPath(name).parts
        if not parts or ".." in parts or "/" in parts or len(name) > _LONGEST_NAME or not _is_utf8(name):
            return None
        own = self._files.resolve_path(self._path)
        place = "/".join([*PurePosixPath(own.path_in_repo).parts[:-1], *parts])
        url = huggingface_hub.hf_hub_url(own.repo_id, place, repo_type="dataset", revision=own.revision)
        # As it is: what a server packs may expand to any size. A server may send the whole file whatever is asked for.
        headers = {**build_hf_headers(), "range": f"bytes=0-{most}", "accept-encoding": "identity"}
        for attempt in range(_ATTEMPTS):
            time.sleep(_WAIT * attempt)
            with http_stream_backoff("GET", url, headers=headers, timeout=_SECONDS) as answer:
                if answer.status_code in (_EMPTY, *_NO_NAMES):
                    return b"" if answer.status_code == _EMPTY else None
                try:
                    hf_raise_for_status(answer)
                except EntryNotFoundError:
                    return None
                try:
                    return _first_bytes(answer.iter_raw(), most + 1)
                except Exception as error:  # of httpx or httpx2; the library repeats no request whose body breaks off
                    broken = error
        raise SourceError(f"{place} of {own.repo_id} breaks off: {broken or type(broken).__name__}") from broken


def _first_bytes(parts: Iterator[bytes], most: int) -> bytes:
    """The first bytes of a stream, of which no more is read."""
    found = bytearray()
    for part in parts:
        found += part[: most - len(found)]
        if len(found) >= most:
            break
    return bytes(found)


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


class DataFile(NamedTuple):
    """A file that holds rows.

    Attributes:
        path: of it.
        format: one of those that `rows_of_stream` reads, or `arrow`.
        field: of the one JSON object that it is, the key under which the rows are; None where it is none.
        columns: that are read; None for all.
        media: whether a row's `file_name` is that of an image or video, beside this file; its kind.
    """

    path: Path | RepositoryFile
    format: str
    field: str | None = None
    columns: tuple[str, ...] | None = None
    media: str | None = None


def is_saved(path: Path) -> bool:
    """Whether a folder is one that `datasets` wrote by save_to_disk."""
    return (path / _STATE).exists() or (path / _SPLITS).exists()


def saved_files(path: Path, split: str | None) -> list[DataFile]:
    """The files of a folder that `save_to_disk` wrote.

    Raises:
        SourceError: there is no such split, or the state is not as the library writes it.
    """
    folder = path
    if (path / _SPLITS).exists():
        _require_split(path, split, _listed(path / _SPLITS, "splits"))
        folder = path / (split or "train")
        require_own_file(folder / _STATE, path)
    listed = [
        file.get("filename") if isinstance(file, dict) else None for file in _listed(folder / _STATE, "_data_files")
    ]
    names = [name for name in listed if isinstance(name, str)]
    if len(names) < len(listed):
        raise SourceError(f"{folder / _STATE} lists a data file without its name; save the set again")
    return [DataFile(folder / name, "arrow") for name in names]


def _listed(file: Path, key: str) -> list[Any]:
    """A list of a state's file. Raises SourceError where there is none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))[key]
        if not isinstance(found, list):
            raise TypeError(f"`{key}` is no list")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise SourceError(f"{file} is not as `datasets` saves a set ({error!r}); save it again") from error
    return found


def folder_files(path: Path, manifest: Manifest) -> list[DataFile]:
    """The files of a split of a folder that is laid out as on the Hub.

    Raises:
        SourceError: `datasets` finds no data or no such split; or its files are of a form, or its card asks for a way
            of reading them, that is not read here.
    """
    return _files_of(dataset_builder(path, manifest, None), path, manifest, Path)


def repository_files(manifest: Manifest) -> list[DataFile]:
    """The files of a split of a repository of the Hub.

    Raises:
        SourceError: as for `folder_files`; its card or a state names what lies elsewhere; or its rows name videos that
            lie beside them.
    """
    assert manifest.hub is not None and manifest.revision is not None
    _require_own_repository(manifest.hub, manifest.revision)
    own = f"hf://datasets/{manifest.hub}@"

    def placed(address: str) -> RepositoryFile:
        revision, _, below = address.removeprefix(own).partition("/")
        if not address.startswith(own) or not below or "::" in address or ".." in below.split("/"):
            raise SourceError(f"the card of {manifest.hub} names {address[:200]!r}, which lies elsewhere")
        return RepositoryFile(f"{own}{revision}/{below}", below)

    files = _files_of(dataset_builder(manifest.hub, manifest, manifest.revision), manifest.hub, manifest, placed)
    if any(file.media == "video" for file in files):
        raise SourceError(
            f"the rows of {manifest.hub} name videos that are files of their own; download the repository and name the "
            "folder as `path`"
        )
    return files


def _require_own_repository(hub: str, revision: str) -> None:
    """Raise SourceError where a card or a state of a repository names what lies elsewhere, or is too long."""
    import huggingface_hub

    if Path(hub).exists():
        raise SourceError(
            f"`datasets` would read {Path(hub).absolute()} in place of the Hub; start elsewhere, or name it as `path`"
        )
    try:
        api = huggingface_hub.HfApi()
        found = api.get_paths_info(hub, [*CARDS, *STATES], revision=revision, repo_type="dataset")
        for file in found:
            if (size := getattr(file, "size", 0)) > LONGEST_CARD:
                raise SourceError(f"{file.path} of {hub} has {size:,} bytes; it may have {LONGEST_CARD:,}")
        copies = [api.hf_hub_download(hub, file.path, revision=revision, repo_type="dataset") for file in found]
    except SourceError:
        raise
    except Exception as error:  # the library raises many kinds, for a missing repository as for a missing network
        raise SourceError(f"`datasets` cannot load {hub}: {_cause(error)}") from error
    if copies:
        require_own_files(Path(copies[0]).parent)


def _files_of(
    builder: Any, path: Any, manifest: Manifest, placed: Callable[[str], Path] | Callable[[str], RepositoryFile]
) -> list[DataFile]:
    loader = next(
        (kind.__module__.rpartition(".")[2] for kind in type(builder).__mro__ if kind.__module__.startswith(_LOADERS)),
        type(builder).__name__,
    )
    files = {str(split): list(names) for split, names in (builder.config.data_files or {}).items()}
    _require_split(path, manifest.split, files)
    names = files[manifest.split or "train"]
    if loader in _FOLDERS:  # of a million images, none but the metadata is a file of rows
        names = [name for name in names if name.rpartition("/")[2] in _METADATA]
    chosen = [placed(name) for name in names]
    options = {
        field.name: value
        for field in dataclasses.fields(builder.config)
        if field.name not in _NO_OPTIONS and (value := getattr(builder.config, field.name)) != _default(field)
    }
    found: list[DataFile]
    match loader:
        case "json":
            field = options.pop("field", None)
            found = [DataFile(file, format_of(file.name) or "json", field=field) for file in chosen]
        case "csv":
            format = {",": "csv", ";": "csv", "\t": "tsv"}.get(options.get("sep", ","))
            if format is not None:
                options.pop("sep", None)
            found = [DataFile(file, format or "csv") for file in chosen]
        case "parquet":
            columns = options.pop("columns", None)
            found = [DataFile(file, "parquet", columns=None if columns is None else tuple(columns)) for file in chosen]
        case "arrow" | "text" | "webdataset":
            found = [DataFile(file, loader) for file in chosen]
        case _ if loader in _FOLDERS:
            found = [DataFile(file, _METADATA[file.name], media=_FOLDERS[loader]) for file in chosen]
            if not found:
                raise SourceError(f"{path} holds media alone; write what is known of them to a metadata.jsonl there")
        case _:
            raise SourceError(
                f"{path} holds files that only the loader {loader!r} of `datasets` reads, whose memory nothing bounds; "
                "write the rows as Parquet or JSON Lines"
            )
    if options:
        raise SourceError(
            f"the card of {path} sets {', '.join(sorted(options))} for the loader {loader!r} of `datasets`, which is "
            "not read here; write the rows as Parquet or JSON Lines"
        )
    return found


def with_medium(file: DataFile, values: dict[str, Any]) -> dict[str, Any]:
    """A row of the metadata of a folder of media, with these in place of their names beside the file.

    Those of a repository are fetched, each once, and of a row no more bytes than of one image of the web.

    >>> with_medium(DataFile(Path("/set/metadata.csv"), "csv", media="image"), {"file_name": "a.png", "chosen": "yes"})
    {'chosen': 'yes', 'image': {'bytes': None, 'path': '/set/a.png'}}
    """
    left = MAX_BYTES

    def content(name: str) -> bytes | None:
        nonlocal left
        found = file.path.beside(name, left) if isinstance(file.path, RepositoryFile) and left >= 0 else None
        left -= len(found or b"")
        return found if left >= 0 else None

    def placed(name: Any) -> Any:
        if not isinstance(name, str):
            return name
        if isinstance(file.path, Path):
            return {"bytes": None, "path": str(file.path.parent / name)}
        if name not in fetched:
            fetched[name] = content(name)
        return {"bytes": fetched[name], "path": f"{file.path.address.rpartition('/')[0]}/{name}"}

    fetched: dict[str, bytes | None] = {}
    found = dict(values)
    for column, value in values.items():
        for ending in (_FILE_NAMES, _FILE_NAME):
            if column == ending or column.endswith(f"_{ending}"):
                several = ending == _FILE_NAMES
                name = column.removesuffix(ending).removesuffix("_") or f"{file.media}{'s' if several else ''}"
                del found[column]
                found[name] = list(map(placed, value)) if several and isinstance(value, list) else placed(value)
                break
    return found


def _require_split(path: Path, split: str | None, splits: Any) -> None:
    if (split or "train") not in splits:
        raise SourceError(f"{path} has no split {split or 'train'!r}; it has {', '.join(map(str, splits)) or 'none'}")


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def dataset_builder(where: Any, manifest: Manifest, revision: str | None) -> Any:
    """What loads a folder or a repository of the Hub. Raises SourceError where there is none."""
    import datasets

    try:
        return datasets.load_dataset_builder(str(where), name=manifest.config, revision=revision)
    except Exception as error:  # the library raises many kinds, for a missing file as for a missing network
        raise SourceError(
            f"`datasets` cannot load {where}, split {manifest.split or 'train'!r}: {_cause(error)}"
        ) from error


def _cause(error: Exception) -> str:
    """The message of an error and of the one that it was raised for: `datasets` wraps the informative one."""
    return f"{error}: {error.__cause__}" if error.__cause__ is not None else str(error)
