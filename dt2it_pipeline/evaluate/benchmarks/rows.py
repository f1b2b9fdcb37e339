"""Published rows of a benchmark as prompts and pairs that a reward model can score.

A row that cannot be used (a missing image, text that is no valid Unicode) keeps its place, and its pair is unscored,
which counts as wrong. A row that lacks a column ends the reading: such rows are not those of the benchmark.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from dt2it_pipeline.evaluate.benchmarks.spec import BenchmarkError, Entry
from dt2it_pipeline.ingest import reading as sources
from dt2it_pipeline.ingest.forms.verdicts import FIRST, SECOND, word_meaning
from dt2it_pipeline.ingest.manifest import Manifest
from dt2it_pipeline.ingest.rows import Quarantined, RowError, SourceError, medium, require_unicode
from dt2it_pipeline.media.errors import MediaError
from dt2it_pipeline.media.markers import marker_kinds, without_markers
from dt2it_pipeline.media.store import store_image, store_video
from dt2it_pipeline.storage import content_ids, records, schemas

_STAGE = "benchmark"
_OUTPUTS = {FIRST: ("Output1",), SECOND: ("Output2",)}  # also where a file calls the columns otherwise


@dataclass(frozen=True)
class BenchmarkRows:
    """Rows that can be scored: prompts, responses, and per row the ids of both sides (None where it cannot be used)."""

    prompts: pa.Table
    responses: pa.Table
    quarantine: pa.Table
    chosen: list[str | None]
    rejected: list[str | None]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a file in any format that sources may have, or of a folder of such files.

    Raises BenchmarkError naming the file, and the line that is malformed.
    """
    manifest = Manifest(
        name=re.sub(r"[^a-zA-Z0-9_.-]", "_", path.name) or _STAGE,
        kind="preferences",
        path=str(path.absolute()),
        licence="-",
    )
    rows: list[dict[str, Any]] = []
    try:
        for read in sources.read_rows(manifest, path.parent):
            if isinstance(read, Quarantined):
                raise BenchmarkError(f"{path}, {read.row_id}: {read.reason}: {read.detail}")
            rows.append(dict(read.values))
    except SourceError as error:
        raise BenchmarkError(f"cannot read benchmark rows {path}: {error}") from error
    return rows


def published_rows(
    entry: Entry, rows: Path, media_root: Path, store: Path
) -> tuple[list[dict[str, Any]], BenchmarkRows]:
    """The rows of a benchmark's file, and what of them can be judged; arguments are those of `load_rows`.

    Raises BenchmarkError where there is no row, a row fits no group, or none can be judged.
    """
    published = read_rows(rows)
    if not published:
        raise BenchmarkError(f"{rows} holds no row")
    for place, row in enumerate(published):
        entry.group_of(row, place)  # before anything is scored
    if not media_root.is_dir():
        raise BenchmarkError(f"there is no folder {media_root}, where the images of {entry.name} should lie")
    loaded = load_rows(entry, published, media_root, store)
    if not loaded.responses.num_rows:
        first = loaded.quarantine.to_pylist()[0]
        raise BenchmarkError(
            f"not one row of {rows.name} can be scored; the first: {first['row_id']}: {first['reason']} "
            f"({first['detail']}). Media paths count from {media_root}"
        )
    return published, loaded


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
    if not entry.text_rows and (
        names := [name for field in ("image", "video") for name in entry.fields.get(field, ())]
    ):
        there = {str(name) for row in rows for name in row}
        if rows and not there & {name.partition(".")[0] for name in names}:
            raise BenchmarkError(
                f"{entry.name}: no row has one of the columns {', '.join(names)}, which have the images; the columns "
                f"are {sorted(there)}. Name the one that is meant: --column image=COLUMN"
            )
    prompts: dict[str, dict[str, Any]] = {}
    responses: dict[str, dict[str, Any]] = {}
    aside = []
    sides: list[tuple[str | None, str | None]] = []
    for place, row in enumerate(rows):
        fields = entry.read(row)
        question = _text(entry, row, fields, "question", place)
        pair = _sides(entry, row, fields, place)
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


def _sides(entry: Entry, row: Mapping[str, Any], fields: Mapping[str, Any], place: int) -> tuple[str, str]:
    """Chosen and rejected text of one row, in whichever of the entry's forms the row has them."""
    if any(fields.get(name) is not None for name in ("chosen", "rejected")):
        return _text(entry, row, fields, "chosen", place), _text(entry, row, fields, "rejected", place)
    if any(fields.get(name) is not None for name in ("first", "second", "better")):
        first, second = (_text(entry, row, fields, name, place) for name in ("first", "second"))
        if fields.get("better") is None:
            raise _fault(entry, row, place, "better", None)
        better = str(fields["better"]).strip()
        names = {name.casefold(): side for side in (FIRST, SECOND) for name in (*entry.fields[side], *_OUTPUTS[side])}
        side = names.get(better.casefold()) or word_meaning(better)
        if side not in (FIRST, SECOND):
            raise _fault(entry, row, place, "better", fields["better"])
        return (first, second) if side == FIRST else (second, first)
    texts, ranks = fields.get("responses"), fields.get("ranks")
    known = [name for name in ("responses", "chosen", "first") if name in entry.fields]
    if not isinstance(texts, list | tuple) or len(texts) != 2 or not all(isinstance(text, str) for text in texts):
        raise _fault(entry, row, place, known[0], texts)
    if not isinstance(ranks, Sequence) or list(ranks) not in ([0, 1], [1, 0]):
        raise _fault(entry, row, place, "ranks", ranks)
    best = list(ranks).index(0)
    return texts[best], texts[1 - best]


def _media(fields: Mapping[str, Any], root: Path, store: Path) -> list[dict[str, str]]:
    """The images of a row, else its video."""
    if images := _several(fields.get("image")):
        return [store_image(medium(image, "image", "image").value, root, store).row for image in images]
    videos = _several(fields.get("video"))
    return [store_video(medium(video, "video", "video").value, root, store).row for video in videos]


def _several(value: Any) -> Sequence[Any]:
    if isinstance(value, list | tuple):
        return [one for one in value if not _is_null(one)]
    return () if _is_null(value) else (value,)


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


def _text(entry: Entry, row: Mapping[str, Any], fields: Mapping[str, Any], field: str, place: int) -> str:
    value = fields.get(field)
    if not isinstance(value, str) or not value.strip():
        raise _fault(entry, row, place, field, value)
    return value


def _fault(entry: Entry, row: Mapping[str, Any], place: int, field: str, found: Any) -> BenchmarkError:
    columns = "/".join(entry.fields.get(field, [field]))
    if found is None:
        return BenchmarkError(
            f"{entry.name}, row {place}: no column {columns}, which has the {field}; the row has the columns "
            f"{sorted(map(str, row))}. Name the one that is meant: --column {field}=COLUMN"
        )
    return BenchmarkError(f"{entry.name}, row {place}: column {columns} holds {str(found)[:120]!r}")
