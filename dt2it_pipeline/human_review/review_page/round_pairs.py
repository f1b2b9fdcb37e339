"""The pairs of a round in an artifact home: as they were given, what every step made of them, and why.

A round that is not finished is shown as far as it has come: pairs that no step has decided yet are `undecided`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dt2it_pipeline.human_review.own_tables import sigmoid
from dt2it_pipeline.human_review.review_page.catalogue import (
    DROPPED,
    FLIPPED,
    KEPT,
    PROMPTS_SCHEMA,
    SIDES_SCHEMA,
    UNDECIDED,
    Catalogue,
    Columns,
    Margins,
    Medium,
    coded,
    lengths,
    verdict_shown,
)
from dt2it_pipeline.human_review.review_page.row_file import BATCH, ReviewError, RowFile
from dt2it_pipeline.human_review.review_page.scripts import script_codes
from dt2it_pipeline.media.images import ImageSource
from dt2it_pipeline.media.paths import confined
from dt2it_pipeline.media.video import first_frame
from dt2it_pipeline.storage.artifacts import Store
from dt2it_pipeline.storage.atomic import StoreError, iter_parquet, read_parquet

RAW = "raw_preferences"
STAGES = ("voted_pairs", "verified_pairs", "annotated_pairs")  # each with the pairs that it dropped
_SHOWN = ("voted_pairs", "contested_pairs", "verified_pairs", "annotated_pairs", "curated_pairs")
_CONTESTED = "contested"  # reason of verified_pairs for pairs that the next step decides
_STATED = "joint"  # the policy whose strength is a log-odds
_VOTES_SCHEMA = pa.schema([(name, pa.string()) for name in ("judge", "order", "verdict", "words", "fault")])


def round_version(store: Store, number: str) -> str:
    """Stands for what a round's tables hold: another one as soon as a step has run again. Raises StoreError."""
    keys = [store.current(RAW), *(store.current(name, number) for name in _SHOWN)]
    return "-".join("" if key is None else key[:8] for key in keys)


def read_round(store: Store, number: str) -> Catalogue:
    """The pairs of a round.

    Raises:
        StoreError: raw_preferences or voted_pairs of the round is not there, or a table is damaged.
        ReviewError: the texts do not fit into the temporary folder, or there is no pair.
    """
    try:
        return _read(store, number)
    except (OSError, pa.ArrowException) as error:
        raise StoreError(
            f"round {number} of {store.home} cannot be read: {error}; if it is being run, try again when that has ended"
        ) from error


def _read(store: Store, number: str) -> Catalogue:
    prompts, prompt_ids = _prompts(store)
    taken: dict[str, list[Any]] = {name: [] for name in ("pair_id", "chosen_id", "source", "prompt_id")}
    measured: list[tuple[np.ndarray, ...]] = []

    def given() -> Iterator[pa.RecordBatch]:
        for piece in iter_parquet(store.table_file(RAW, "pairs"), "pairs", BATCH):
            for name, parts in taken.items():
                parts.append(piece[name].combine_chunks())
            texts = [piece[name].combine_chunks() for name in ("chosen", "rejected")]
            measured.append((*lengths(*texts), script_codes(texts[0])))
            yield from piece.select(SIDES_SCHEMA.names).to_batches()

    sides = RowFile(SIDES_SCHEMA, given())
    if not len(sides):
        raise ReviewError(f"{RAW} in {store.home} has no pair")
    columns = {name: pa.concat_arrays(parts) for name, parts in taken.items()}
    ids, count = columns["pair_id"], len(sides)
    length, characters, script = (np.concatenate(parts) for parts in zip(*measured, strict=True))
    voted = _Part(store, "voted_pairs", number, ids, columns["chosen_id"])
    curated = _Part(store, "curated_pairs", number, ids, columns["chosen_id"])
    stated = _policy(store, number) == _STATED
    outcome = np.full(count, UNDECIDED, dtype=np.int8)
    outcome[curated.there] = np.where(curated.same[curated.there], KEPT, FLIPPED)
    dropped = _Dropped(store, number, ids)
    outcome[(dropped.row >= 0) & ~curated.there] = DROPPED
    by_vote = sigmoid(voted.signed_strength())
    right = np.where(curated.there, sigmoid(curated.signed_strength()), by_vote)
    source, sources = coded(columns["source"])
    verdicts = _Verdicts(store, number, ids)
    margins = Margins()
    made = Columns(
        ids=ids,
        outcome=outcome,
        contested=_index(ids, _ids_of(store, "contested_pairs", number)) >= 0,
        probability=(right if stated else np.full(count, np.nan)).astype(np.float32),
        spread_by=by_vote,
        drawable=voted.there,
        disagree=voted.spread(margins.add(voted.votes) if voted.votes is not None else None),
        length=length,
        characters=characters,
        script=script,
        source=source,
        sources=sources,
        prompt=_index(columns["prompt_id"], prompt_ids),
    )
    notes = [] if (outcome != UNDECIDED).all() else [_unfinished(outcome)]
    if not stated:
        notes.append("The policy of this round gives no probabilities.")
    explain = partial(_explained, _Sources(sides, voted, curated, dropped, verdicts))
    opened = partial(_opened, store)
    return Catalogue(made, sides, prompts, explain, opened, margins.scales(), f"Round {number}", notes)


