"""A user's tables of pairs and scores, brought to the arrays that the joint model takes.

Two layouts are read. Long tables: pairs with ids of their responses, and beside them scores by response. Wide tables:
one row per pair, with the scores of both sides in columns of their own. What belongs here: ids, columns and what cannot
be used of them. What does not: verdicts and checked pairs (`preference_verdicts`), and what follows from a value.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from dt2it_pipeline.curate.given_pairs import CHOSEN, REJECTED, GivenPairs, GivenScores
from dt2it_pipeline.curate.id_index import IdIndex, present
from dt2it_pipeline.curate.pair_frames import phrases
from dt2it_pipeline.curate.voters.margins import CurationError, SideScores, check_columns, refuse_unusable_ids
from dt2it_pipeline.storage.table_files import key_strings

_MAY_BE_IDS = re.compile(r"(id|idx|index|key|^unnamed: 0)$", re.IGNORECASE)  # pandas reads an index of a CSV so
_SIDE_IDS = ("chosen_id", "rejected_id")


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
        keyed: whether pairs have; else their ids are the numbers of the rows.
    """

    ids: pd.Series
    keys: pd.Series
    index: IdIndex
    sides: tuple[pd.Series, pd.Series]
    sources: np.ndarray
    named: bool = True
    keyed: bool = True

    def __len__(self) -> int:
        return len(self.ids)

    def places(self, keys: pd.Series) -> np.ndarray:
        """int64 [m]: the row of each key's pair, -1 where there is none."""
        return np.where(present(keys), self.index.positions(keys), -1)


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
    return PairTable(ids, keys, index, (sides[0], sides[1]), _sources(pairs), "chosen_id" in pairs, "pair_id" in pairs)


def refuse_doubtful_ids(pairs: pd.DataFrame, **others: pd.DataFrame | None) -> None:
    """Refuse tables whose `pair_id` may mean something else than the row's number, where the pairs have no such column.

    Args:
        pairs: a table of pairs.
        **others: tables about its rows, by their names.

    Raises:
        CurationError: the table has another index than 0 to n - 1, or one of its columns holds these ids, too.
    """
    if "pair_id" in pairs or pairs.columns.has_duplicates:  # `read_pairs` refuses these
        return
    columns = [name for name in pairs if _MAY_BE_IDS.search(str(name)) and name not in _SIDE_IDS]
    for table, rows in others.items():
        if rows is None or "pair_id" not in rows or not len(rows):
            continue
        if not pairs.index.equals(pd.RangeIndex(len(pairs))):
            raise CurationError(
                f"pairs: it has no column pair_id, and its index is not 0 to {len(pairs) - 1:,} in this order, so "
                f"pair_id of {table} may mean the index or the number of the row. For the index, give "
                "`pairs.assign(pair_id=pairs.index)`; for the number, `pairs.reset_index(drop=True)`"
            )
        ids = key_strings(rows["pair_id"]).dropna()
        by_number = IdIndex(key_strings(pd.Series(np.arange(len(pairs))))).positions(ids)
        for name in columns:
            keys = key_strings(pairs[name])
            index = IdIndex(keys)
            found = index.positions(ids)
            likely = 2 * int((found >= 0).sum()) >= max(int((by_number >= 0).sum()), 1)
            if len(index) == len(keys) and likely and not np.array_equal(found, by_number):
                raise CurationError(
                    f"pairs: it has no column pair_id, and pair_id of {table} may mean its column {name!r} or the "
                    f"number of the row, from 0. For the column, give `pairs.assign(pair_id=pairs[{name!r}])`; for "
                    "the number, `pairs.assign(pair_id=range(len(pairs)))`"
                )


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
    unused: Unused | None = None,
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Margins of all voters, float64 [n, V] (not a number where there is no score), and their names.

    Args:
        table: of `read_pairs`.
        given: the table it was made of.
        scores: response_id, voter, score; `voter` may be absent where there is one.
        chosen_scores: columns of `pairs` with the scores of the chosen sides, one per voter.
        rejected_scores: the columns of the rejected sides, in the same order.
        name: of the table, in errors.
        unused: takes note of scores that are infinite.

    Raises:
        CurationError: columns are missing or do not go together, ids are null, or a response has two scores.
    """
    found, names, infinite = [np.empty((len(table), 0))], list[str](), 0
    unused = unused or Unused()
    if scores is not None and len(scores):
        if "chosen_id" not in given.columns:
            raise CurationError(f"{name}: chosen_id and rejected_id are missing, by which scores find their pairs")
        check_columns(scores, ("response_id", "score"), "scores")
        sides = SideScores(*table.sides)
        for part in scores.parts():
            numbers, ids = _numbers(part["score"], "scores"), key_strings(part["response_id"])
            infinite += int(np.isinf(numbers).sum())
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
        unused.add(infinite, f"{'score is' if infinite == 1 else 'scores are'} infinite and not used")
    if len(chosen_scores) != len(rejected_scores):
        raise CurationError(
            f"chosen_scores names {len(chosen_scores)} columns and rejected_scores {len(rejected_scores)}; "
            "each voter needs one of both"
        )
    check_columns(given, (*chosen_scores, *rejected_scores), name)
    for left, right in zip(chosen_scores, rejected_scores, strict=True):
        both = [_numbers(given.frame[column], name) for column in (left, right)]
        for column, values in zip((left, right), both, strict=True):
            infinite = int(np.isinf(values).sum())
            of = f"{'score' if infinite == 1 else 'scores'} of the column {column!r}"
            unused.add(infinite, f"{of} {'is' if infinite == 1 else 'are'} infinite and not used")
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
