"""Sources into records: reads what a manifest describes and makes prompts, pairs, T2I preferences or benchmark items.

A row that cannot be used is set aside with the reason; rows in = rows out + rows set aside, for every source.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from dt2it_pipeline import records
from dt2it_pipeline.ingest.manifest import Manifest
from dt2it_pipeline.ingest.media import MediaError, import_image, import_video
from dt2it_pipeline.ingest.video import VideoDecoderError
from dt2it_pipeline.reformulate.t2i import verdict_pair
from dt2it_pipeline.store import Bundle

_STAGE = "ingest"
_MARKER = re.compile("<(image|video)>")


class SourceError(ValueError):
    """A whole source cannot be read: its file is missing, or its columns are not those of the manifest."""


@dataclass
class _Collected:
    """Rows of one source while it is read, by table kind."""

    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    set_aside: list[dict[str, str]] = field(default_factory=list)
    prompts: dict[str, dict[str, Any]] = field(default_factory=dict)
    rows_in: int = 0


class _RowError(ValueError):
    """One row cannot be used."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail


def fingerprint(manifest: Manifest, sources: Path) -> str:
    """Hash of the manifest, its data file and the names, sizes and times of its media; equal means nothing changed.

    Raises:
        SourceError: the data file cannot be read.
    """
    data, media = manifest.located(sources)
    digest = hashlib.sha256(manifest.model_dump_json().encode())
    try:
        with data.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
        for file in sorted(media.rglob("*")):
            stat = file.lstat()  # a link that leads nowhere may lie beside the data
            digest.update(os.fsencode(file.relative_to(media)))
            digest.update(f":{stat.st_size}:{stat.st_mtime_ns}\n".encode())
    except OSError as error:
        raise SourceError(f"source {manifest.name!r}: cannot read {error.filename}: {error.strerror}") from error
    return digest.hexdigest()[:32]


def read_source(manifest: Manifest, sources: Path, media_store: Path) -> Bundle:
    """Read one source whole.

    Returns a bundle with `set_aside` and, by kind: prompts -> `prompts`; preferences -> `pairs`, `prompts`; t2i ->
    `t2i_preferences`; benchmarks -> `benchmark_items`, `prompts`. Facts: rows_in, rows_out, rows_set_aside.

    Raises:
        SourceError: the file is missing, the first usable row lacks a column of the manifest, or the source has video
            files and OpenCV is not installed.
    """
    data, media_root = manifest.located(sources)
    collected = _Collected()
    seen: set[str] = set()
    for row_id, row in _rows(manifest, data, collected):
        try:
            kind, made = _record(manifest, row_id, row, media_root, media_store, collected.prompts)
            key = made.get("pair_id") or made.get("prompt_id") or made["row_id"]
            if key in seen:
                raise _RowError("duplicate row", key)
            seen.add(key)
            collected.tables.setdefault(kind, []).append(made)
        except VideoDecoderError as error:
            raise SourceError(f"source {manifest.name!r}: {error}") from error
        except (MediaError, _RowError) as error:
            collected.set_aside.append(records.set_aside_row(row_id, _STAGE, error.reason, error.detail, manifest.name))
        except (ValueError, TypeError, RuntimeError, OverflowError) as error:  # a decoder's own, a path with a NUL, ...
            detail = f"{type(error).__name__}: {error}"
            collected.set_aside.append(
                records.set_aside_row(row_id, _STAGE, "row cannot be read", detail, manifest.name)
            )
    tables = {kind: records.table(collected.tables.get(kind, []), kind) for kind in _kinds(manifest)}
    if manifest.kind not in ("prompts", "t2i"):
        used = {row["prompt_id"] for row in collected.tables.get(_kinds(manifest)[0], [])}
        prompts = (prompt for key, prompt in collected.prompts.items() if key in used)
        tables["prompts"] = records.table(prompts, "prompts")
    tables["set_aside"] = records.table(collected.set_aside, "set_aside")
    rows_out = sum(len(rows) for rows in collected.tables.values())
    facts = {"rows_in": collected.rows_in, "rows_out": rows_out, "rows_set_aside": len(collected.set_aside)}
    return Bundle(tables, facts)


