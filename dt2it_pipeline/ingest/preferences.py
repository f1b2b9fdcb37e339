"""Preference pairs from a file of any known form, as a DataFrame, without a manifest and without a home.

Media are not opened: `images` and `videos` hold what the rows name. `sources` is what brings data into the pipeline.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ValidationError

from dt2it_pipeline.config.base import fault_message
from dt2it_pipeline.errors import RowError
from dt2it_pipeline.ingest.adapters import ADAPTERS, auto
from dt2it_pipeline.ingest.manifest import Manifest, ManifestError
from dt2it_pipeline.ingest.reading import read_named
from dt2it_pipeline.ingest.rows import Conversation, Item, Quarantined, Row, SourceError, require_unicode
from dt2it_pipeline.storage import content_ids, records, schemas

FORMS = """Forms of a row that are understood by looking at its columns:
  chosen, rejected                     texts, messages or conversations; also chosen_response and rejected_response,
                                       winner and loser, conversations and rejected_conversations, and the like
  messages, rejected_response          a conversation with its answer, and another last answer (or rejected_messages)
  response_a, response_b, winner       two answers of equal standing (Output1 and Output2, ...) and a verdict column
  response_a, response_b, score_a,     the same with a score each and no verdict: the higher one is better
  score_b
  responses, ratings                   a list of answers with ratings, ranks, or objects that hold them
The prompt stands under question, prompt, query, instruction, messages, conversations or turns, or at the beginning of
both conversations."""
_LOOK = 20  # rows that decide which adapter reads the file


def read_preferences(
    path: str | Path, columns: Mapping[str, str] | None = None, verdict: Mapping[str, str] | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    r"""Read preference pairs from a file, folder or archive, by looking at its columns.

    Forms are those of TRL, ms-swift, LLaMA-Factory, OpenRLHF, Argilla, rated lists and this project's exports; see the
    page on preference formats. Published data sets that have an adapter of their own are recognised, too.

    Examples:
        >>> import json, pathlib, tempfile
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "pairs.jsonl"
        >>> row = {"prompt": "Sky?", "answer_a": "Green.", "answer_b": "Blue."}
        >>> _ = file.write_text("\n".join(json.dumps(row | {"winner": winner}) for winner in ("B", "tie")))
        >>> pairs, quarantine = read_preferences(file)
        >>> pairs[["chosen", "rejected"]].to_dict("records"), quarantine["reason"].tolist()
        ([{'chosen': 'Blue.', 'rejected': 'Green.'}], ['tie'])

    Args:
        path: .jsonl, .json, .csv, .tsv or .parquet (each also .gz or .zst), a folder of such files, a .zip or .tar.
        columns: our field -> the file's column, where looking does not find it: question, conversation, chosen,
            rejected, first, second, verdict, answers, ranks, order, ratings, images, system, strength, tie and more.
        verdict: value of the verdict column -> `first`, `second` or `tie`, where the value does not show it.

    Returns:
        Two tables.

        Pairs, one row each: row_id (the row's own id, else its place), prompt_id (the file's own, else a hash of system
        prompt, turns and what the media are; equal for pairs of one prompt), system, turns (list of {role, text}, empty
        where the row has no prompt), images and videos (lists of paths or bytes), chosen, rejected, strength, list_id
        (the file's own, else row_id of a list of answers), chosen_rank and rejected_rank (places in that list, 1 is
        best), chosen_model, rejected_model; what is not known is null.

        Quarantine, one row for everything that gave no pair: the columns of the table `quarantine`.

    Raises:
        SourceError: there is no such file, it is damaged, no row has a form that is known, or a verdict is not
            understood in any of them.
        ManifestError: `columns` or `verdict` name something that is unknown.
    """
    path = Path(path)
    manifest = _manifest(path, columns or {}, verdict or {})
    pairs: list[dict[str, Any]] = []
    aside: list[dict[str, Any]] = []
    known: dict[str, tuple[str, Any]] = {}  # a row's place, which is its id here -> its own id, the file's prompt_id

    def rows() -> Iterator[Row]:
        for read in read_named(manifest, path):
            if isinstance(read, Quarantined):
                aside.append(_aside(read, read.row_id, path.name))
                continue
            known[read.where] = read.row_id, read.values.get("prompt_id")
            yield dataclasses.replace(read, row_id=read.where)

    unreadable: Quarantined | None = None
    for item in _items(manifest, rows()):
        row_id, own = known.get(item.row_id, (item.row_id, None))
        if isinstance(item, Conversation):
            try:
                pairs.append(_pair(item, row_id, own))
                continue
            except RowError as error:
                item = Quarantined(item.row_id, error.reason, error.detail)
        if isinstance(item, Quarantined):
            unreadable = unreadable or (item if item.missing_column else None)
            aside.append(_aside(item, row_id, path.name))
    if not pairs and unreadable is not None:
        forms = f"\n{FORMS}" if unreadable.reason == "missing column" else ""
        raise SourceError(f"{path}: no row holds a pair that can be read; {unreadable.detail}{forms}")
    if not pairs and not aside:
        raise SourceError(f"{path} holds no rows")
    return pd.DataFrame(pairs, columns=list(_COLUMNS)), schemas.table(aside, "quarantine").to_pandas()


_COLUMNS = (
    "row_id", "prompt_id", "system", "turns", "images", "videos", "chosen", "rejected", "strength", "list_id",
    "chosen_rank", "rejected_rank", "chosen_model", "rejected_model",
)  # fmt: skip


def _manifest(path: Path, columns: Mapping[str, str], verdict: Mapping[str, str]) -> Manifest:
    try:
        return Manifest.model_validate(
            {
                "name": re.sub(r"[^a-zA-Z0-9_.-]", "_", path.name) or "preferences",
                "kind": "preferences",
                "path": str(path.absolute()),
                "licence": "-",
                "columns": dict(columns),
                "verdict": dict(verdict),
            }
        )
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, f['loc'])) or 'columns'}: {fault_message(f)}" for f in error.errors())
        raise ManifestError("; ".join(faults)) from None


def _items(manifest: Manifest, rows: Iterator[Row]) -> Iterator[Item]:
    """Items of the first adapter that can read some of the first rows: by columns, else by published schema."""
    ahead = list(itertools.islice(rows, _LOOK))
    if not manifest.columns and all(map(_unknown, auto.read(ahead, promptless=True))):
        for name, adapter in ADAPTERS.items():
            if "preferences" in adapter.kinds and name != "auto" and any(map(_usable, adapter.items(ahead))):
                yield from adapter.items(itertools.chain(ahead, rows))
                return
    yield from auto.read(itertools.chain(ahead, rows), promptless=True)


def _unknown(item: Item) -> bool:
    """Whether a row's form is not known; one that is known and has a fault is no row of another schema."""
    return isinstance(item, Quarantined) and item.missing_column


