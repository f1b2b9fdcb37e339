"""A user's tables of verdicts and of checked pairs, brought to the arrays that the joint model takes.

Rows find their pair by its id, and name the better side by its id or by a word. What belongs here: which side a row
names, in which order a judge saw the sides, and what cannot be used. What does not: pairs and scores
(`preference_tables`), and how far a judge can be believed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from dt2it_pipeline.curate.evidence_table import no_verdicts, verdict_rows
from dt2it_pipeline.curate.given_pairs import CHOSEN, REJECTED
from dt2it_pipeline.curate.joint.answers import Answers, counted
from dt2it_pipeline.curate.pair_frames import phrases
from dt2it_pipeline.curate.preference_tables import PairTable, Unused
from dt2it_pipeline.curate.voters.margins import CurationError, check_columns
from dt2it_pipeline.judges.pairwise_votes import FORWARD, LOWER_FIRST, REVERSED, TIE
from dt2it_pipeline.storage.table_files import key_strings

_ORDERS = {**LOWER_FIRST, "ab": LOWER_FIRST[FORWARD], "ba": LOWER_FIRST[REVERSED]}  # with words of other tools
_NO_ORDER = ("alone", "")  # orders of judges that saw one side at a time, and of those that are not known
_SIDES = {CHOSEN: 1.0, REJECTED: -1.0, TIE: 0.0}


@dataclass(frozen=True)
class Votes:
    """Votes on pairs of a table.

    Attributes:
        rows: the votes, as given.
        places: int64 [m], the row of each vote's pair.
        signs: float64 [m]: 1 for the chosen side, -1 for the other, 0 for a tie.
        first: float64 [m]: 1 where the judge saw the chosen side first, -1 where last, 0 where that is not known.
    """

    rows: pd.DataFrame
    places: np.ndarray
    signs: np.ndarray
    first: np.ndarray

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
        asked: bool [n, J], a judge was asked, ties among its verdicts.
        judges: J names.
        votes: the single votes; None: there are none.
    """

    signs: np.ndarray
    shown_first: np.ndarray
    asked: np.ndarray
    judges: tuple[str, ...]
    votes: Votes | None


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
        return Verdicts(nothing, nothing, nothing.astype(bool), known or (), None)
    rows, signs, kept = _sides_named(table, votes, "votes", unused)
    used = Votes(votes if kept.all() else votes[kept], rows, signs, np.zeros(len(rows)))
    named, names = pd.factorize(used.judges())
    judges = pd.Index(sorted(map(str, names)) if known is None else known)
    codes = judges.get_indexer(pd.Index(names))[named]
    others = sorted(name for name in names if name not in judges)
    unused.add(int((codes < 0).sum()), "votes on trusted pairs are of judges who said nothing of the pairs", others)
    heard = np.zeros((len(table), len(judges)))
    shown_first = np.zeros_like(heard)
    first = _shown_first(table, used, unused)
    used = replace(used, first=first)
    for found, values in ((heard, signs), (shown_first, first)):
        np.add.at(found, (rows[codes >= 0], codes[codes >= 0]), values[codes >= 0])
    asked = np.zeros(heard.shape, dtype=bool)
    asked[rows[codes >= 0], codes[codes >= 0]] = True
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
        lower = np.where(told, 0.0, np.array([*(_ORDERS.get(word, 0.0) for word in plain), 0.0])[codes])
        odd = ~told & np.array([*(word not in (*_ORDERS, *_NO_ORDER) for word in plain), False])[codes]
        shown = words[np.unique(codes[odd])].tolist()
        unused.add(int(odd.sum()), "values of order are neither forward nor reversed", shown)
        known = np.flatnonzero(lower)
        chosen, rejected = (side.take(votes.places[known]).reset_index(drop=True) for side in table.sides)
        if table.named and len(known):
            other = np.array([*(word in ("ab", "ba") for word in plain), False])[codes[known]]
            meant = (
                "values of order are AB or BA, which here means that the side with the lower id (AB) or the higher id "
            )
            unused.add(int(other.sum()), f"{meant}(BA), as text, came first; where it does not, give shown_first")
            is_lower = (chosen < rejected).to_numpy(dtype=bool)
            found[known] = np.where(is_lower, lower[known], -lower[known])
        elif len(known):
            unused.add(len(known), "values of order say nothing, since the pairs have no chosen_id and rejected_id")
    return found