def concatenate(bundles: list[Bundle], kinds: tuple[str, ...]) -> Bundle:
    """Join the bundles of several sources into one; prompts that several sources share appear once."""
    tables: dict[str, pa.Table] = {}
    for kind in kinds:
        parts = [bundle[kind] for bundle in bundles]
        tables[kind] = pa.concat_tables(parts) if parts else records.table([], kind)
    if "prompts" in tables:
        tables["prompts"] = unique_prompts([tables["prompts"]])
    totals = {name: sum(bundle.facts[name] for bundle in bundles) for name in ("rows_in", "rows_out", "rows_set_aside")}
    if "pairs" in tables and "set_aside" in tables:
        _set_repeated_aside(tables, totals)
    return Bundle(tables, totals)


def _set_repeated_aside(tables: dict[str, pa.Table], totals: dict[str, int]) -> None:
    """Keep every pair once, from the first source that has it; in place."""
    seen: dict[str, str] = {}  # pair -> the side that its first row prefers
    keep, aside = [], []
    columns = (tables["pairs"][name].to_pylist() for name in ("pair_id", "chosen_id", "source"))
    for pair, chosen, source in zip(*columns, strict=True):
        keep.append(pair not in seen)
        if not keep[-1]:
            detail = "with the same label" if seen[pair] == chosen else "with the opposite label"
            aside.append(records.set_aside_row(pair, _STAGE, "pair is in an earlier source", detail, source))
        seen.setdefault(pair, chosen)
    if aside:
        tables["pairs"] = tables["pairs"].filter(pa.array(keep, pa.bool_())).combine_chunks()
        totals["rows_out"] -= len(aside)
        totals["rows_set_aside"] += len(aside)
        tables["set_aside"] = pa.concat_tables([tables["set_aside"], records.table(aside, "set_aside")])


def unique_prompts(tables: list[pa.Table]) -> pa.Table:
    """Prompts tables as one, each prompt_id once (the first row that has it)."""
    joined = pa.concat_tables(tables)
    first: dict[str, int] = {}
    for index, key in enumerate(joined["prompt_id"].to_pylist()):
        first.setdefault(key, index)
    return joined.take(pa.array(first.values(), pa.int64())).combine_chunks()  # typed: there may be no prompt


def _kinds(manifest: Manifest) -> tuple[str, ...]:
    return {
        "prompts": ("prompts",),
        "preferences": ("pairs",),
        "truth": ("pairs",),
        "t2i": ("t2i_preferences",),
        "benchmark": ("benchmark_items",),
        "t2i_benchmark": ("benchmark_items",),
    }[manifest.kind]


