"""Folders and repositories in the layout of the library `datasets`: which files hold the rows of a split.

The library says which these are, by the folder's card, the names of its files and folders, or the state that
`save_to_disk` left. The files of a folder are then read by our own readers, whose memory is bounded and which put a
malformed row alone into the quarantine. What belongs here: the library. What does not: what a card may name
(dataset_folders.py), and rows (reading.py).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dt2it_pipeline.ingest.manifest import Manifest
from dt2it_pipeline.ingest.readers.dataset_folders import require_own_file
from dt2it_pipeline.ingest.readers.file_formats import format_of
from dt2it_pipeline.ingest.rows import Read, SourceError

_STATE, _SPLITS = "state.json", "dataset_dict.json"
_LOADERS = "datasets.packaged_modules."
_NO_OPTIONS = {"name", "version", "data_dir", "data_files", "description", "features", "delimiter"}
_METADATA = {"metadata.csv": "csv", "metadata.jsonl": "jsonl", "metadata.parquet": "parquet"}
_FILE_NAME, _FILE_NAMES = "file_name", "file_names"


class DataFile(NamedTuple):
    """A file that holds rows.

    Attributes:
        path: of it.
        format: one of those that `rows_of_stream` reads, or `arrow`.
        field: of the one JSON object that it is, the key under which the rows are; None where it is none.
        columns: that are read; None for all.
        media: whether a row's `file_name` is that of an image or video, beside this file; its kind.
    """

    path: Path
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
    builder = dataset_builder(path, manifest, None)
    loader = next(
        (kind.__module__.rpartition(".")[2] for kind in type(builder).__mro__ if kind.__module__.startswith(_LOADERS)),
        type(builder).__name__,
    )
    files = {str(split): list(map(Path, names)) for split, names in (builder.config.data_files or {}).items()}
    _require_split(path, manifest.split, files)
    chosen = files[manifest.split or "train"]
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
        case "imagefolder" | "videofolder":
            medium = loader.removesuffix("folder")
            about = [(file, _METADATA[file.name]) for file in chosen if file.name in _METADATA]
            found = [DataFile(file, format, media=medium) for file, format in about]
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

    >>> with_medium(DataFile(Path("/set/metadata.csv"), "csv", media="image"), {"file_name": "a.png", "chosen": "yes"})
    {'chosen': 'yes', 'image': {'bytes': None, 'path': '/set/a.png'}}
    """

    def placed(name: Any) -> Any:
        return {"bytes": None, "path": str(file.path.parent / name)} if isinstance(name, str) else name

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


def streamed(builder: Any, where: Any, split: str | None) -> Any:
    """Rows of a split, of which none is read yet. Raises SourceError where there is no such split."""
    if hasattr(builder.config, "on_mixed_types"):
        builder.config.on_mixed_types = None  # an error, instead of JSON texts where the column held texts before
    try:
        return builder.as_streaming_dataset(split=split or "train")
    except Exception as error:
        raise SourceError(f"`datasets` cannot load {where}, split {split or 'train'!r}: {_cause(error)}") from error


def undecoded(rows: Any, where: Any) -> Iterator[Read]:
    """Rows with images as {bytes, path}: decoding them is the media import's task.

    Raises:
        SourceError: `datasets` cannot read on.
    """
    import datasets

    number = 0
    try:
        if not rows.features:
            next(iter(rows), None)  # raises the reason
            raise ValueError("its columns are not known")
        found = iter(rows.cast(datasets.Features(_media_undecoded(dict(rows.features)))))
    except Exception as error:
        raise SourceError(f"`datasets` cannot read {where}: {_cause(error)}") from error
    while True:
        try:
            values = next(found)
        except StopIteration:
            return
        except Exception as error:
            raise SourceError(f"`datasets` cannot read {where} behind row {number}: {_cause(error)}") from error
        number += 1
        yield f"row {number}", values


def _media_undecoded(feature: Any) -> Any:
    """A feature with media as they lie. `IterableDataset.decode(False)` would leave Json features as JSON texts too."""
    import datasets

    if isinstance(feature, dict):
        return {name: _media_undecoded(inner) for name, inner in feature.items()}
    if isinstance(feature, datasets.List | datasets.LargeList):
        return dataclasses.replace(feature, feature=_media_undecoded(feature.feature))
    if isinstance(feature, datasets.Json) or not hasattr(feature, "decode"):
        return feature
    return dataclasses.replace(feature, decode=False)


def _cause(error: Exception) -> str:
    """The message of an error and of the one that it was raised for: `datasets` wraps the informative one."""
    return f"{error}: {error.__cause__}" if error.__cause__ is not None else str(error)
