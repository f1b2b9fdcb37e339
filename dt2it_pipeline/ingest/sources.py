"""Sources into records: reads what a manifest describes and makes prompts, pairs, T2I preferences or benchmark items.

A row's way is read, adapt, import its media, record. What cannot go on is quarantined with the reason, whichever step
it is at; rows in = rows out + rows quarantined, for every source.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dt2it_pipeline.ingest.clean import clean_pairs
from dt2it_pipeline.ingest.manifest import SOURCES, Manifest
from dt2it_pipeline.ingest.pieces import MediaFolder, items_of, pieces
from dt2it_pipeline.ingest.readers.hub import is_saved
from dt2it_pipeline.ingest.reading import SourceError, data_files
from dt2it_pipeline.ingest.recording import STAGE, TABLES, Recorded, quarantine_row
from dt2it_pipeline.ingest.rows import TIE, Quarantined
from dt2it_pipeline.observe.progress import Progress, Report, silent
from dt2it_pipeline.storage import schemas
from dt2it_pipeline.storage.artifacts import Artifact

__all__ = [
    "SourceError",
    "concatenate",
    "fingerprint",
    "items_of",
    "read_source",
    "unique_prompts",
]

_REPEATED = "duplicate row"  # reason of a row that repeats an earlier one of its source
_JOINED = 64  # pieces of a table that are made one
_IDS = ("pair_id", "prompt_id", "preference_id")  # what identifies the rows of a table
_Key = tuple[str, str | None]  # an id and, where the label makes another row of it, that of the chosen side
_COUNTS, _RARE = ("rows_in", "rows_out", "rows_quarantined"), ("ties", "repeated_ids")


class _Parts:
    """A table while it grows by pieces."""

    def __init__(self, kind: str) -> None:
        self._parts, self._recent = [schemas.table([], kind)], 0

    def add(self, part: pa.Table) -> None:
        if part.num_rows:
            self._parts.append(part)
            self._recent += 1
        if self._recent >= _JOINED:  # a small table takes more memory than its rows do
            self._parts[-self._recent :] = [pa.concat_tables(self._parts[-self._recent :]).combine_chunks()]
            self._recent = 0

    def table(self) -> pa.Table:
        """The whole table. Its pieces are gone then: column by column, so that no more than one lies there twice."""
        whole = pa.concat_tables(self._parts)
        self._parts = []
        for place, name in enumerate(whole.column_names):
            one = whole.select([name]).combine_chunks()
            whole = whole.set_column(place, one.schema.field(0), one.column(0))
        return whole


class _Collected:
    """What a source has given so far."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.main = _Parts(TABLES[manifest.kind])
        self.prompts, self.aside = _Parts("prompts"), _Parts("quarantine")
        self.seen: set[bytes] = set()
        self.prompt_ids: set[bytes] = set()
        self.row_ids: set[int] = set()
        self.counts: Counter[str] = Counter()

    def add(self, found: Recorded) -> None:
        """Take in what the next items of the source gave; rows that repeat an earlier one are set aside."""
        for row_id in found.own_ids:  # the outcome of a row whose id an earlier row has cannot be found by its id
            key = hash(row_id)
            self.counts["repeated_ids"] += key in self.row_ids
            self.row_ids.add(key)
        keys = _keys(found.made, self.manifest.kind)
        fresh = [not _seen(self.seen, key) for key in keys]
        made, prompts, aside = found.made, found.prompts, found.aside
        if not all(fresh):
            aside = self._with_repeated(found, keys, fresh)
            made, prompts = (None if each is None else each.filter(pa.array(fresh)) for each in (made, prompts))
        self.main.add(made)
        self.aside.add(aside)
        if prompts is not None:
            new = [not _seen(self.prompt_ids, (key, None)) for key in prompts["prompt_id"].to_pylist()]
            self.prompts.add(prompts if all(new) else prompts.filter(pa.array(new)))
        self.counts["rows_in"] += found.items
        self.counts["rows_out"] += made.num_rows
        self.counts["rows_quarantined"] += aside.num_rows
        self.counts["ties"] += pc.sum(pc.equal(aside["reason"], TIE), min_count=0).as_py()

    def _with_repeated(self, found: Recorded, keys: Sequence[_Key], fresh: Sequence[bool]) -> pa.Table:
        """The quarantine with the rows that repeat an earlier one, in the order of the items.

        Their detail is the key of that row, for which `_naming_rows` finds its name once the source has ended: names of
        all rows that may be repeated would take more memory than the tables.
        """
        of_pairs, named = "pair_id" in found.made.column_names, "row_id" in found.made.column_names
        repeated = {
            place: quarantine_row(
                self.manifest,
                Quarantined(row_id, _REPEATED, f"{key[0]}{key[1] or ''}" if named else f"of {key[0]}"),
                key[0] if of_pairs else None,
            )
            for place, row_id, key, new in zip(found.places, found.made_from, keys, fresh, strict=True)
            if not new
        }
        kept = set(found.places)
        others = (place for place in range(found.items) if place not in kept)
        rows = repeated | dict(zip(others, found.aside.to_pylist(), strict=True))
        return schemas.table([rows[place] for place in sorted(rows)], "quarantine")