def _rows(manifest: Manifest, data: Path, collected: _Collected) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows of a JSON Lines file with their ids; malformed lines are set aside, missing columns end the source."""
    try:
        lines = data.open(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise SourceError(f"source {manifest.name!r}: cannot read {data}: {error.strerror}") from error
    checked = False
    with lines:
        for number, line in enumerate(lines, start=1):
            if manifest.limit is not None and collected.rows_in >= manifest.limit:
                return
            if not line.strip():
                continue
            collected.rows_in += 1
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError(f"expected an object, found {type(row).__name__}")
            except (ValueError, RecursionError) as error:
                collected.set_aside.append(
                    records.set_aside_row(f"line {number}", _STAGE, "malformed JSON", str(error), manifest.name)
                )
                continue
            if not checked:
                missing = [manifest.column(f) for f in manifest.required_fields() if manifest.column(f) not in row]
                if missing:
                    raise SourceError(
                        f"source {manifest.name!r}: column(s) {missing} not in line {number} of {data.name}, "
                        f"which has {sorted(row)}; map them under `columns` in the manifest"
                    )
                checked = True
            yield str(row.get(manifest.column("id"), f"line {number}")), row


def _record(
    manifest: Manifest,
    row_id: str,
    row: Mapping[str, Any],
    media_root: Path,
    store: Path,
    prompts: dict[str, dict[str, Any]],
) -> tuple[str, dict[str, Any]]:
    """Table kind and record of one row; prompts that it needs are added to `prompts`."""
    values = {name: _text(row, manifest.column(name)) for name in manifest.required_fields()}
    if manifest.kind in ("t2i", "t2i_benchmark"):
        preferred, other = (import_image(values[side], media_root, store) for side in ("preferred", "other"))
        if preferred["sha256"] == other["sha256"]:
            raise _RowError("identical images")
        content = records.content_hash("t2i", values["caption"], preferred["sha256"], other["sha256"])
        preference = {
            "row_id": content,
            "caption": values["caption"],
            "preferred": preferred,
            "other": other,
            "strength": None,
            "language": manifest.language,
            "source": manifest.name,
        }
        if manifest.kind == "t2i":
            return "t2i_preferences", preference
        # The position follows the row's content, so that a benchmark is the same whatever the order of its rows.
        prompt, pair = verdict_pair(preference, preferred_first=int(content, 16) % 2 == 0)
        prompts[prompt["prompt_id"]] = prompt
        return "benchmark_items", _benchmark_item(manifest, row_id, row, pair)
    media = [import_image(name, media_root, store) for name in _media_names(manifest, row, "image")]
    media += [import_video(name, media_root, store) for name in _media_names(manifest, row, "video")]
    prompt = _prompt(manifest, row, values["question"], media, values.get("reference"))
    if manifest.kind == "prompts":
        return "prompts", prompt
    if values["chosen"] == values["rejected"]:
        raise _RowError("identical sides", values["chosen"][:80])
    pair = records.make_pair(prompt["prompt_id"], values["chosen"], values["rejected"], source=manifest.name)
    prompts[prompt["prompt_id"]] = prompt
    if manifest.kind == "benchmark":
        return "benchmark_items", _benchmark_item(manifest, row_id, row, pair)
    return "pairs", pair


def _prompt(
    manifest: Manifest, row: Mapping[str, Any], question: str, media: list[dict[str, str]], reference: str | None
) -> dict[str, Any]:
    markers = _MARKER.findall(question)
    kinds = [medium["kind"] for medium in media]
    if markers and sorted(markers) != sorted(kinds):
        raise _RowError("image markers and images differ", f"markers {markers}, media {kinds}")
    queues = {kind: iter([m for m in media if m["kind"] == kind]) for kind in kinds}
    media = [next(queues[kind]) for kind in markers or kinds]
    text = question if markers else "".join(f"<{kind}>\n" for kind in kinds) + question
    turns = [{"role": "user", "text": text}]
    system = _text(row, manifest.column("system")) if row.get(manifest.column("system")) else ""
    return {
        "prompt_id": records.prompt_id(system, turns, [medium["sha256"] for medium in media]),
        "source": manifest.name,
        "system": system,
        "turns": turns,
        "media": media,
        "reference": reference,
        "language": manifest.language,
        "meta": "{}",
    }


def _benchmark_item(manifest: Manifest, row_id: str, row: Mapping[str, Any], pair: Mapping[str, Any]) -> dict[str, Any]:
    group = manifest.group or _text(row, manifest.column("group"))
    kept = ("pair_id", "prompt_id", "chosen_id", "rejected_id", "chosen", "rejected")
    own = {"item_id": row_id, "benchmark": manifest.benchmark or manifest.name, "group": group}
    return own | {name: pair[name] for name in kept}


def _media_names(manifest: Manifest, row: Mapping[str, Any], kind: str) -> list[str]:
    several = row.get(manifest.column(f"{kind}s"))
    if several is None:
        column = manifest.column(kind)
        if kind in manifest.columns and column not in row:  # else a misspelt column would lose every picture silently
            raise _RowError("missing value", f"column {column!r} is not in the row")
        one = row.get(column)
        several = [] if one is None else [one]
    if not isinstance(several, list) or not all(isinstance(name, str) for name in several):
        raise _RowError(f"{kind} paths are not text", repr(several)[:80])
    return several


def _text(row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        raise _RowError("missing value", f"column {column!r}: {value!r}"[:120])
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise _RowError("not UTF-8", f"column {column!r}") from None
    return value
