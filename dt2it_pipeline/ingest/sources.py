"""Sources into records: reads what a manifest describes and makes prompts, pairs, T2I preferences or benchmark items.

A row's way is read, adapt, import its media, record. What cannot go on is quarantined with the reason, whichever step
it is at; rows in = rows out + rows quarantined, for every source.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dt2it_pipeline.errors import RowError
from dt2it_pipeline.ingest.adapters import adapter
from dt2it_pipeline.ingest.clean import clean_pairs, language_of
from dt2it_pipeline.ingest.manifest import SOURCES, Manifest
from dt2it_pipeline.ingest.reading import SourceError, data_files, is_saved, read_rows
from dt2it_pipeline.ingest.rows import TIE, Conversation, ImagePair, Item, Quarantined, Row, require_unicode
from dt2it_pipeline.media.bulk_import import Imported, MediaImporter
from dt2it_pipeline.media.errors import MediaError, VideoDecoderError
from dt2it_pipeline.media.markers import user_marker_kinds, with_media_first, without_markers
from dt2it_pipeline.media.root import MediaRoot
from dt2it_pipeline.observe.progress import Progress, Report, silent
from dt2it_pipeline.reformulate.phrasings import load_phrasings
from dt2it_pipeline.reformulate.t2i import verdict_pair
from dt2it_pipeline.storage import content_ids, records, schemas
from dt2it_pipeline.storage.artifacts import Artifact

__all__ = ["SourceError", "concatenate", "fingerprint", "items_of", "read_source", "unique_prompts"]

STAGE = "ingest"
_BATCH = 256  # items whose media are imported together
_FLUSH = 1024  # rows that are held as Python objects at a time
_PATIENCE = 100  # items that may lack a column, before a source none of whose items has it is given up
_COUNTS, _RARE = ("rows_in", "rows_out", "rows_quarantined"), ("ties", "repeated_ids")


@dataclass
class _Rows:
    """Rows of one table while it grows; only the last few are Python objects."""

    kind: str
    parts: list[pa.Table] = field(default_factory=list)
    recent: list[dict[str, Any]] = field(default_factory=list)

    def add(self, row: dict[str, Any]) -> None:
        self.recent.append(row)
        if len(self.recent) >= _FLUSH:
            self._flush()

    def table(self) -> pa.Table:
        self._flush()
        return pa.concat_tables(self.parts).combine_chunks()

    def _flush(self) -> None:
        if self.recent or not self.parts:
            self.parts.append(schemas.table(self.recent, self.kind))
            self.recent = []


class _Collected:
    """What a source has given so far."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.main = _Rows(_TABLES[manifest.kind])
        self.prompts = _Rows("prompts")
        self.aside = _Rows("quarantine")
        self.seen: set[bytes] = set()
        self.prompt_ids: set[bytes] = set()
        self.row_ids: set[int] = set()
        self.counts: Counter[str] = Counter()

    def read(self, row: Row) -> None:
        """Count a row whose own id an earlier row has: its outcome cannot be found by its id."""
        if self.manifest.kind in ("preferences", "t2i") and row.row_id != row.where:
            key = hash(row.row_id)
            self.counts["repeated_ids"] += key in self.row_ids
            self.row_ids.add(key)

    def record(self, item: Conversation | ImagePair, media: Sequence[Imported]) -> None:
        """Take an item in, or set it aside."""
        try:
            fault = next((one for one in media if isinstance(one, Exception)), None)
            if fault is not None:
                raise fault
            made, prompt = _record(self.manifest, item, [one for one in media if isinstance(one, dict)])
            # A pair with the opposite label is another row here: cleaning sees both and sets both aside.
            key = made.get("pair_id") or made.get("prompt_id") or made["preference_id"]
            same = (key, made.get("chosen_id") if self.manifest.kind == "preferences" else None)
            if _seen(self.seen, same):
                self.quarantine(Quarantined(item.row_id, "duplicate row", f"of {key}"), made.get("pair_id"))
                return
        except VideoDecoderError as error:
            raise SourceError(f"source {self.manifest.name!r}: {error}") from error
        except (MediaError, RowError) as error:
            self.quarantine(Quarantined(item.row_id, error.reason, error.detail))
        except (ValueError, TypeError, RuntimeError, OverflowError) as error:
            self.quarantine(Quarantined(item.row_id, "row cannot be read", f"{type(error).__name__}: {error}"))
        else:
            self.main.add(made)
            self.counts["rows_out"] += 1
            if prompt is not None and not _seen(self.prompt_ids, (prompt["prompt_id"], None)):
                self.prompts.add(prompt)

    def quarantine(self, item: Quarantined, pair_id: str | None = None) -> None:
        """Keep the reason for which something is no record, and which pair it repeats."""
        self.aside.add(
            records.quarantine_row(item.row_id, STAGE, item.reason, item.detail, self.manifest.name, pair_id)
        )
        self.counts["rows_quarantined"] += 1
        self.counts["ties"] += item.reason == TIE