def given_verdicts(votes: Votes | None, sides: tuple[pd.Series, pd.Series]) -> pd.DataFrame:
    """Every single vote on the pairs, as rows of `PairEvidence.verdicts`.

    A row whose only column for it is an empty `verdict` has no verdict; an empty `better_id` is a tie. `order` is that
    of the votes, else by `shown_first`: forward where that is the lower of the ids `sides`.
    """
    if votes is None:
        return no_verdicts()
    codes = np.where(votes.signs > 0, 0, np.where(votes.signs < 0, 1, 2))
    verdict = phrases((CHOSEN, REJECTED, TIE), codes)
    if "better_id" not in votes.rows:
        verdict = verdict.mask(votes.rows["verdict"].isna().to_numpy())
    rows = votes.rows
    if "shown_first" in rows:
        chosen, rejected = (side.take(votes.places).reset_index(drop=True) for side in sides)
        forward = (votes.first > 0) == (chosen < rejected).to_numpy(dtype=bool)
        order = phrases((FORWARD, REVERSED), np.where(forward, 0, 1)).mask(votes.first == 0)
        if "order" in rows:
            order = key_strings(rows["order"]).replace("", None).fillna(order)
        rows = rows.assign(order=order.array)
    return verdict_rows(votes.places, verdict, rows, votes.judges())


def read_audit(table: PairTable, audit: pd.DataFrame | None, unused: Unused) -> Answers:
    """The answers of an audit.

    Args:
        table: of `read_pairs`.
        audit: pair_id and better_id (null: no side is better, which says nothing about the label), a row per answer.
        unused: takes note of answers that do not count, on other pairs and ties, and of contradictions.

    Raises:
        CurationError: a column is missing, or a value names no side of its pair.
    """
    if audit is None or not len(audit):
        return counted(np.zeros(0, dtype=int), np.zeros(0), len(table))
    rows, signs, _ = _sides_named(table, audit, "audit", unused)
    found = counted(rows, signs, len(table))
    many = int(found.contradicted.sum())
    unused.add(
        many,
        f"{'audited pair has' if many == 1 else 'audited pairs have'} answers that contradict each other: the majority "
        "counts, and of as many for either side none does",
        table.keys[found.contradicted].tolist(),
    )
    tied = int(np.unique(rows[signs == 0]).size)
    have, their = ("audited pair has", "its") if tied == 1 else ("audited pairs have", "their")
    unused.add(tied, f"{have} no better side, which says nothing about {their} label")
    return found


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
    counted = "" if table.keyed else " (it has no column pair_id, so its rows are counted from 0)"
    if not kept.any():
        raise CurationError(
            f"{name}: no pair_id is one of the table's{counted}; the first is {_texts(keys[:1])[0]!r}, and the table's "
            f"first is {table.keys[0] if len(table) else None!r}"
        )
    others = keys[~kept]
    about = f"row of {name} is about a pair that is" if len(others) == 1 else f"rows of {name} are about pairs that are"
    unused.add(len(others), f"{about} not in the table{counted}", _texts(others[:3]))
    if not table.keyed and (2 * len(others) > len(keys) or (keys.eq(str(len(table))).any() and not keys.eq("0").any())):
        raise CurationError(f"{name}: {unused.notes[-1]}; where it has another order or count, add the column pair_id")
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
        changed = ". In answers to a sample of this table, it means that the table was re-ordered or changed since the"
        changed = "" if table.named and table.keyed else f"{changed} sample was drawn"
        raise CurationError(
            f"{name}: {int(np.isnan(signs).sum())} values of {columns[0]} name no side of their pair; the first, of "
            f"pair {table.keys[places[row]]}, is {given[row]!r}; use the id of a side, chosen, rejected, tie, or leave "
            f"it empty{changed}"
        )
    return places, signs, kept


def _texts(keys: pd.Series) -> list[str | None]:
    return [None if pd.isna(key) else key for key in keys]
