"""A user's tables of pairs, scores, verdicts and checked pairs, brought to the arrays that the joint model takes.

Two layouts are read. Long tables: pairs with ids of their responses, and beside them scores by response and verdicts by
pair. Wide tables: one row per pair, with the scores of both sides in columns of their own. What belongs here: ids,
columns and what cannot be used of them. What does not: what follows from a value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from dt2it_pipeline.curate.evidence_table import no_verdicts, verdict_rows
from dt2it_pipeline.curate.pair_frames import length_difference
from dt2it_pipeline.curate.voters.margins import CurationError, SideScores, check_columns, refuse_unusable_ids
from dt2it_pipeline.storage.table_files import as_keys

CHOSEN, REJECTED, TIE = "chosen", "rejected", "tie"
_SIDES = {CHOSEN: 1.0, REJECTED: -1.0, TIE: 0.0}


@dataclass(frozen=True)
class PairTable:
    """Pairs of a user's table.

    Attributes:
        ids: n pair ids, as given.
        keys: the same as text: tables from different files match by them.
        sides: n ids of the chosen and n of the rejected sides; `chosen` and `rejected` where the table has none.
        length: float64 [n], log length of chosen minus that of rejected; 0 without texts.
        sources: n names, "" where there are none.
    """

    ids: pd.Series
    keys: pd.Index
    sides: tuple[np.ndarray, np.ndarray]
    length: np.ndarray
    sources: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


@dataclass
class Unused:
    """Sentences about rows that could not be used, in the order in which they were found."""

    notes: list[str] = field(default_factory=list)

    def add(self, count: int, what: str, examples: Sequence[object] = ()) -> None:
        """Note that `count` rows were not used, if there are any."""
        if count:
            shown = f", for example {', '.join(map(repr, list(examples)[:3]))}" if len(examples) else ""
            self.notes.append(f"{count:,} {what}{shown}")


def read_pairs(pairs: pd.DataFrame, chosen: str | None, rejected: str | None, table: str = "pairs") -> PairTable:
    """The pairs of a table.

    Args:
        pairs: pair_id (the row's number where absent), chosen_id and rejected_id, texts, `source`; all may be absent.
        chosen: column with the texts of the chosen sides; `chosen` where None.
        rejected: column with the texts of the rejected sides; `rejected` where None.
        table: its name in errors.

    Raises:
        CurationError: a named column is missing, or a pair_id is null or occurs twice.
    """
    for name in (chosen, rejected):
        if name is not None:
            check_columns(pairs, (name,), table)
    texts = {side: column or side for side, column in ((CHOSEN, chosen), (REJECTED, rejected))}
    repeated = pairs.columns[pairs.columns.duplicated()]
    if len(repeated):
        raise CurationError(f"{table}: the column {str(repeated[0])!r} is there twice")
    ids = pairs["pair_id"].reset_index(drop=True) if "pair_id" in pairs else pd.Series(np.arange(len(pairs)))
    keys = as_keys(ids)
    refuse_unusable_ids(pd.Series(keys), table)
    if ("chosen_id" in pairs) != ("rejected_id" in pairs):
        raise CurationError(f"{table}: chosen_id and rejected_id go together; one of the two columns is missing")
    if "chosen_id" in pairs:
        sides = tuple(as_keys(pairs[name]) for name in ("chosen_id", "rejected_id"))
    else:
        sides = (np.full(len(pairs), CHOSEN, dtype=object), np.full(len(pairs), REJECTED, dtype=object))
    length = np.zeros(len(pairs))
    if all(name in pairs and pd.api.types.is_string_dtype(pairs[name]) for name in texts.values()):
        length = length_difference(pairs[list(texts.values())].set_axis([CHOSEN, REJECTED], axis=1))
    sources = pairs["source"].astype(object).fillna("").to_numpy() if "source" in pairs else np.full(len(pairs), "")
    return PairTable(ids, pd.Index(keys), (sides[0], sides[1]), length, sources)


def read_margins(
    table: PairTable,
    pairs: pd.DataFrame,
    scores: pd.DataFrame | None,
    chosen_scores: Sequence[str],
    rejected_scores: Sequence[str],
    name: str = "pairs",
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Margins of all voters, float64 [n, V] (not a number where there is no score), and their names.

    Args:
        table: of `read_pairs`.
        pairs: the table it was made of.
        scores: response_id, voter, score; `voter` may be absent where there is one.
        chosen_scores: columns of `pairs` with the scores of the chosen sides, one per voter.
        rejected_scores: the columns of the rejected sides, in the same order.
        name: of the table, in errors.

    Raises:
        CurationError: columns are missing or do not go together, ids are null, or a response has two scores.
    """
    found, names = [np.empty((len(table), 0))], list[str]()
    if scores is not None and len(scores):
        if "chosen_id" not in pairs:
            raise CurationError(f"{name}: chosen_id and rejected_id are missing, by which scores find their pairs")
        if "voter" not in scores:
            scores = scores.assign(voter="scores")
        check_columns(scores, ("response_id", "voter", "score"), "scores")
        sides = SideScores(*(pd.Series(side, dtype="str") for side in table.sides))
        numbers = _numbers(scores["score"], "scores")
        ids = scores["response_id"]
        if ids.dtype != "str":
            ids = pd.Series(as_keys(ids), scores.index, dtype="str")
        sides.add(scores.assign(response_id=ids, score=numbers))
        margins = sides.margins()
        if not np.isfinite(margins.margins).any():
            raise CurationError(
                f"scores: no pair of `{name}` has finite scores of both its sides; are these the scores of its "
                "responses?"
            )
        found.append(margins.margins)
        names += margins.voters
    if len(chosen_scores) != len(rejected_scores):
        raise CurationError(
            f"chosen_scores names {len(chosen_scores)} columns and rejected_scores {len(rejected_scores)}; "
            "each voter needs one of both"
        )
    check_columns(pairs, (*chosen_scores, *rejected_scores), name)
    for left, right in zip(chosen_scores, rejected_scores, strict=True):
        both = [_numbers(pairs[column], name) for column in (left, right)]
        with np.errstate(invalid="ignore"):
            found.append((both[0] - both[1])[:, None])
        names.append(left)
    return np.concatenate(found, axis=1), tuple(names)


def _numbers(values: pd.Series, table: str) -> np.ndarray:
    """A column of scores as float64; null stays null.

    Raises:
        CurationError: a value is no number.
    """
    if values.dtype.kind in "Mmc":
        raise CurationError(f"{table}: the column {values.name!r} holds {values.dtype}, not numbers")
    found = pd.to_numeric(values, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    wrong = np.isnan(found) & values.notna().to_numpy()
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise CurationError(
            f"{table}: {int(wrong.sum()):,} values of the column {values.name!r} are no numbers; the first, in row "
            f"{row}, is {values.iloc[row]!r}"
        )
    return found


def split_votes(
    table: PairTable, trusted: PairTable, votes: pd.DataFrame | None
) -> tuple[pd.DataFrame | None, pd.DataFrame | None]:
    """Votes on trusted pairs, and the others.

    Raises:
        CurationError: a pair stands in both tables, or votes have no column pair_id.
    """
    twins = trusted.keys[trusted.keys.isin(table.keys)]
    if len(twins):
        raise CurationError(
            f"trusted: {len(twins)} of its pairs are among the pairs to be cleaned, too; the first is {twins[0]!r}. "
            "Leave these out of trusted, or give them as audit"
        )
    if votes is None or not len(votes):
        return None, votes
    check_columns(votes, ("pair_id",), "votes")
    theirs = pd.Index(as_keys(votes["pair_id"])).isin(trusted.keys)
    return votes[theirs], votes[~theirs]


def read_verdicts(
    table: PairTable, votes: pd.DataFrame | None, unused: Unused, known: tuple[str, ...] | None = None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Verdicts of all judges, float64 [n, J], positive for the chosen side, summed over their votes; and their names.

    Args:
        table: of `read_pairs`.
        votes: pair_id, `judge` (one judge where absent), and `better_id` or `verdict` (chosen, rejected, tie). A
            better_id that is null is a tie; where both columns are there, `better_id` counts.
        unused: takes note of votes on pairs that are not in the table.
        known: the judges whose verdicts count; all that voted where None.

    Raises:
        CurationError: a column is missing, or a value names no side of its pair.
    """
    if votes is None or not len(votes):
        return np.zeros((len(table), len(known or ()))), known or ()
    rows, signs, kept = _sides_named(table, votes, "votes", unused)
    given = (votes["judge"] if "judge" in votes else pd.Series("judge", index=votes.index)).fillna("judge")
    names = given.astype("str").to_numpy()[kept]
    judges = pd.Index(sorted(set(names)) if known is None else known)
    codes = judges.get_indexer(pd.Index(names))
    others = sorted(set(names[codes < 0]))
    unused.add(int((codes < 0).sum()), "votes on trusted pairs are of judges who said nothing of the pairs", others)
    verdicts = np.zeros((len(table), len(judges)))
    np.add.at(verdicts, (rows[codes >= 0], codes[codes >= 0]), signs[codes >= 0])
    return verdicts, tuple(map(str, judges))


def given_verdicts(table: PairTable, votes: pd.DataFrame | None) -> pd.DataFrame:
    """Every single vote on the pairs, as rows of `PairEvidence.verdicts`; see `read_verdicts`, which has checked them.

    A row whose only column for it is an empty `verdict` has no verdict; an empty `better_id` is a tie.
    """
    if votes is None or not len(votes):
        return no_verdicts()
    places, signs, kept = _sides_named(table, votes, "votes", Unused())
    used = votes[kept]
    verdict = np.select([signs > 0, signs < 0], [CHOSEN, REJECTED], TIE).astype(object)
    if "better_id" not in votes:
        verdict[used["verdict"].isna().to_numpy()] = None
    judges = (used["judge"] if "judge" in used else pd.Series("judge", index=used.index)).fillna("judge")
    return verdict_rows(places, verdict, used, judges.astype("str").to_numpy(dtype=object))


def read_audit(table: PairTable, audit: pd.DataFrame | None, unused: Unused) -> np.ndarray:
    """Int [n]: +1 where the given label was checked and is right, -1 where it is wrong, 0 elsewhere.

    Args:
        table: of `read_pairs`.
        audit: pair_id and better_id (null: no side is better, which says nothing about the label).
        unused: takes note of answers that do not count: on other pairs, ties, contradictions.

    Raises:
        CurationError: a column is missing, or a value names no side of its pair.
    """
    checked = np.zeros(len(table), dtype=int)
    if audit is None or not len(audit):
        return checked
    rows, signs, _ = _sides_named(table, audit, "audit", unused)
    sums, most = np.zeros(len(table)), np.zeros(len(table))
    np.add.at(sums, rows, signs)
    np.add.at(most, rows, np.abs(signs))
    checked = np.sign(sums).astype(int)
    split = (most > 0) & (checked == 0)
    unused.add(int(split.sum()), "audited pairs have contradicting answers, which do not count", table.keys[split])
    tied = int(np.unique(rows[signs == 0]).size)
    unused.add(tied, "audited pairs have no better side, which says nothing about their label")
    return checked


def _sides_named(
    table: PairTable, rows: pd.DataFrame, name: str, unused: Unused
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places of the pairs, signs of the named sides, and bool [rows], which rows are about pairs of the table."""
    check_columns(rows, ("pair_id",), name)
    columns = [column for column in ("better_id", "verdict") if column in rows]
    if not columns:
        raise CurationError(f"{name}: it has neither the column better_id nor verdict; it has {list(rows.columns)}")
    keys = as_keys(rows["pair_id"])
    places = table.keys.get_indexer(pd.Index(keys))
    kept = places >= 0
    if not kept.any():
        raise CurationError(
            f"{name}: no pair_id is one of the table's; the first is {keys[0]!r}, and the table's first is "
            f"{table.keys[0] if len(table) else None!r}"
        )
    unused.add(int((~kept).sum()), f"rows of {name} are about pairs that are not in the table", keys[~kept].tolist())
    places = places[kept]
    given = as_keys(rows[columns[0]])[kept]
    for column in columns[1:]:  # a verdict stands where better_id is empty
        given = np.where(pd.isna(given), as_keys(rows[column])[kept], given)
    signs = np.full(len(places), np.nan)
    for side, sign in zip(table.sides, (1.0, -1.0), strict=True):
        signs[(given == side[places]) & ~pd.isna(given)] = sign
    words = np.flatnonzero(np.isnan(signs))
    signs[words] = [_SIDES.get(TIE if each is None else each.strip().lower(), np.nan) for each in given[words]]
    if np.isnan(signs).any():
        row = int(np.flatnonzero(np.isnan(signs))[0])
        raise CurationError(
            f"{name}: {int(np.isnan(signs).sum())} values of {columns[0]} name no side of their pair; the first, of "
            f"pair {table.keys[places[row]]}, is {given[row]!r}; use the id of a side, chosen, rejected, tie, or leave "
            "it empty"
        )
    return places, signs, kept