_TABLES = {
    "prompts": "prompts",
    "preferences": "pairs",
    "truth": "pairs",
    "t2i": "t2i_preferences",
    "benchmark": "benchmark_items",
    "t2i_benchmark": "benchmark_items",
}


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


def items_of(manifest: Manifest, sources: Path, on_row: Callable[[Row], None] = lambda row: None) -> Iterator[Item]:
    """The neutral items of a source before their media are imported, what is quarantined so far among them.

    `on_row` is called with every row that is handed to the adapter.

    Raises:
        SourceError: it cannot be read, or lacks a column that its adapter needs in every row.
    """
    known = adapter(manifest.adapter)
    malformed: list[Quarantined] = []

    def rows() -> Iterator[Row]:
        for read in read_rows(manifest, sources):
            if isinstance(read, Quarantined):
                malformed.append(read)
            else:
                on_row(read)
                yield read

    hopeless = 0  # items so far, while every one of them lacked a column
    fault: Quarantined | None = None
    for item in known.items(rows()):
        yield from malformed
        malformed.clear()
        if hopeless >= 0:
            missing = isinstance(item, Quarantined) and item.missing_column
            hopeless = hopeless + 1 if missing else -1
            fault = fault or (item if missing and isinstance(item, Quarantined) else None)  # the first row's
            if hopeless >= _PATIENCE:
                break
        yield item
    if hopeless > 0 and fault is not None:
        raise SourceError(
            f"source {manifest.name!r}: {fault.detail}; adapter {manifest.adapter!r} reads {', '.join(known.columns)}: "
            "map them under `columns` in the manifest, or name another adapter"
        )
    yield from malformed


