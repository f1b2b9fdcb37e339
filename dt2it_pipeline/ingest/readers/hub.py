"""Sources that the library `datasets` reads: repositories of the Hub, and folders in its own layout."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dt2it_pipeline.ingest.manifest import Manifest
from dt2it_pipeline.ingest.rows import Read, SourceError


def saved(path: Path, split: str | None) -> Any:
    """A folder as `save_to_disk` wrote it. Raises SourceError where it cannot be loaded."""
    import datasets

    try:
        found = datasets.load_from_disk(str(path))
        if isinstance(found, datasets.DatasetDict):
            found = found[split or "train"]
        return found.to_iterable_dataset()
    except Exception as error:  # as below
        raise SourceError(f"`datasets` cannot load {path}, split {split or 'train'!r}: {error!r}") from error


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