def _unfinished(outcome: np.ndarray) -> str:
    return (
        f"{int((outcome == UNDECIDED).sum()):,} pairs have no outcome yet: the round is not finished, or it is being "
        "run again."
    )


def _prompts(store: Store) -> tuple[RowFile, pa.Array]:
    """The prompts, and their ids."""
    ids = []

    def rows() -> Iterator[pa.RecordBatch]:
        for piece in iter_parquet(store.table_file(RAW, "prompts"), "prompts", BATCH):
            table = piece.combine_chunks()
            ids.append(table["prompt_id"].combine_chunks())
            yield prompt_rows(table)

    made = RowFile(PROMPTS_SCHEMA, rows())
    return made, pa.concat_arrays(ids)


def prompt_rows(prompts: pa.Table) -> pa.RecordBatch:
    """Rows of a table of kind `prompts` as rows of PROMPTS_SCHEMA."""
    rows = []
    for row in prompts.select(["system", "turns", "media"]).to_pylist():
        turns = [{"role": "system", "text": row["system"]}] if row["system"] else []
        turns += row["turns"]
        media = [{"kind": medium["kind"], "name": medium["path"]} for medium in row["media"]]
        text = "\n".join(turn["text"] for turn in turns)
        rows.append({"text": text, "turns": turns, "media": media})
    return pa.RecordBatch.from_pylist(rows, schema=PROMPTS_SCHEMA)


class _Part:
    """Pairs of one step, in the rows of the given ones: whether they are there, their side, strength and votes."""

    def __init__(self, store: Store, name: str, number: str, ids: pa.Array, chosen: pa.Array) -> None:
        self._count, self.votes, self.row = len(ids), None, np.full(len(ids), -1)
        self.same, self.strength = np.ones(len(ids), dtype=bool), np.zeros(0)
        self.label: pa.Array | None = None
        if store.current(name, number) is not None:
            file = store.table_file(name, "pairs", number)
            names = ["pair_id", "chosen_id", "strength", "votes", "label"]
            table = pa.concat_tables(
                [piece.select(names) for piece in iter_parquet(file, "pairs", BATCH)]
            ).combine_chunks()
            self.row = _index(ids, table["pair_id"].combine_chunks())
            self.votes = table["votes"].combine_chunks()
            self.label = table["label"].combine_chunks()
            strength = table["strength"].to_numpy(zero_copy_only=False)
            self.strength = strength.astype(np.float64)
            where = np.flatnonzero(self.row >= 0)
            theirs = table["chosen_id"].combine_chunks().take(pa.array(self.row[where]))
            self.same[where] = pc.equal(chosen.take(pa.array(where)), theirs).to_numpy(zero_copy_only=False)
        elif name == "voted_pairs":
            store.table_file(name, "pairs", number)  # says what is missing
        self.there = self.row >= 0

    def signed_strength(self) -> np.ndarray:
        """Float64 [pairs]: the strength of the given label; NaN where the step has not the pair."""
        found = np.full(self._count, np.nan)
        found[self.there] = self.strength[self.row[self.there]]
        return np.where(self.same, found, -found)

    def spread(self, values: np.ndarray | None) -> np.ndarray:
        """Bool [pairs] of the step's own rows; False where it has not the pair."""
        found = np.zeros(self._count, dtype=bool)
        if values is not None:
            found[self.there] = values[self.row[self.there]]
        return found


