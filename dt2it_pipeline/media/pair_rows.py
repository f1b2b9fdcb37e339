"""Pairs with their prompts and media files, checked, one by one: what every format is written from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from dt2it_pipeline.errors import RowError
from dt2it_pipeline.media.errors import MediaError
from dt2it_pipeline.media.markers import user_marker_kinds
from dt2it_pipeline.media.paths import confined

ROW_ID = "row of the data source: its own id, else its place there; null where the pipeline constructed the pair"
LISTS: Mapping[str, str] = {  # columns by which pairs are put together to lists of answers again
    "list_id": "list of answers to one prompt that both sides stand in; null for a pair alone",
    "chosen_rank": "place of the better answer in that list by the data source, 1 is best; more than `rejected_rank` "
    "where curation found the source wrong",
    "rejected_rank": "the same of the worse answer; equal answers share the mean place",
}
_BATCH = 1000  # pairs turned into Python objects at once


class RowFault(RowError):
    """One pair cannot be written."""


@dataclass(frozen=True)
class Row:
    """One pair: its row, its prompt's row, and the files of its media in the order of the markers."""

    pair: Mapping[str, Any]
    prompt: Mapping[str, Any]
    images: tuple[Path, ...]
    videos: tuple[Path, ...]

    @property
    def id(self) -> str:
        """The pair's id."""
        return str(self.pair["pair_id"])


def rows_of(pairs: pa.Table, prompts: pa.Table, media: Path) -> Iterator[Row | tuple[Mapping[str, Any], RowFault]]:
    """Every pair in the table's order: a row, or the pair with what is wrong with it."""
    places = {key: place for place, key in enumerate(prompts["prompt_id"].to_pylist())}
    for start in range(0, pairs.num_rows, _BATCH):
        batch = pairs.slice(start, _BATCH)
        known = [places.get(key) for key in batch["prompt_id"].to_pylist()]
        found = iter(prompts.take(pa.array([place for place in known if place is not None], pa.int64())).to_pylist())
        for pair, place in zip(batch.to_pylist(), known, strict=True):
            try:
                if place is None:
                    raise RowFault("prompt not found", pair["prompt_id"])
                yield _row(pair, next(found), media)
            except RowFault as fault:
                yield pair, fault


def _row(pair: Mapping[str, Any], prompt: Mapping[str, Any], media: Path) -> Row:
    markers = user_marker_kinds(prompt["turns"])
    kinds = [medium["kind"] for medium in prompt["media"]]
    if markers != kinds:
        raise RowFault("markers do not match media", f"markers {markers}, media {kinds}")
    files: dict[str, list[Path]] = {"image": [], "video": []}
    for medium in prompt["media"]:
        try:
            file = confined(medium["path"], media, medium["kind"])
            folder, there = file.is_dir(), file.is_file()
        except MediaError as error:
            raise RowFault(error.reason, error.detail) from error
        except OSError as error:  # a path that is too long
            raise RowFault(f"missing {medium['kind']}", f"{medium['path']!r}: {error}") from error
        if folder:
            raise RowFault("video is a folder of frames", medium["path"])
        if not there:
            raise RowFault(f"missing {medium['kind']}", medium["path"])
        files[medium["kind"]].append(file)
    return Row(pair, prompt, tuple(files["image"]), tuple(files["video"]))
