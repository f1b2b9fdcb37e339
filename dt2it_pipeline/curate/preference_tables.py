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
from dt2it_pipeline.curate.given_pairs import CHOSEN, REJECTED, GivenPairs, GivenScores
from dt2it_pipeline.curate.id_index import IdIndex, present
from dt2it_pipeline.curate.pair_frames import phrases
from dt2it_pipeline.curate.voters.margins import CurationError, SideScores, check_columns, refuse_unusable_ids
from dt2it_pipeline.storage.table_files import key_strings

TIE = "tie"
_LOWER_FIRST = {"forward": 1.0, "ab": 1.0, "reversed": -1.0, "ba": -1.0}  # orders: whose id is lower came first
_NO_ORDER = ("alone", "")  # orders of judges that saw one side at a time, and of those that are not known
_SIDES = {CHOSEN: 1.0, REJECTED: -1.0, TIE: 0.0}


@dataclass(frozen=True)
class PairTable:
    """Pairs of a user's table.

    Attributes:
        ids: n pair ids, as given.
        keys: the same as text: tables from different files match by them.
        index: finds keys.
        sides: n ids of the chosen and n of the rejected sides; `chosen` and `rejected` where the table has none.
        sources: n names, "" where there are none.
        named: whether sides have ids of their own.
    """

    ids: pd.Series
    keys: pd.Series
    index: IdIndex
    sides: tuple[pd.Series, pd.Series]
    sources: np.ndarray
    named: bool = True

    def __len__(self) -> int:
        return len(self.ids)

    def places(self, keys: pd.Series) -> np.ndarray:
        """int64 [m]: the row of each key's pair, -1 where there is none."""
        return np.where(present(keys), self.index.positions(keys), -1)


@dataclass(frozen=True)
class Votes:
    """Votes on pairs of a table.

    Attributes:
        rows: the votes, as given.
        places: int64 [m], the row of each vote's pair.
        signs: float64 [m]: 1 for the chosen side, -1 for the other, 0 for a tie.
    """

    rows: pd.DataFrame
    places: np.ndarray
    signs: np.ndarray

    def judges(self) -> pd.Series:
        """The m names."""
        if "judge" not in self.rows:
            return pd.Series(["judge"] * len(self.rows), dtype="str")
        return key_strings(self.rows["judge"]).fillna("judge").reset_index(drop=True)  # 3 and 3.0 are one judge


@dataclass(frozen=True)
class Verdicts:
    """What J judges say of n pairs.

    Attributes:
        signs: float64 [n, J], positive for the chosen side, summed over a judge's votes.
        shown_first: float64 [n, J], positive where the judge saw the chosen side first, negative where last, 0 where
            that is not known; summed in the same way, so that both orders make 0.
        asked: bool [n], a judge was asked, ties among its verdicts.
        judges: J names.
        votes: the single votes; None: there are none.
    """

    signs: np.ndarray
    shown_first: np.ndarray
    asked: np.ndarray
    judges: tuple[str, ...]
    votes: Votes | None


@dataclass
class Unused:
    """Sentences about rows that could not be used, in the order in which they were found."""

    notes: list[str] = field(default_factory=list)

    def add(self, count: int, what: str, examples: Sequence[object] = ()) -> None:
        """Note that `count` rows were not used, if there are any."""
        if count:
            shown = f", for example {', '.join(map(repr, list(examples)[:3]))}" if len(examples) else ""
            self.notes.append(f"{count:,} {what}{shown}")


def read_pairs(given: GivenPairs, chosen: str | None, rejected: str | None, table: str = "pairs") -> PairTable:
    """The pairs of a table.

    Args:
        given: pair_id (the row's number where absent), chosen_id and rejected_id, texts, `source`; all may be absent.
        chosen: column with the texts of the chosen sides; `chosen` where None.
        rejected: column with the texts of the rejected sides; `rejected` where None.
        table: its name in errors.

    Raises:
        CurationError: a named column is missing, or a pair_id is null or occurs twice.
    """
    for name in (chosen, rejected):
        if name is not None:
            check_columns(given, (name,), table)
    repeated = given.columns[given.columns.duplicated()]
    if len(repeated):
        raise CurationError(f"{table}: the column {str(repeated[0])!r} is there twice")
    pairs = given.frame
    ids = pairs["pair_id"].reset_index(drop=True) if "pair_id" in pairs else pd.Series(np.arange(len(pairs)))
    keys = key_strings(ids)
    index = IdIndex(keys)
    if len(index) < len(keys) or keys.isna().any():
        refuse_unusable_ids(keys, table)
    if ("chosen_id" in pairs) != ("rejected_id" in pairs):
        raise CurationError(f"{table}: chosen_id and rejected_id go together; one of the two columns is missing")
    if "chosen_id" in pairs:
        sides = tuple(key_strings(pairs[name]) for name in ("chosen_id", "rejected_id"))
    else:
        sides = tuple(phrases((name,), np.zeros(len(pairs), dtype=np.int8)) for name in (CHOSEN, REJECTED))
    return PairTable(ids, keys, index, (sides[0], sides[1]), _sources(pairs), "chosen_id" in pairs)