def _usable(item: Item) -> bool:
    return isinstance(item, Conversation) and item.chosen is not None


def _pair(item: Conversation, row_id: str, own: Any) -> dict[str, Any]:
    """A row of the table. Raises RowError where its sides are one text, or a text is no valid Unicode."""
    chosen, rejected = item.chosen or "", item.rejected or ""
    if chosen.split() == rejected.split():
        raise RowError("identical sides", chosen[:80])
    for text in (chosen, rejected, *item.models, str(own)):
        require_unicode(text or "", "a text")
    media = {kind: [medium.value for medium in item.media if medium.kind == kind] for kind in ("image", "video")}
    place = item.place_in_list()
    return {
        "row_id": row_id,
        "prompt_id": str(own) if own == own and own not in (None, "") else _prompt_id(item),
        "system": item.system,
        "turns": [dict(turn) for turn in item.turns],
        "images": media["image"],
        "videos": media["video"],
        "chosen": chosen,
        "rejected": rejected,
        "strength": item.strength,
        "list_id": row_id if place["list_id"] == item.row_id else place["list_id"],
        "chosen_rank": place["chosen_rank"],
        "rejected_rank": place["rejected_rank"],
        "chosen_model": item.models[0],
        "rejected_model": item.models[1],
    }


def _prompt_id(item: Conversation) -> str:
    if not item.turns and not item.media:  # no key of a prompt: every pair counts as one of its own
        return content_ids.content_hash("pair", *sorted((item.chosen or "", item.rejected or "")))
    keys = [hashlib.sha256(m.value).hexdigest() if isinstance(m.value, bytes) else m.value for m in item.media]
    return content_ids.prompt_id(item.system, [dict(turn) for turn in item.turns], keys)


def _aside(item: Quarantined, row_id: str, source: str) -> dict[str, Any]:
    return records.quarantine_row(row_id, "read_preferences", item.reason, item.detail, source)
