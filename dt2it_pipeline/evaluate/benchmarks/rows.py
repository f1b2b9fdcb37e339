"""Published rows of a benchmark as prompts and pairs that a reward model can score.

A row that cannot be used (a missing image, text that is no valid Unicode) keeps its place, and its pair is unscored,
which counts as wrong. A row that lacks a column ends the reading: such rows are not those of the benchmark.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from dt2it_pipeline.evaluate.benchmarks.spec import BenchmarkError, Entry
from dt2it_pipeline.ingest.rows import RowError, medium, require_unicode
from dt2it_pipeline.media.errors import MediaError
from dt2it_pipeline.media.markers import marker_kinds, without_markers
from dt2it_pipeline.media.store import store_image, store_video
from dt2it_pipeline.storage import content_ids, records, schemas
from dt2it_pipeline.storage.atomic import read_parquet

_STAGE = "benchmark"


@dataclass(frozen=True)
class BenchmarkRows:
    """Rows that can be scored: prompts, responses, and per row the ids of both sides (None where it cannot be used)."""

    prompts: pa.Table
    responses: pa.Table
    quarantine: pa.Table
    chosen: list[str | None]
    rejected: list[str | None]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON (a list), JSON Lines or Parquet file. Raises BenchmarkError naming the file and the line."""
    try:
        if path.suffix == ".parquet":
            return list(read_parquet(path).to_pylist())
        text = path.read_text(encoding="utf-8-sig")
        rows = json.loads(text) if path.suffix == ".json" else _lines(text, path)
    except BenchmarkError:
        raise
    except (OSError, ValueError, OverflowError, RecursionError, pa.ArrowException) as error:
        raise BenchmarkError(f"cannot read benchmark rows {path}: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise BenchmarkError(f"{path}: expected a list of objects, one per pair")
    return rows


def load_rows(entry: Entry, rows: Sequence[Mapping[str, Any]], media_root: Path, store: Path) -> BenchmarkRows:
    """Import the media of published rows into a media store, and make prompts and responses.

    Args:
        entry: names the columns.
        rows: the published rows.
        media_root: folder that no media path may leave.
        store: media store; paths of the prompts are relative to it.

    Raises:
        BenchmarkError: a row lacks its question or a side; the message names the row and the columns.
        VideoDecoderError: there are video files, and OpenCV is not installed.
    """
    prompts: dict[str, dict[str, Any]] = {}
    responses: dict[str, dict[str, Any]] = {}
    aside = []
    sides: list[tuple[str | None, str | None]] = []
    for place, row in enumerate(rows):
        fields = entry.read(row)
        question = _text(entry, fields, "question", place)
        pair = _sides(entry, fields, place)
        try:
            for field, text in (("question", question), ("chosen", pair[0]), ("rejected", pair[1])):
                require_unicode(text, field)
            media = _media(fields, media_root, store)
            if not media and not entry.text_rows and (columns := _media_columns(entry)):
                raise RowError("no image", f"row {place} has none in {columns}")
        except (MediaError, RowError) as error:
            name = str(fields.get("id") or f"row {place}")
            aside.append(records.quarantine_row(name, _STAGE, error.reason, error.detail, entry.name))
            sides.append((None, None))
            continue
        prompt = _prompt(entry, question, media)
        prompts[prompt["prompt_id"]] = prompt
        ids = [content_ids.response_id(prompt["prompt_id"], text) for text in pair]
        for name, text in zip(ids, pair, strict=True):
            responses[name] = {"response_id": name, "prompt_id": prompt["prompt_id"], "text": text, "generator": ""}
        sides.append((ids[0], ids[1]))
    return BenchmarkRows(
        schemas.table(prompts.values(), "prompts"),
        schemas.table([responses[name] for name in sorted(responses)], "responses"),
        schemas.table(aside, "quarantine"),
        [chosen for chosen, _ in sides],
        [rejected for _, rejected in sides],
    )


def _sides(entry: Entry, fields: Mapping[str, Any], place: int) -> tuple[str, str]:
    """Chosen and rejected text of one row."""
    if "chosen" in entry.fields:
        return _text(entry, fields, "chosen", place), _text(entry, fields, "rejected", place)
    if "better" in entry.fields:
        first, second = _text(entry, fields, "first", place), _text(entry, fields, "second", place)
        better = str(fields["better"]).strip().casefold()
        names = [[column.casefold() for column in entry.fields[side]] for side in ("first", "second")]
        if better in names[0] or better in names[1]:
            return (first, second) if better in names[0] else (second, first)
        raise _fault(entry, place, "better", fields["better"])
    texts, ranks = fields.get("responses"), fields.get("ranks")
    if not isinstance(texts, list | tuple) or len(texts) != 2 or not all(isinstance(text, str) for text in texts):
        raise _fault(entry, place, "responses", texts)
    if not isinstance(ranks, Sequence) or list(ranks) not in ([0, 1], [1, 0]):
        raise _fault(entry, place, "ranks", ranks)
    best = list(ranks).index(0)
    return texts[best], texts[1 - best]


def _media(fields: Mapping[str, Any], root: Path, store: Path) -> list[dict[str, str]]:
    image, video = (None if _is_null(fields.get(name)) else fields[name] for name in ("image", "video"))
    if image is not None:
        return [store_image(medium(image, "image", "image").value, root, store).row]
    return [] if video is None else [store_video(medium(video, "video", "video").value, root, store).row]


def _media_columns(entry: Entry) -> str:
    return ", ".join(name for field in ("image", "video") for name in entry.fields.get(field, ()))


def _is_null(value: Any) -> bool:
    """Whether there is no medium; one that is not there may be a struct of nulls in Parquet."""
    if isinstance(value, Mapping) and set(value) <= {"bytes", "path"}:
        return all(part is None for part in value.values())
    return value is None


def _prompt(entry: Entry, question: str, media: Sequence[dict[str, str]]) -> dict[str, Any]:
    kinds = [medium["kind"] for medium in media]
    if marker_kinds(question) != kinds:
        question = "".join(f"<{kind}>\n" for kind in kinds) + without_markers(question).strip()
    turns = [{"role": "user", "text": question}]
    return {
        "prompt_id": content_ids.prompt_id("", turns, [medium["sha256"] for medium in media]),
        "source": entry.name,
        "system": "",
        "turns": turns,
        "media": list(media),
        "reference": None,
        "language": "",
        "meta": "{}",
    }


def _text(entry: Entry, fields: Mapping[str, Any], field: str, place: int) -> str:
    value = fields.get(field)
    if not isinstance(value, str) or not value.strip():
        raise _fault(entry, place, field, value)
    return value


def _fault(entry: Entry, place: int, field: str, found: Any) -> BenchmarkError:
    columns = "/".join(entry.fields.get(field, [field]))
    return BenchmarkError(f"{entry.name}, row {place}: column {columns} holds {str(found)[:120]!r}")


def _lines(text: str, path: Path) -> list[Any]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise BenchmarkError(f"{path}, line {number}: {error}") from error
    return rows