def _keys(table: pa.Table, kind: str) -> list[_Key]:
    """What makes a row another one than those before it, by row."""
    ids = table[next(name for name in _IDS if name in table.column_names)].to_pylist()
    # A pair with the opposite label is another row here: cleaning sees both and sets both aside.
    sides = table["chosen_id"].to_pylist() if kind == "preferences" else [None] * len(ids)
    return list(zip(ids, sides, strict=True))


def _naming_rows(aside: pa.Table, main: pa.Table, kind: str) -> pa.Table:
    """The quarantine, where rows that repeat an earlier one name its row in place of its key."""
    mask = pc.equal(aside["reason"], _REPEATED).combine_chunks()
    keys = pc.filter(aside["detail"], mask)
    if not len(keys) or "row_id" not in main.column_names:
        return aside
    name = next(name for name in _IDS if name in main.column_names)
    parts = [name, "chosen_id"] if kind == "preferences" else [name]
    ids = pc.unique(pc.utf8_slice_codeunits(keys, 0, len(main[name][0].as_py())))  # all ids are of one length
    named = main.select([*parts, "row_id"]).filter(pc.is_in(main[name], value_set=ids))
    rows = pc.index_in(keys, value_set=pc.binary_join_element_wise(*(named[part] for part in parts), ""))
    details = pc.binary_join_element_wise("of row", pc.take(named["row_id"], rows), " ")
    filled = pc.replace_with_mask(aside["detail"].combine_chunks(), mask, details.combine_chunks())
    return aside.set_column(aside.schema.get_field_index("detail"), aside.schema.field("detail"), filled)


def fingerprint(manifest: Manifest, sources: Path) -> str:
    """Hash of the manifest, its data and the names, sizes and times of its media; equal means nothing changed.

    A file of data counts by its content, the files of a folder by names, sizes and times; a dataset of the Hub by its
    pinned revision, which stands in the manifest.

    Raises:
        SourceError: the data cannot be read.
    """
    data, media = manifest.located(sources)
    digest = hashlib.sha256(manifest.model_dump_json().encode())
    try:
        if data is not None:
            digest.update(b"local copy")
            if data.is_file() or not data.exists():
                with data.open("rb") as handle:
                    digest.update(hashlib.file_digest(handle, "sha256").digest())
            else:
                whole = manifest.format == "dataset" or is_saved(data)
                files = sorted(data.rglob("*")) if whole else data_files(data, manifest.format)
                _stat(digest, files, data)
        if media is not None and media != data:
            _stat(digest, sorted(media.rglob("*")) if media.is_dir() else [media] * media.exists(), media)
    except OSError as error:
        raise SourceError(
            f"source {manifest.name!r}: cannot read {error.filename}: {error.strerror}{_from_where(manifest, data)}"
        ) from error
    except SourceError as error:
        raise SourceError(f"source {manifest.name!r}: {error}") from None
    return digest.hexdigest()[:32]


