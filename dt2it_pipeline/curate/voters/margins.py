"""Scores joined to pairs by content id: the margin r(chosen) - r(rejected) of every pair, per voter.

What belongs here: the join and the reasons why a pair has no margin. What does not: what a margin leads to
(published_algorithm.py).
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa

from dt2it_pipeline.curate.id_index import IdIndex, Ids, chunks, present, repeats
from dt2it_pipeline.errors import UserError

MISSING = "score missing"
NOT_FINITE = "score not finite"
_REMEMBERED = 32  # batches of ids whose positions are kept


class CurationError(UserError, ValueError):
    """A curation table is malformed: a missing column, an id that is null or repeated, or contradicting scores."""

    help_page: ClassVar[str] = "troubleshooting#curation-tables"


class HasColumns(Protocol):
    """A table, or what stands for one."""

    @property
    def columns(self) -> pd.Index:
        """The names of its columns."""


@dataclass(frozen=True)
class Margins:
    """Margins of n pairs under V voters.

    Attributes:
        voters: the V voter names, sorted.
        margins: float64 [n, V], r(chosen) - r(rejected); NaN where a side has no usable score.
        mean: float64 [n], the average over all V voters; NaN unless every voter scored both sides.
        reason: object [n], why a pair has no mean ("score missing" or "score not finite"), or None.
        detail: object [n], for these pairs which voters lack which side, or None.
    """

    voters: tuple[str, ...]
    margins: np.ndarray
    mean: np.ndarray
    reason: np.ndarray
    detail: np.ndarray

    @property
    def scored(self) -> np.ndarray:
        """Bool [n]: every voter has a finite score for both sides."""
        return np.isfinite(self.mean)

    def rows(self, start: int, stop: int) -> Margins:
        """The margins of the pairs from `start` up to `stop`."""
        return self.where(slice(start, stop))

    def where(self, part: slice | np.ndarray) -> Margins:
        """The margins of the pairs in a slice, or marked in a bool array [n]."""
        return Margins(self.voters, self.margins[part], self.mean[part], self.reason[part], self.detail[part])


def check_columns(frame: HasColumns, columns: Sequence[str], name: str) -> None:
    """Raise CurationError when `frame` lacks one of `columns`."""
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise CurationError(f"{name}: missing columns {missing}; it has {list(frame.columns)}")


def check_pairs(pairs: pd.DataFrame, name: str = "pairs") -> None:
    """Raise CurationError when a pairs frame lacks its id columns, or a pair id is null or occurs twice."""
    check_columns(pairs, ("pair_id", "chosen_id", "rejected_id"), name)
    refuse_unusable_ids(pairs["pair_id"], name)


def refuse_unusable_ids(pair_ids: pd.Series, name: str) -> None:
    """Raise CurationError when a pair id is null or occurs twice."""
    if pair_ids.isna().any():
        raise CurationError(f"{name}: {int(pair_ids.isna().sum())} rows have no pair_id")
    repeated = repeats(pair_ids)
    if repeated.any():
        examples = pair_ids[repeated].unique()[:5].tolist()
        raise CurationError(
            f"{name}: {int(repeated.sum())} rows repeat a pair_id, for example {examples}; drop duplicates at ingestion"
        )


def voter_margins(pairs: pd.DataFrame, scores: pd.DataFrame) -> Margins:
    """Margins of every pair under every voter that occurs in `scores`.

    A pair is scored only when *every* voter has a finite score for both of its sides. A mean over fewer voters would
    be compared with means over all of them, and which pairs are "most negative" would depend on who failed where.

    Args:
        pairs: pair_id, chosen_id, rejected_id.
        scores: response_id, voter, score. A row that repeats another to the letter counts once.

    Raises:
        CurationError: columns are missing, ids are null or repeated, or one voter gives one response two scores.
    """
    check_pairs(pairs)
    check_columns(scores, ("response_id", "voter", "score"), "scores")
    sides = SideScores(pairs["chosen_id"], pairs["rejected_id"])
    sides.add(scores)
    return sides.margins()


class SideScores:
    """Scores of both sides of n pairs, gathered from frames of scores, which may come in parts.

    Memory is 9 bytes for every response and voter, and 8 for every response whose place is remembered; ids
    are not kept.
    """

    def __init__(self, chosen: Ids, rejected: Ids) -> None:
        ids = pa.chunked_array([*chunks(chosen), *chunks(rejected)], pa.string())
        self._index = IdIndex(ids)
        count = len(ids) // 2
        codes = np.where(present(ids), self._index.codes, len(self._index))
        self._chosen, self._rejected = codes[:count], codes[count:]
        self._scores: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._found: dict[bytes, np.ndarray] = {}

    def swapped(self, where: np.ndarray) -> SideScores:
        """The same pairs without scores; those marked in `where` (bool [n]) have changed sides."""
        other = copy.copy(self)
        other._chosen = np.where(where, self._rejected, self._chosen)
        other._rejected = np.where(where, self._chosen, self._rejected)
        other._scores = {}
        return other

    def add(self, scores: pd.DataFrame) -> None:
        """Take in rows of response_id, voter, score; responses of no pair are not looked at.

        Raises:
            CurationError: ids are null, or one voter gives one response two scores.
        """
        for column in ("response_id", "voter"):
            if scores[column].isna().any():
                raise CurationError(f"scores: {int(scores[column].isna().sum())} rows have no {column}")
        positions = self._positions(scores["response_id"])
        values = scores["score"].to_numpy(dtype=np.float64, na_value=np.nan)
        known = positions >= 0
        codes, voters = pd.factorize(scores["voter"])
        for code, voter in enumerate(voters):
            rows = np.flatnonzero((codes == code) & known if len(voters) > 1 else known)
            # One place more than there are responses: a null id looks there, and it stays empty.
            size = len(self._index) + 1
            held, seen = self._scores.setdefault(str(voter), (np.full(size, np.nan), np.zeros(size, dtype=bool)))
            self._take(scores, str(voter), rows, positions[rows], values[rows], held, seen)

    def _positions(self, ids: pd.Series) -> np.ndarray:
        """Positions of ids in the index. Voters mostly score the same responses in the same order: once is enough."""
        digest = hashlib.sha256()
        for chunk in chunks(ids):
            _, offsets, text = chunk.buffers()
            ends = np.frombuffer(offsets, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
            digest.update(ends - ends[0])
            digest.update(memoryview(text or b"")[ends[0] : ends[-1]])
        key = digest.digest()
        if key not in self._found:
            if len(self._found) == _REMEMBERED:
                self._found.pop(next(iter(self._found)))
            self._found[key] = self._index.positions(ids)
        return self._found[key]

    def _take(
        self,
        scores: pd.DataFrame,
        voter: str,
        rows: np.ndarray,
        places: np.ndarray,
        values: np.ndarray,
        held: np.ndarray,
        seen: np.ndarray,
    ) -> None:
        new = ~seen[places]
        held[places[new]] = values[new]
        seen[places] = True
        stored = held[places]
        conflict = (stored != values) & ~(np.isnan(stored) & np.isnan(values))
        if conflict.any():
            response = scores["response_id"].iloc[rows[int(np.flatnonzero(conflict)[0])]]
            raise CurationError(
                f"scores: voter {voter!r} gives response {response!r} two different scores "
                f"({int(conflict.sum())} such rows)"
            )

    def each_margin(self) -> tuple[tuple[str, ...], np.ndarray]:
        """The voters, sorted, and float64 [n, V], r(chosen) - r(rejected); NaN where a side has no usable score."""
        voters = tuple(sorted(self._scores))
        margins = np.empty((len(self._chosen), len(voters)))
        for column, voter in enumerate(voters):
            scores = _finite(self._scores[voter][0])
            margins[:, column] = scores[self._chosen] - scores[self._rejected]
        return voters, margins

    def margins(self) -> Margins:
        """Margins of the pairs, in their order."""
        voters, margins = self.each_margin()
        finite = {voter: _finite(self._scores[voter][0]) for voter in voters}
        mean = margins.mean(axis=1) if voters else np.full(len(margins), np.nan)
        rows = np.flatnonzero(~np.isfinite(mean))
        sides = tuple(
            (
                np.stack([self._scores[voter][1][codes[rows]] for voter in voters], axis=1),
                np.stack([finite[voter][codes[rows]] for voter in voters], axis=1),
            )
            for codes in (self._chosen, self._rejected)
            if voters
        )
        return Margins(voters, margins, mean, *_why_unscored(len(mean), rows, sides, voters))


def name_causes(unscored: pd.DataFrame, faults: Mapping[str, str]) -> pd.DataFrame:
    """Pairs without a score, with the reason why a response has none where scoring knows it.

    Args:
        unscored: pairs with `reason` and `detail`.
        faults: response id -> reason why it was not scored, such as `longer than max_length`.

    Returns:
        The same rows; the reason of one whose response is among the faults is `not scored: <reason of the response>`.
    """
    sides = [unscored[column].map(dict(faults)) for column in ("chosen_id", "rejected_id")]
    cause = sides[0].where(sides[0].notna(), sides[1])
    known = (unscored["reason"] == MISSING) & cause.notna()
    return unscored.assign(reason=unscored["reason"].mask(known, "not scored: " + cause.astype("str")))


def _finite(scores: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(scores), scores, np.nan)


def _why_unscored(
    count: int, rows: np.ndarray, sides: tuple[tuple[np.ndarray, np.ndarray], ...], voters: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Reason and detail of the pairs `rows`, without a mean; a missing score is named before one that is not finite.

    `sides` holds for chosen and for rejected: bool [rows, V], whether there is a score, and float64 [rows, V], it.
    """
    reason = np.full(count, None, dtype=object)
    detail = np.full(count, None, dtype=object)
    if not len(rows):
        return reason, detail
    if not voters:
        reason[rows], detail[rows] = MISSING, "no voter scored anything"
        return reason, detail
    any_missing = np.zeros(len(rows), dtype=bool)
    text = np.full(len(rows), "", dtype=object)
    for side, (seen, value) in zip(("chosen", "rejected"), sides, strict=True):
        any_missing |= ~seen.all(axis=1)
        for column, voter in enumerate(voters):
            absent = ~seen[:, column]
            text[absent] = text[absent] + f"; {voter}: {side} missing"
            broken = seen[:, column] & np.isnan(value[:, column])
            text[broken] = text[broken] + f"; {voter}: {side} not finite"
    reason[rows] = np.where(any_missing, MISSING, NOT_FINITE)
    detail[rows] = pd.Series(text, dtype="str").str.removeprefix("; ").to_numpy(dtype=object)
    return reason, detail
