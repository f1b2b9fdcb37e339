"""What curation of a user's own table knew of each pair: margins, verdicts, the label before and after.

People read it (the review page shows it beside the texts). What belongs here: the table. What does not: any decision
about a pair.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dt2it_pipeline.curate.pair_frames import phrases
from dt2it_pipeline.judges.pairwise_votes import MOST_WORDS, kept_words
from dt2it_pipeline.storage.records import writable
from dt2it_pipeline.storage.schemas import SCHEMAS, validate

EVIDENCE = "cleaning_evidence"  # kind of table
FILE = f"{EVIDENCE}.parquet"
_ROWS = 1 << 16  # that are made at once: the ids and names of a table of millions would fill the memory
_VERDICT = SCHEMAS[EVIDENCE].field("verdicts").type
_MARGIN = SCHEMAS[EVIDENCE].field("margins").type
# Columns to be written as dictionaries. Of ids, which all differ, one would be built in vain.
_FEW_VALUES = (
    "outcome",
    "margins.list.element.voter",
    *(f"verdicts.list.element.{field.name}" for field in _VERDICT.value_type),
)


@dataclass(frozen=True)
class PairEvidence:
    """What was known of n pairs.

    Attributes:
        pair_ids: n ids, text.
        sides: ids of the n given chosen and of the n given rejected sides, text.
        outcome: n outcomes: kept, flipped or dropped.
        probability: float64 [n], that the given label is right; not a number where nothing says so.
        voters: V names.
        margins: float64 [n, V], score of the given chosen side minus that of the other; not finite: no margin.
        verdicts: a row per vote: `place` (of its pair, 0 to n - 1), `judge`, `order`, `verdict`, `words`, `fault`, on
            the given sides, in the order of places.
    """

    pair_ids: pd.Series
    sides: tuple[pd.Series, pd.Series]
    outcome: pd.Series
    probability: np.ndarray
    voters: Sequence[str]
    margins: np.ndarray
    verdicts: pd.DataFrame

    def tables(self) -> Iterator[pa.Table]:
        """The table of kind `cleaning_evidence`, piece by piece; one without a row where there is no pair."""
        places = self.verdicts["place"].to_numpy(dtype=np.int64)
        for start in range(0, max(len(self.pair_ids), 1), _ROWS):
            stop = min(start + _ROWS, len(self.pair_ids))
            first, last = np.searchsorted(places, [start, stop])
            rows = slice(start, stop)
            chosen, rejected = (_strings(side, rows) for side in self.sides)
            outcome = _strings(self.outcome, rows)
            other = pc.if_else(pc.equal(outcome, "flipped"), rejected, pa.scalar(None, pa.string()))
            columns = {
                "pair_id": _strings(self.pair_ids, rows),
                "outcome": outcome,
                "chosen_before": chosen,
                "chosen_after": pc.if_else(pc.equal(outcome, "kept"), chosen, other),
                "given_probability": pa.array(self.probability[rows], pa.float64(), from_pandas=True),
                "margins": self._margins(rows),
                "verdicts": self._verdicts(first, last, start, stop),
            }
            yield validate(pa.table(columns), EVIDENCE)

    def write(self, file: Path) -> None:
        """Write all of it as Parquet, into a folder that is not in its place yet (`atomic_directory`)."""
        with pq.ParquetWriter(file, SCHEMAS[EVIDENCE], compression="zstd", use_dictionary=list(_FEW_VALUES)) as writer:
            for table in self.tables():
                writer.write_table(table)

    def _margins(self, rows: slice) -> pa.Array:
        margins = self.margins[rows]
        known = np.isfinite(margins)
        names = pa.array(self.voters, pa.string()).take(pa.array(np.nonzero(known)[1]))
        flat = pa.StructArray.from_arrays([names, pa.array(margins[known])], fields=list(_MARGIN.value_type))
        return pa.ListArray.from_arrays(_ends(known.sum(axis=1)), flat, type=_MARGIN)

    def _verdicts(self, first: int, last: int, start: int, stop: int) -> pa.Array:
        part = self.verdicts.iloc[first:last]
        parts = [_strings(part[field.name]) for field in _VERDICT.value_type]
        flat = pa.StructArray.from_arrays(parts, fields=list(_VERDICT.value_type))
        counts = np.bincount(part["place"].to_numpy(dtype=np.int64) - start, minlength=stop - start)
        return pa.ListArray.from_arrays(_ends(counts), flat, type=_VERDICT)


def no_verdicts() -> pd.DataFrame:
    """Rows of `PairEvidence.verdicts`: none."""
    return pd.DataFrame({"place": pd.Series(dtype=np.int64)} | {
        field.name: pd.Series(dtype=object) for field in _VERDICT.value_type
    })  # fmt: skip


def verdict_rows(places: np.ndarray, verdict: pd.Series, votes: pd.DataFrame, judges: pd.Series) -> pd.DataFrame:
    """Rows of `PairEvidence.verdicts`.

    Args:
        places: int [m], the place of each vote's pair.
        verdict: m verdicts: chosen, rejected, tie, or null where there is none.
        votes: m rows, of which `order`, `words` and `fault` are taken along where they are there.
        judges: m names.
    """
    codes, names = pd.factorize(judges)
    made = pd.DataFrame({"place": places, "judge": phrases([writable(str(name)) for name in names], codes)})
    made["verdict"] = verdict.array
    for name in ("order", "words", "fault"):
        made[name] = _kept(votes[name]) if name in votes else pd.Series(None, made.index, dtype="str")
    return made.iloc[np.argsort(places, kind="stable")].reset_index(drop=True)


def _kept(given: pd.Series) -> pd.Series:
    """What judges wrote, null where they wrote nothing, cut where it is long."""
    given = given.reset_index(drop=True)
    if isinstance(given.dtype, pd.StringDtype) and not (given.str.len() > MOST_WORDS).any():
        return given.astype("str")  # as Arrow holds it, it can be written
    kept = (None if pd.isna(each) else kept_words(str(each)) for each in given.to_numpy(dtype=object))
    return pd.Series(list(kept), dtype="str")


def _strings(values: pd.Series, rows: slice = slice(None)) -> pa.Array:
    made = pa.array(values.iloc[rows], from_pandas=True)
    made = made.combine_chunks() if isinstance(made, pa.ChunkedArray) else made
    return made.cast(pa.string())


def _ends(counts: np.ndarray) -> pa.Array:
    """Where each list of a column of lists ends, with a 0 before, for lists of these lengths."""
    return pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
