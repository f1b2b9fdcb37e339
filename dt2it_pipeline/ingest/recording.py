"""Items into rows of our tables, some at a time: what one process does with a piece of a source.

What belongs here: what follows from an item alone. What does not: which rows came before (sources.py), reading.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa

from dt2it_pipeline.errors import RowError
from dt2it_pipeline.ingest.clean import language_of
from dt2it_pipeline.ingest.manifest import Manifest
from dt2it_pipeline.ingest.rows import Conversation, ImagePair, Item, Quarantined, SourceError, require_unicode
from dt2it_pipeline.media.bulk_import import Imported, MediaImporter
from dt2it_pipeline.media.errors import MediaError, VideoDecoderError
from dt2it_pipeline.media.markers import user_marker_kinds, with_media_first, without_markers
from dt2it_pipeline.reformulate.phrasings import load_phrasings
from dt2it_pipeline.reformulate.t2i import verdict_pair
from dt2it_pipeline.storage import content_ids, records, schemas

STAGE = "ingest"
TABLES = {
    "prompts": "prompts",
    "preferences": "pairs",
    "truth": "pairs",
    "t2i": "t2i_preferences",
    "benchmark": "benchmark_items",
    "t2i_benchmark": "benchmark_items",
}


@dataclass(frozen=True)
class Recorded:
    """What some items gave, in their order.

    Attributes:
        items: how many there were.
        images: media that they name.
        made: their rows, of the table of the source's kind.
        prompts: the prompt of each of these rows; None where the source's kind has no prompts beside them.
        places: which items these rows are of, counted from 0.
        made_from: id of the source's row of each.
        aside: rows of `quarantine`, of the other items.
        own_ids: the ids that rows of the source have of their own.
    """

    items: int
    images: int
    made: pa.Table
    prompts: pa.Table | None
    places: Sequence[int]
    made_from: Sequence[str]
    aside: pa.Table
    own_ids: Sequence[str] = ()


def recorded(
    manifest: Manifest, items: Sequence[Item], importer: MediaImporter, own_ids: Sequence[str] = ()
) -> Recorded:
    """Import the media of items and make their rows.

    Raises:
        SourceError: there are video files, and OpenCV is not installed.
    """
    shown = [one for item in items if not isinstance(item, Quarantined) for one in item.media]
    media = iter(importer.rows(shown))
    made: list[dict[str, Any]] = []
    prompts: list[dict[str, Any]] = []
    places: list[int] = []
    aside: list[dict[str, Any]] = []
    for place, item in enumerate(items):
        found = item
        if not isinstance(item, Quarantined):
            one = _row(manifest, item, list(islice(media, len(item.media))))
            if not isinstance(one, Quarantined):
                made.append(one[0])
                places.append(place)
                if one[1] is not None:
                    prompts.append(one[1])
                continue
            found = one
        assert isinstance(found, Quarantined)
        aside.append(quarantine_row(manifest, found))
    return Recorded(
        len(items),
        len(shown),
        schemas.table(made, TABLES[manifest.kind]),
        schemas.table(prompts, "prompts") if manifest.kind not in ("prompts", "t2i") else None,
        places,
        [items[place].row_id for place in places],
        schemas.table(aside, "quarantine"),
        own_ids,
    )


def own_ids(manifest: Manifest, row_id: str, where: str) -> Iterable[str]:
    """The id that a row has of its own, if its outcome is to be found by it."""
    return (row_id,) if manifest.kind in ("preferences", "t2i") and row_id != where else ()


def quarantine_row(manifest: Manifest, item: Quarantined, pair_id: str | None = None) -> dict[str, Any]:
    """The row of `quarantine` of something that is no record; `pair_id` of the pair that it repeats, if it does."""
    return records.quarantine_row(item.row_id, STAGE, item.reason, item.detail, manifest.name, pair_id)


def _row(
    manifest: Manifest, item: Conversation | ImagePair, media: Sequence[Imported]
) -> tuple[dict[str, Any], dict[str, Any] | None] | Quarantined:
    """The record of an item and its prompt, or why there is none."""
    try:
        fault = next((one for one in media if isinstance(one, Exception)), None)
        if fault is not None:
            raise fault
        return _record(manifest, item, [one for one in media if isinstance(one, dict)])
    except VideoDecoderError as error:
        raise SourceError(f"source {manifest.name!r}: {error}") from error
    except (MediaError, RowError) as error:
        return Quarantined(item.row_id, error.reason, error.detail)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        return Quarantined(item.row_id, "row cannot be read", f"{type(error).__name__}: {error}")


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
