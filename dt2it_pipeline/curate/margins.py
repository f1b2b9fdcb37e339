"""Scores joined to pairs by content id: the margin r(chosen) - r(rejected) of every pair, per voter.

What belongs here: the join and the reasons why a pair has no margin. What does not: what a margin leads to (steps.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

MISSING = "score missing"
NOT_FINITE = "score not finite"


class CurationError(ValueError):
    """A curation table is malformed: a missing column, an id that is null or repeated, or contradicting scores."""


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


def check_columns(frame: pd.DataFrame, columns: Sequence[str], name: str) -> None:
    """Raise CurationError when `frame` lacks one of `columns`."""
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise CurationError(f"{name}: missing columns {missing}; it has {list(frame.columns)}")


def check_pairs(pairs: pd.DataFrame, name: str = "pairs") -> None:
    """Raise CurationError when a pairs frame lacks its id columns, or a pair id is null or occurs twice."""
    check_columns(pairs, ("pair_id", "chosen_id", "rejected_id"), name)
    if pairs["pair_id"].isna().any():
        raise CurationError(f"{name}: {int(pairs['pair_id'].isna().sum())} rows have no pair_id")
    repeated = pairs["pair_id"].duplicated()
    if repeated.any():
        examples = pairs.loc[repeated, "pair_id"].unique()[:5].tolist()
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
    for column in ("response_id", "voter"):
        if scores[column].isna().any():
            raise CurationError(f"scores: {int(scores[column].isna().sum())} rows have no {column}")

    response_codes, responses = pd.factorize(scores["response_id"])
    voter_codes, voter_index = pd.factorize(scores["voter"], sort=True)
    voters = tuple(str(voter) for voter in voter_index)
    values = scores["score"].to_numpy(dtype=np.float64, na_value=np.nan)
    # One row more than there are responses: an id that was never scored looks up row -1, which stays empty.
    matrix = np.full((len(responses) + 1, len(voters)), np.nan)
    present = np.zeros(matrix.shape, dtype=bool)
    matrix[response_codes, voter_codes] = values
    present[response_codes, voter_codes] = True
    stored = matrix[response_codes, voter_codes]
    conflict = (stored != values) & ~(np.isnan(stored) & np.isnan(values))
    if conflict.any():
        row = int(np.flatnonzero(conflict)[0])
        raise CurationError(
            f"scores: voter {scores['voter'].iloc[row]!r} gives response {scores['response_id'].iloc[row]!r} "
            f"two different scores ({int(conflict.sum())} such rows)"
        )

    index = pd.Index(responses)
    chosen = index.get_indexer(pd.Index(pairs["chosen_id"]))
    rejected = index.get_indexer(pd.Index(pairs["rejected_id"]))
    matrix[~np.isfinite(matrix)] = np.nan
    margins = matrix[chosen] - matrix[rejected]
    mean = margins.mean(axis=1) if voters else np.full(len(pairs), np.nan)
    reason, detail = _why_unscored(
        mean, (present[chosen], present[rejected]), (matrix[chosen], matrix[rejected]), voters
    )
    return Margins(voters, margins, mean, reason, detail)


def _why_unscored(
    mean: np.ndarray,
    present: tuple[np.ndarray, np.ndarray],
    values: tuple[np.ndarray, np.ndarray],
    voters: tuple[str, ...],
) -> tuple[np.ndarray, np.ndarray]:
    """Reason and detail of the pairs without a mean; a missing score is named before one that is not finite."""
    reason = np.full(len(mean), None, dtype=object)
    detail = np.full(len(mean), None, dtype=object)
    rows = np.flatnonzero(~np.isfinite(mean))
    if not len(rows):
        return reason, detail
    if not voters:
        reason[rows], detail[rows] = MISSING, "no voter scored anything"
        return reason, detail
    any_missing = np.zeros(len(rows), dtype=bool)
    text = np.full(len(rows), "", dtype=object)
    for side, seen, value in zip(("chosen", "rejected"), present, values, strict=True):
        any_missing |= ~seen[rows].all(axis=1)
        for column, voter in enumerate(voters):
            absent = ~seen[rows, column]
            text[absent] = text[absent] + f"; {voter}: {side} missing"
            broken = seen[rows, column] & np.isnan(value[rows, column])
            text[broken] = text[broken] + f"; {voter}: {side} not finite"
    reason[rows] = np.where(any_missing, MISSING, NOT_FINITE)
    detail[rows] = pd.Series(text, dtype="str").str.removeprefix("; ").to_numpy(dtype=object)
    return reason, detail