def read_source(manifest: Manifest, sources: Path, media_store: Path, report: Report = silent) -> Artifact:
    """Read one source whole. `report` is called after each batch with how many items are read and images imported.

    Returns an artifact with `quarantine` and, by kind: prompts -> `prompts`; preferences -> `pairs`, `prompts`; t2i ->
    `t2i_preferences`; benchmarks -> `benchmark_items`, `prompts`. Metadata: rows_in (items that its rows gave),
    rows_out, rows_quarantined; where there are some, ties (of these) and repeated_ids (rows whose own id an earlier row
    has).

    Memory is that of the tables and of one batch of items with their images. A call that was killed is made again;
    images that it had imported are not decoded again.

    Raises:
        SourceError: the source is missing, all of its rows lack a column that the adapter needs, or it has video files
            and OpenCV is not installed.
    """
    collected = _Collected(manifest)
    try:
        root = MediaRoot(manifest.located(sources)[1], manifest.media_prefix, manifest.media_urls)
    except (OSError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise SourceError(f"source {manifest.name!r}: media_root cannot be read: {error}") from error
    importer = MediaImporter(root, media_store)
    try:
        items = items_of(manifest, sources, collected.read)
        progress, images = Progress(report, f"items of {manifest.name}"), 0
        while batch := list(itertools.islice(items, _BATCH)):
            collected.counts["rows_in"] += len(batch)
            shown = [one for item in batch if not isinstance(item, Quarantined) for one in item.media]
            media = iter(importer.rows(shown))
            for item in batch:
                if isinstance(item, Quarantined):
                    collected.quarantine(item)
                else:
                    collected.record(item, list(itertools.islice(media, len(item.media))))
            images += len(shown)
            progress.add(len(batch), images=images or None)
    finally:
        importer.close()
        root.close()
    tables = {_TABLES[manifest.kind]: collected.main.table(), "quarantine": collected.aside.table()}
    if manifest.kind not in ("prompts", "t2i"):
        tables["prompts"] = collected.prompts.table()
    metadata = {name: collected.counts[name] for name in _COUNTS}
    return Artifact(tables, metadata | {name: collected.counts[name] for name in _RARE if collected.counts[name]})


def concatenate(
    artifacts: list[Artifact], kinds: tuple[str, ...], near_duplicate: float | None = None, report: Report = silent
) -> Artifact:
    """Join the artifacts of several sources into one; prompts that several sources share appear once.

    Pairs are cleaned on the way: repeated and contradictory ones are quarantined, and near-duplicates as far as
    `near_duplicate` says (clean.py); `report` is called with how many are looked at.
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
        tables["pairs"], aside = clean_pairs(tables["pairs"], tables["prompts"], near_duplicate, STAGE, report)
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
    first: dict[str, int] = {}
    for index, key in enumerate(joined["prompt_id"].to_pylist()):
        first.setdefault(key, index)
    return joined.take(pa.array(first.values(), pa.int64())).combine_chunks()  # typed: there may be no prompt


def _record(
    manifest: Manifest, item: Conversation | ImagePair, media: list[dict[str, str]]
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The record of an item, and the prompt that it needs beside it."""
    if isinstance(item, ImagePair):
        return _preference(manifest, item, *media)
    prompt = _prompt(manifest, item, media)
    if manifest.kind == "prompts":
        return prompt, None
    chosen, rejected = item.chosen or "", item.rejected or ""
    if chosen.split() == rejected.split():
        raise RowError("identical sides", chosen[:80])
    pair = records.make_pair(
        prompt["prompt_id"],
        chosen,
        rejected,
        source=manifest.name,
        strength=_strength(item.strength),
        row_id=records.writable(item.row_id),
        **item.place_in_list(manifest.name),
    )
    return (_benchmark_item(manifest, item, pair) if manifest.kind == "benchmark" else pair), prompt


def _preference(
    manifest: Manifest, item: ImagePair, preferred: dict[str, str], other: dict[str, str]
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    if preferred["sha256"] == other["sha256"]:
        raise RowError("identical images")
    content = content_ids.content_hash("t2i", item.caption, preferred["sha256"], other["sha256"])
    preference = {
        "preference_id": content,
        "caption": item.caption,
        "preferred": preferred,
        "other": other,
        "strength": _strength(item.strength),
        "language": language_of(item.caption, manifest.language),
        "source": manifest.name,
        "row_id": records.writable(item.row_id),
    }
    if manifest.kind == "t2i":
        return preference, None
    # The position follows the row's content, so that a benchmark is the same whatever the order of its rows.
    phrasings = load_phrasings(count=manifest.phrasings)
    prompt, pair = verdict_pair(preference, preferred_first=int(content, 16) % 2 == 0, phrasings=phrasings)
    return _benchmark_item(manifest, item, pair), prompt


def _prompt(manifest: Manifest, item: Conversation, media: list[dict[str, str]]) -> dict[str, Any]:
    markers = user_marker_kinds(item.turns)
    kinds = [medium["kind"] for medium in media]
    if markers and sorted(markers) != sorted(kinds):
        escape = "" if kinds else "; where the text is about the characters, write \\<image>"
        raise RowError("image markers and images differ", f"markers {markers}, media {kinds}"[:200] + escape)
    queues = {kind: iter([m for m in media if m["kind"] == kind]) for kind in kinds}
    media = [next(queues[kind]) for kind in markers or kinds]
    turns = [dict(turn) for turn in item.turns] if markers else with_media_first(item.turns, kinds)
    meta = json.dumps(dict(item.meta), ensure_ascii=False, sort_keys=True, default=str) if item.meta else "{}"
    require_unicode(meta, "columns that are kept beside the prompt")
    return {
        "prompt_id": content_ids.prompt_id(item.system, turns, [medium["sha256"] for medium in media]),
        "source": manifest.name,
        "system": item.system,
        "turns": turns,
        "media": media,
        "reference": item.reference,
        "language": language_of(without_markers(turns[-1]["text"]), manifest.language),
        "meta": meta,
    }


def _benchmark_item(manifest: Manifest, item: Conversation | ImagePair, pair: Mapping[str, Any]) -> dict[str, Any]:
    group = manifest.group or item.group
    if group is None:
        raise RowError("missing value", "the row has no group, and the manifest gives none")
    name = f"{item.row_id}:{item.part}" if item.part else item.row_id
    require_unicode(name, "id")
    kept = ("pair_id", "prompt_id", "chosen_id", "rejected_id", "chosen", "rejected")
    own = {"item_id": name, "benchmark": manifest.benchmark or manifest.name, "group": group}
    return own | {name: pair[name] for name in kept}


def _strength(value: float | None) -> float | None:
    """A strength that can be one: finite, else the row has none."""
    return value if value is not None and abs(value) < float("inf") else None


def _from_where(manifest: Manifest, data: Path | None) -> str:
    """How `path` is meant, where nothing lies there."""
    if data is None or data.exists():
        return ""
    if manifest.path is not None and manifest.path.startswith(f"{SOURCES}/demo/"):
        return "; the demo's files are made where the recipe has `demo: {}`"
    return "; `path` counts from the manifest's own folder, in configs/datasets from the project root"


def _seen(known: set[bytes], key: tuple[str, str | None]) -> bool:
    """Whether a key was there before; ids are kept as bytes, which take a third of the memory."""
    short = bytes.fromhex(key[0]) + (bytes.fromhex(key[1])[:8] if key[1] else b"")
    if short in known:
        return True
    known.add(short)
    return False


def _stat(digest: Any, files: Sequence[Path], root: Path) -> None:
    for file in files:
        stat = file.lstat()  # a link that leads nowhere may lie beside the data
        name = file.relative_to(root) if file != root else Path(file.name)
        digest.update(os.fsencode(name) + f":{stat.st_size}:{stat.st_mtime_ns}\n".encode())
