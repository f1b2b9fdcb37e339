"""Folders that the library `datasets` reads: nothing in them may name a file outside of them, or an address.

The library follows whatever a folder's own files name: the card's `configs` and the state that `save_to_disk` writes.
A folder may be a stranger's, so they are looked at before the library sees it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from dt2it_pipeline.config.strict_yaml import load_yaml
from dt2it_pipeline.ingest.rows import SourceError

CARDS = ("README.md", ".huggingface.yaml")
STATES = ("state.json", "dataset_dict.json", "dataset_infos.json")
LONGEST_CARD = 16 << 20  # bytes of a card or a state
_DRIVE = re.compile(r"[A-Za-z]:")


def require_own_files(folder: Path) -> None:
    """Refuse a folder whose own files lead out of it.

    Raises:
        SourceError: a card or a state names a file outside of the folder, or an address, or cannot be read.
    """
    for name in CARDS:
        if (folder / name).exists():
            for place in _places_of_card(folder / name):
                _require_inside(place, folder / name)
    for name in STATES:
        for file in sorted(folder.rglob(name)):
            for place in _places_of_state(file):
                _require_inside(place, file)


def require_own_file(file: Path, folder: Path) -> None:
    """Refuse a file that is a link, or in a linked folder, to something outside of its folder.

    A snapshot in the Hub's cache is one of links to the folder `blobs` beside it.

    Raises:
        SourceError: it leads out.
    """
    try:
        found, own = file.resolve(), folder.resolve()
    except (OSError, RuntimeError) as error:  # links that lead to themselves
        raise SourceError(f"{file} cannot be read: {error}") from error
    blobs = [own.parent.parent / "blobs"] if own.parent.name == "snapshots" else []
    if not any(found.is_relative_to(place) for place in (own, *blobs)):
        raise SourceError(f"{file} is a link that leads out of {folder}; lay the data there")


def _require_inside(place: str, file: Path) -> None:
    path = PurePosixPath(place.replace("\\", "/"))
    if "://" in place or "::" in place or path.is_absolute() or _DRIVE.match(place) or place.startswith("~"):
        raise SourceError(f"{file} names {place[:200]!r}; a data file is named by its path in the folder")
    if ".." in path.parts:
        raise SourceError(f"{file} names {place[:200]!r}, which leads out of the folder; lay the data there")


def _places_of_card(file: Path) -> Iterator[str]:
    """Every text below `configs` of a card: data files, folders and splits. Read as the library reads it."""
    from huggingface_hub import DatasetCard
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    text = _text(file)
    try:
        if file.suffix == ".md":
            if (head := REGEX_YAML_BLOCK.search(text)) is not None:
                load_yaml(head[2])  # the library bounds no aliases, and takes the last of two equal keys
            content = DatasetCard.load(file, ignore_metadata_errors=False).data.to_dict()
        else:
            content = load_yaml(text)
    except Exception as error:  # of YAML, of the file system, or of what the card's fields must be
        raise SourceError(f"{file} cannot be read: {error}") from error
    yield from _texts(content.get("configs") if isinstance(content, dict) else None)


def _places_of_state(file: Path) -> Iterator[str]:
    try:
        content = json.loads(_text(file))
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{file} cannot be read: {error}") from error
    for key in ("_data_files", "splits"):
        yield from _texts(content.get(key) if isinstance(content, dict) else None)


def _text(file: Path) -> str:
    """The text of a card or a state, in memory whole. Raises SourceError where it is no text, or too long."""
    try:
        with file.open("rb") as stream:
            content = stream.read(LONGEST_CARD + 1)
        if len(content) > LONGEST_CARD:
            raise SourceError(f"{file} has more than {LONGEST_CARD:,} bytes; shorten it")
        return content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{file} cannot be read: {error}") from error


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