class _Dropped:
    """Pairs that a step dropped: the row of each in a table of why."""

    def __init__(self, store: Store, number: str, ids: pa.Array) -> None:
        tables = []
        for name in STAGES:
            if store.current(name, number) is not None:
                table = read_parquet(store.table_file(name, "quarantine", number), "quarantine")
                tables.append(table.filter(pc.not_equal(table["reason"], _CONTESTED)))
        self.table = pa.concat_tables(tables).combine_chunks() if tables else None
        self.row = np.full(len(ids), -1)
        if self.table is not None and self.table.num_rows:
            named = pc.coalesce(self.table["pair_id"], self.table["row_id"]).combine_chunks()
            self.row = _index(ids, named)

    def why(self, place: int) -> dict[str, str]:
        """Stage, reason and detail of a dropped pair."""
        assert self.table is not None
        row = self.table.slice(int(self.row[place]), 1).to_pylist()[0]
        return {name: row[name] for name in ("stage", "reason", "detail")}


class _Verdicts:
    """Verdicts of judges and people, by pair; the judges' words lie in a file."""

    def __init__(self, store: Store, number: str, ids: pa.Array) -> None:
        taken: list[pa.Array] = []

        def given() -> Iterator[pa.RecordBatch]:
            if store.current("annotated_pairs", number) is None:
                return
            for piece in iter_parquet(store.table_file("annotated_pairs", "votes", number), "votes", BATCH):
                taken.append(piece["pair_id"].combine_chunks())
                yield from piece.select(_VOTES_SCHEMA.names).to_batches()

        self._table = RowFile(_VOTES_SCHEMA, given())
        rows = _index(pa.concat_arrays(taken), ids) if taken else np.zeros(0, dtype=np.int64)
        self._order = np.argsort(rows, kind="stable")
        self._rows = rows[self._order]

    def of(self, place: int) -> list[dict[str, Any]]:
        """The verdicts on a pair, on the sides that it had after the vote."""
        start, end = (int(np.searchsorted(self._rows, place, side=side)) for side in ("left", "right"))
        return [self._table[int(row)] for row in self._order[start:end]]


@dataclass(frozen=True)
class _Sources:
    """Where what is known of a pair comes from."""

    sides: RowFile
    voted: _Part
    curated: _Part
    dropped: _Dropped
    verdicts: _Verdicts


def _explained(known: _Sources, place: int) -> dict[str, Any]:
    """See `Catalogue.explain`."""
    voted, curated = known.voted, known.curated
    margins: list[dict[str, Any]] = []
    same = bool(voted.same[place])
    if voted.there[place] and voted.votes is not None:
        sign = 1.0 if same else -1.0  # a step that flips a pair turns its margins, too
        margins = [
            {"voter": vote["voter"], "margin": sign * vote["margin"]}
            for vote in voted.votes[int(voted.row[place])].as_py() or ()
        ]
    verdicts = [verdict_shown(row, known.sides[place], same) for row in known.verdicts.of(place)]
    now, why = None, {"stage": "", "reason": "no step has decided about it yet", "detail": ""}
    if curated.there[place]:
        row = known.sides[place]
        now = row["chosen_id"] if curated.same[place] else row["rejected_id"]
        assert curated.label is not None
        why = {"stage": "curated_pairs", "reason": curated.label[int(curated.row[place])].as_py(), "detail": ""}
    elif known.dropped.row[place] >= 0:
        why = known.dropped.why(place)
    return {"now": now, "why": why, "margins": margins, "verdicts": verdicts}


def _opened(store: Store, medium: Medium) -> ImageSource:
    kind, name = medium
    file = confined(name, store.media, kind)
    return file if kind == "image" else first_frame(file)


def _policy(store: Store, number: str) -> str:
    found = store.metadata("voted_pairs", number) or {}
    return str(found.get("policy", ""))


def _ids_of(store: Store, name: str, number: str) -> pa.Array:
    if store.current(name, number) is None:
        return pa.array([], pa.string())
    pieces = iter_parquet(store.table_file(name, "pairs", number), "pairs", BATCH)
    return pa.concat_arrays([piece["pair_id"].combine_chunks() for piece in pieces])


def _index(wanted: pa.Array, among: pa.Array) -> np.ndarray:
    """Int64: the place of each id among others; -1 where it is not there."""
    found = pc.fill_null(pc.index_in(wanted, value_set=among), -1)
    return np.asarray(found.to_numpy(zero_copy_only=False)).astype(np.int64)