def read_source(
    manifest: Manifest, sources: Path, media_store: Path, report: Report = silent, processes: int = 1
) -> Artifact:
    """Read one source whole. `report` is called after each batch with how many items are read and images imported.

    Returns an artifact with `quarantine` and, by kind: prompts -> `prompts`; preferences -> `pairs`, `prompts`; t2i ->
    `t2i_preferences`; benchmarks -> `benchmark_items`, `prompts`. Metadata: rows_in (items that its rows gave),
    rows_out, rows_quarantined; where there are some, ties (of these) and repeated_ids (rows whose own id an earlier row
    has).

    Memory is that of the tables and of a few batches of items with their images. A call that was killed is made again;
    images that it had imported are not decoded again.

    Args:
        manifest: of the source.
        sources: the folder sources/ of the artifact home.
        media_store: where images and videos are put.
        report: see above.
        processes: that parse rows and import images, once a source shows to be long. The tables are the same, whatever
            their number.

    Raises:
        SourceError: the source is missing, all of its rows lack a column that the adapter needs, or it has video files
            and OpenCV is not installed.
        WorkerError: one of several processes died.
    """
    collected = _Collected(manifest)
    progress, images = Progress(report, f"items of {manifest.name}"), 0
    root = MediaFolder(manifest.located(sources)[1], manifest.media_prefix, manifest.media_urls, media_store)
    for found in pieces(manifest, sources, root, processes):
        collected.add(found)
        images += found.images
        progress.add(found.items, images=images or None)
    main = collected.main.table()
    aside = _naming_rows(collected.aside.table(), main, manifest.kind)
    tables = {TABLES[manifest.kind]: main, "quarantine": aside}
    if manifest.kind not in ("prompts", "t2i"):
        tables["prompts"] = collected.prompts.table()
    metadata = {name: collected.counts[name] for name in _COUNTS}
    return Artifact(tables, metadata | {name: collected.counts[name] for name in _RARE if collected.counts[name]})


def concatenate(
    artifacts: list[Artifact],
    kinds: tuple[str, ...],
    near_duplicate: float | None = None,
    report: Report = silent,
    processes: int = 1,
) -> Artifact:
    """Join the artifacts of several sources into one; prompts that several sources share appear once.

    Pairs are cleaned on the way: repeated and contradictory ones are quarantined, and near-duplicates as far as
    `near_duplicate` says (clean.py); `report` is called with how many are looked at, and `processes` share the work.

    Raises:
        WorkerError: one of several processes died.
    """
    tables: dict[str, pa.Table] = {}
    for kind in kinds:
        parts = [artifact[kind] for artifact in artifacts]
        tables[kind] = pa.concat_tables(parts) if parts else schemas.table([], kind)
    if "prompts" in tables:
        tables["prompts"] = unique_prompts([tables["prompts"]])
    totals = {name: sum(artifact.metadata[name] for artifact in artifacts) for name in _COUNTS}
    if repeated := sum(artifact.metadata.get("repeated_ids", 0) for artifact in artifacts):
        totals["repeated_ids"] = repeated
    if "pairs" in tables and "quarantine" in tables:
        tables["pairs"], aside = clean_pairs(
            tables["pairs"], tables["prompts"], near_duplicate, STAGE, report, processes
        )
        if aside.num_rows:
            tables["quarantine"] = pa.concat_tables([tables["quarantine"], aside])
            used = tables["pairs"]["prompt_id"].combine_chunks()
            kept = pc.is_in(tables["prompts"]["prompt_id"], value_set=used)
            tables["prompts"] = tables["prompts"].filter(kept).combine_chunks()
        totals["rows_out"] -= aside.num_rows
        totals["rows_quarantined"] += aside.num_rows
    return Artifact(tables, totals)


def unique_prompts(tables: list[pa.Table]) -> pa.Table:
    """Prompts tables as one, each prompt_id once (the first row that has it)."""
    joined = pa.concat_tables(tables)
    codes = joined["prompt_id"].combine_chunks().dictionary_encode().indices
    first = np.zeros(joined.num_rows, dtype=bool)
    first[np.unique(codes, return_index=True)[1]] = True
    return (joined if first.all() else joined.filter(pa.array(first))).combine_chunks()


def _from_where(manifest: Manifest, data: Path | None) -> str:
    """What to look at, where nothing lies at the data's path."""
    if data is None or data.exists():
        return ""
    if manifest.path is not None and manifest.path.startswith(f"{SOURCES}/demo/"):
        return "; the demo's files are made where the recipe has `demo: {}`"
    return ": look at `path` in its manifest"


def _stat(digest: Any, files: Sequence[Path], root: Path) -> None:
    for file in files:
        stat = file.lstat()  # a link that leads nowhere may lie beside the data
        name = file.relative_to(root) if file != root else Path(file.name)
        digest.update(os.fsencode(name) + f":{stat.st_size}:{stat.st_mtime_ns}\n".encode())


def _seen(known: set[bytes], key: _Key) -> bool:
    """Whether a key was there before; ids are kept as bytes, which take a third of the memory."""
    short = bytes.fromhex(key[0]) + (bytes.fromhex(key[1])[:8] if key[1] else b"")
    if short in known:
        return True
    known.add(short)
    return False