def _sources(pairs: pd.DataFrame) -> np.ndarray:
    """Object [n]: a name per pair; few different ones, so that each lies in memory once."""
    if "source" not in pairs:
        return np.full(len(pairs), "", dtype=object)
    given = pairs["source"]
    if given.dtype == object:  # what stands there may be anything
        given = given.fillna("").map(str)
    codes, names = pd.factorize(given)
    return np.append(np.asarray(names, dtype=object), "")[codes]


def read_margins(
    table: PairTable,
    given: GivenPairs,
    scores: GivenScores | None,
    chosen_scores: Sequence[str],
    rejected_scores: Sequence[str],
    name: str = "pairs",
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Margins of all voters, float64 [n, V] (not a number where there is no score), and their names.

    Args:
        table: of `read_pairs`.
        given: the table it was made of.
        scores: response_id, voter, score; `voter` may be absent where there is one.
        chosen_scores: columns of `pairs` with the scores of the chosen sides, one per voter.
        rejected_scores: the columns of the rejected sides, in the same order.
        name: of the table, in errors.

    Raises:
        CurationError: columns are missing or do not go together, ids are null, or a response has two scores.
    """
    found, names = [np.empty((len(table), 0))], list[str]()
    if scores is not None and len(scores):
        if "chosen_id" not in given.columns:
            raise CurationError(f"{name}: chosen_id and rejected_id are missing, by which scores find their pairs")
        check_columns(scores, ("response_id", "score"), "scores")
        sides = SideScores(*table.sides)
        for part in scores.parts():
            numbers, ids = _numbers(part["score"], "scores"), key_strings(part["response_id"])
            voter = part["voter"].reset_index(drop=True) if "voter" in part else "scores"
            sides.add(pd.DataFrame({"response_id": ids, "voter": voter, "score": numbers}))
        voters, margins = sides.each_margin()
        if not np.isfinite(margins).any():
            raise CurationError(
                f"scores: no pair of `{name}` has finite scores of both its sides; are these the scores of its "
                "responses?"
            )
        found.append(margins)
        names += voters
    if len(chosen_scores) != len(rejected_scores):
        raise CurationError(
            f"chosen_scores names {len(chosen_scores)} columns and rejected_scores {len(rejected_scores)}; "
            "each voter needs one of both"
        )
    check_columns(given, (*chosen_scores, *rejected_scores), name)
    for left, right in zip(chosen_scores, rejected_scores, strict=True):
        both = [_numbers(given.frame[column], name) for column in (left, right)]
        with np.errstate(invalid="ignore"):
            found.append((both[0] - both[1])[:, None])
        names.append(left)
    return found[1] if len(found) == 2 else np.concatenate(found, axis=1), tuple(names)


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
    twins = trusted.keys[table.places(trusted.keys) >= 0].tolist()
    if twins:
        raise CurationError(
            f"trusted: {len(twins)} of its pairs are among the pairs to be cleaned, too; the first is {twins[0]!r}. "
            "Leave these out of trusted, or give them as audit"
        )
    if votes is None or not len(votes):
        return None, votes
    check_columns(votes, ("pair_id",), "votes")
    theirs = trusted.places(key_strings(votes["pair_id"])) >= 0
    return votes[theirs], votes[~theirs]


def read_verdicts(
    table: PairTable, votes: pd.DataFrame | None, unused: Unused, known: tuple[str, ...] | None = None
) -> Verdicts:
    """Verdicts of all judges.

    Args:
        table: of `read_pairs`.
        votes: pair_id, `judge` (one judge where absent), and `better_id` or `verdict` (chosen, rejected, tie). A
            better_id that is null is a tie; where both columns are there, `better_id` counts. Which side the judge saw
            first, if known: `shown_first` (id of a side, chosen, rejected), or, where that is empty, `order`: forward
            (the side with the lower id, as text, came first) or reversed.
        unused: takes note of votes on pairs that are not in the table, and of orders that say nothing.
        known: the judges whose verdicts count; all that voted where None.

    Raises:
        CurationError: a column is missing, or a value names no side of its pair.
    """
    if votes is None or not len(votes):
        nothing = np.zeros((len(table), len(known or ())))
        return Verdicts(nothing, nothing, np.zeros(len(table), dtype=bool), known or (), None)
    rows, signs, kept = _sides_named(table, votes, "votes", unused)
    used = Votes(votes if kept.all() else votes[kept], rows, signs)
    named, names = pd.factorize(used.judges())
    judges = pd.Index(sorted(map(str, names)) if known is None else known)
    codes = judges.get_indexer(pd.Index(names))[named]
    others = sorted(name for name in names if name not in judges)
    unused.add(int((codes < 0).sum()), "votes on trusted pairs are of judges who said nothing of the pairs", others)
    heard = np.zeros((len(table), len(judges)))
    shown_first = np.zeros_like(heard)
    first = _shown_first(table, used, unused)
    for found, values in ((heard, signs), (shown_first, first)):
        np.add.at(found, (rows[codes >= 0], codes[codes >= 0]), values[codes >= 0])
    asked = np.zeros(len(table), dtype=bool)
    asked[rows[codes >= 0]] = True
    return Verdicts(heard, shown_first, asked, tuple(map(str, judges)), used)


def _shown_first(table: PairTable, votes: Votes, unused: Unused) -> np.ndarray:
    """float64 [m]: 1 where the judge saw the chosen side first, -1 where last, 0 where the vote does not say.

    `order` counts where `shown_first` is empty. `unused` takes note of what names no side.
    """
    found, told = np.zeros(len(votes.rows)), np.zeros(len(votes.rows), dtype=bool)
    if "shown_first" in votes.rows:
        named = key_strings(votes.rows["shown_first"]).reset_index(drop=True)
        codes, words = pd.factorize(named)
        plain = [word.strip().lower() for word in words]  # a side's id comes before a word
        found = np.array([*({CHOSEN: 1.0, REJECTED: -1.0}.get(word, 0.0) for word in plain), 0.0])[codes]
        told = np.array([*(word != "" for word in plain), False])[codes]
        for side, sign in zip(table.sides, (1.0, -1.0), strict=True):
            found[(named == side.take(votes.places).reset_index(drop=True)).to_numpy(dtype=bool)] = sign
        unknown = told & (found == 0)
        shown = named[unknown].unique().tolist()
        unused.add(int(unknown.sum()), "values of shown_first name no side of their pair", shown)
    if "order" in votes.rows and not told.all():
        codes, words = pd.factorize(key_strings(votes.rows["order"]))  # whatever stands there
        plain = [word.strip().lower() for word in words]
        lower = np.where(told, 0.0, np.array([*(_LOWER_FIRST.get(word, 0.0) for word in plain), 0.0])[codes])
        odd = ~told & np.array([*(word not in (*_LOWER_FIRST, *_NO_ORDER) for word in plain), False])[codes]
        shown = words[np.unique(codes[odd])].tolist()
        unused.add(int(odd.sum()), "values of order are neither forward nor reversed", shown)
        known = np.flatnonzero(lower)
        chosen, rejected = (side.take(votes.places[known]).reset_index(drop=True) for side in table.sides)
        if table.named and len(known):
            is_lower = (chosen < rejected).to_numpy(dtype=bool)
            found[known] = np.where(is_lower, lower[known], -lower[known])
        elif len(known):
            unused.add(len(known), "values of order say nothing, since the pairs have no chosen_id and rejected_id")
    return found


def given_verdicts(votes: Votes | None) -> pd.DataFrame:
    """Every single vote on the pairs, as rows of `PairEvidence.verdicts`.

    A row whose only column for it is an empty `verdict` has no verdict; an empty `better_id` is a tie.
    """
    if votes is None:
        return no_verdicts()
    codes = np.where(votes.signs > 0, 0, np.where(votes.signs < 0, 1, 2))
    verdict = phrases((CHOSEN, REJECTED, TIE), codes)
    if "better_id" not in votes.rows:
        verdict = verdict.mask(votes.rows["verdict"].isna().to_numpy())
    return verdict_rows(votes.places, verdict, votes.rows, votes.judges())


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
    unused.add(
        int(split.sum()), "audited pairs have contradicting answers, which do not count", table.keys[split].tolist()
    )
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
    keys = key_strings(rows["pair_id"])
    places = table.places(keys)
    kept = places >= 0
    if not kept.any():
        raise CurationError(
            f"{name}: no pair_id is one of the table's; the first is {_texts(keys[:1])[0]!r}, and the table's first is "
            f"{table.keys[0] if len(table) else None!r}"
        )
    others = keys[~kept]
    unused.add(len(others), f"rows of {name} are about pairs that are not in the table", _texts(others[:3]))
    places = places[kept]
    given = key_strings(rows[columns[0]])[kept].reset_index(drop=True)
    for column in columns[1:]:  # a verdict stands where better_id is empty
        given = given.where(given.notna(), key_strings(rows[column])[kept].reset_index(drop=True))
    codes, words = pd.factorize(given)  # a side's id comes before a word
    signs = np.array([*(_SIDES.get(word.strip().lower(), np.nan) for word in words), _SIDES[TIE]])[codes]
    for side, sign in zip(table.sides, (1.0, -1.0), strict=True):
        here = (given == side.take(places).reset_index(drop=True)).to_numpy(dtype=bool)
        signs[here] = sign
    if np.isnan(signs).any():
        row = int(np.flatnonzero(np.isnan(signs))[0])
        raise CurationError(
            f"{name}: {int(np.isnan(signs).sum())} values of {columns[0]} name no side of their pair; the first, of "
            f"pair {table.keys[places[row]]}, is {given[row]!r}; use the id of a side, chosen, rejected, tie, or leave "
            "it empty"
        )
    return places, signs, kept


def _texts(keys: pd.Series) -> list[str | None]:
    return [None if pd.isna(key) else key for key in keys]
