"""The published steps from files to files, for tables that do not fit in memory.

The decisions are those of `published_algorithm`, made on ids and numbers alone; the texts then pass through in batches.
So memory grows with the number of pairs, by about 250 bytes each at three voters, and not with what is written in them.

Every function writes a folder of tables, which appears whole or not at all, and returns its counts. Rows keep their
order; rows in = rows of the written tables. What does not belong here: any decision about a pair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from dt2it_pipeline.curate.id_index import IdIndex
from dt2it_pipeline.curate.out_of_core.streaming import Change, Written, read_ahead, rewrite
from dt2it_pipeline.curate.pair_frames import swap_verdicts
from dt2it_pipeline.curate.published_algorithm import (
    Flips,
    checked_frames,
    choose_flips,
    resolved_frames,
    unscored_frame,
    voted_frame,
)
from dt2it_pipeline.curate.tables import (
    CARRIED,
    in_table_order,
    plain_strings,
    quarantine_table,
    table_rows,
    to_frame,
)
from dt2it_pipeline.curate.voters.margins import CurationError, Margins, SideScores, refuse_unusable_ids
from dt2it_pipeline.storage.atomic import atomic_directory
from dt2it_pipeline.storage.output_folder import OutputFolderError, mark, replaceable

MARKER = ".dt2it_curation.json"  # says that a folder was written here, and what in it
_SCORE_ROWS = 1 << 20


def vote_and_flip_files(
    pairs: Path, scores: Sequence[Path], output: Path, flip_fraction: float = 0.5
) -> dict[str, int]:
    """`published_algorithm.vote_and_flip`: writes `output`/pairs.parquet (voted) and quarantine.parquet (unscored).

    Args:
        pairs: a table of kind `pairs`.
        scores: tables of kind `scores`, of one or several voters each.
        output: the folder to write; an earlier output there is replaced, and nothing else is.
        flip_fraction: share of the negative pairs that is flipped, 0 to 1.

    Returns:
        rows_in, rows_out, rows_quarantined, negative, flipped.

    Raises:
        CurationError: repeated pair ids, null ids or contradicting scores; or `output` holds something else.
        ValueError: flip_fraction is out of range.
    """
    margins, ids = margins_of_files(pairs, scores)
    flips = choose_flips(margins, ids, flip_fraction)

    def vote(start: int, frame: pd.DataFrame) -> Written:
        own = margins.rows(start, start + len(frame))
        return {
            "pairs": voted_frame(frame, own, flips.rows(start, start + len(frame))),
            "quarantine": quarantine_table(unscored_frame(frame, own), "voted_pairs"),
        }

    counts = _rewrite([pairs], output, {"pairs": "pairs", "quarantine": "quarantine"}, vote)
    return _summary(len(ids), counts, flips)


def verify_files(pairs: Path, scores: Sequence[Path], output: Path) -> dict[str, int]:
    """`published_algorithm.verify`: writes verified.parquet, contested.parquet and quarantine.parquet (unscored).

    Arguments and errors as for `vote_and_flip_files`; returns rows_in, verified, contested, rows_quarantined.
    """
    margins, ids = margins_of_files(pairs, scores)

    def check(start: int, frame: pd.DataFrame) -> Written:
        own = margins.rows(start, start + len(frame))
        verified, contested = checked_frames(frame, own)
        return {
            "verified": verified,
            "contested": contested,
            "quarantine": quarantine_table(unscored_frame(frame, own), "verified_pairs"),
        }

    kinds = {"verified": "pairs", "contested": "pairs", "quarantine": "quarantine"}
    counts = _rewrite([pairs], output, kinds, check)
    return {"rows_in": len(ids), **{name: counts[name] for name in ("verified", "contested")}} | {
        "rows_quarantined": counts["quarantine"]
    }


def resolve_annotations_files(contested: Path, votes: Path, output: Path) -> dict[str, int]:
    """`published_algorithm.resolve_annotations`: writes `output`/annotated.parquet and quarantine.parquet (dropped).

    Args:
        contested: a table of kind `pairs`.
        votes: a table of kind `votes`.
        output: the folder to write; an earlier output there is replaced, and nothing else is.

    Returns:
        rows_in, annotated, rows_quarantined.

    Raises:
        CurationError: repeated or null pair ids; or `output` holds something else.
    """
    ids = _column(contested, "pair_id")
    refuse_unusable_ids(ids, "contested")
    places, cast = _sorted_votes(votes, ids)

    def resolve(start: int, frame: pd.DataFrame) -> Written:
        resolved = resolved_frames(frame, *_votes_of(frame, places, cast, start, len(frame)))
        return {
            "annotated": resolved.annotated,
            "quarantine": quarantine_table(resolved.dropped, "annotated_pairs"),
        }

    counts = _rewrite([contested], output, {"annotated": "pairs", "quarantine": "quarantine"}, resolve)
    return {"rows_in": len(ids), "annotated": counts["annotated"], "rows_quarantined": counts["quarantine"]}


def merge_files(verified: Path, annotated: Path, output: Path, round_number: int | None = None) -> dict[str, int]:
    """`published_algorithm.merge`: writes `output`/pairs.parquet, what step 2 kept and then what step 3 annotated.

    Raises:
        CurationError: a pair occurs in both or twice.
    """
    ids = pd.concat([_column(verified, "pair_id"), _column(annotated, "pair_id")], ignore_index=True)
    refuse_unusable_ids(ids, "curated (verified + annotated)")

    def join(start: int, frame: pd.DataFrame) -> Written:
        if round_number is not None:
            frame = frame.assign(round=np.full(len(frame), round_number, dtype=np.int32))
        return {"pairs": frame}

    return {"rows_out": _rewrite([verified, annotated], output, {"pairs": "pairs"}, join)["pairs"]}


def curate_files(
    pairs: Path,
    scores: Sequence[Path],
    verifier_scores: Sequence[Path],
    votes: Path,
    output: Path,
    flip_fraction: float = 0.5,
    round_number: int | None = None,
    *,
    votes_on_given_sides: bool = False,
) -> dict[str, int]:
    """All steps of a round in one pass, where verifier's scores and judges' votes are there already.

    It decides as `vote_and_flip_files`, `verify_files`, `resolve_annotations_files` and `merge_files` do one after the
    other; the texts are read and written once instead of three times. Writes `output`/pairs.parquet (curated, in the
    order of `pairs`) and quarantine.parquet (of all steps). Votes are on the sides that a pair has after step 1, or,
    with `votes_on_given_sides`, on those that it has in `pairs`.

    Returns:
        rows_in, rows_out, rows_quarantined, negative, flipped, verified, contested.

    Raises:
        CurationError, ValueError: as they do.
    """
    ids = _column(pairs, "pair_id")
    with ThreadPoolExecutor(1) as beside:
        checking = beside.submit(refuse_unusable_ids, ids, "pairs")
        sorting = beside.submit(_sorted_votes, votes, ids)
        sides = _sides(pairs)
        checking.result()
        margins = _with_scores(sides, scores).margins()
        flips = choose_flips(margins, ids, flip_fraction)
        checks = _with_scores(sides.swapped(flips.where), verifier_scores).margins()
        places, cast = sorting.result()
    if votes_on_given_sides:
        cast = swap_verdicts(
            cast, (places >= 0) & flips.where[places] if len(ids) else np.zeros(len(places), dtype=bool)
        )
    totals = {"verified": 0, "contested": 0}
    guard = Lock()

    def curate(start: int, frame: pd.DataFrame) -> Written:
        stop = start + len(frame)
        own = margins.rows(start, stop)
        voted = voted_frame(frame, own, flips.rows(start, stop))
        check = checks.rows(start, stop).where(own.scored)
        verified, contested = checked_frames(voted, check)
        resolved = resolved_frames(contested, *_votes_of(contested, places, cast, start, len(frame)))
        with guard:
            totals["verified"] += len(verified)
            totals["contested"] += len(contested)
        curated = pd.concat([part for part in (verified, resolved.annotated) if len(part)] or [verified])
        curated = in_table_order(curated)
        if round_number is not None:
            curated = curated.assign(round=np.full(len(curated), round_number, dtype=np.int32))
        aside = [
            quarantine_table(unscored_frame(frame, own), "voted_pairs"),
            quarantine_table(unscored_frame(voted, check), "verified_pairs"),
            quarantine_table(resolved.dropped, "annotated_pairs"),
        ]
        return {"pairs": curated, "quarantine": pa.concat_tables(aside)}

    counts = _rewrite([pairs], output, {"pairs": "pairs", "quarantine": "quarantine"}, curate)
    return _summary(len(ids), counts, flips) | totals


def _summary(rows_in: int, counts: Mapping[str, int], flips: Flips) -> dict[str, int]:
    """The counts of a step that votes."""
    return {
        "rows_in": rows_in,
        "rows_out": counts["pairs"],
        "rows_quarantined": counts["quarantine"],
        "negative": flips.negative,
        "flipped": flips.count,
    }


def _sorted_votes(votes: Path, pair_ids: pd.Series) -> tuple[np.ndarray, pd.DataFrame]:
    """Judge and verdict of all votes in the order of the pairs, and the row of each vote's pair (-1: none of them)."""
    columns = ["pair_id", "judge", "verdict"]
    _require(votes, columns)
    table = pq.read_table(votes, columns=columns, read_dictionary=["judge", "verdict"])
    # Ids are unique, so a code is a row.
    places = IdIndex(pair_ids).positions(table["pair_id"])
    order = np.argsort(places, kind="stable")
    return places[order], table.select(["judge", "verdict"]).to_pandas(ignore_metadata=True).iloc[order]


def _votes_of(
    lean: pd.DataFrame, places: np.ndarray, cast: pd.DataFrame, start: int, length: int
) -> tuple[pd.DataFrame, np.ndarray]:
    """The votes on `length` pairs from row `start`, and the row of `lean`, some of these pairs, that each is on."""
    first, last = np.searchsorted(places, [start, start + length])
    rows = np.full(length, -1)
    rows[table_rows(lean)] = np.arange(len(lean))
    return cast.iloc[first:last], rows[places[first:last] - start]


def margins_of_files(pairs: Path, scores: Sequence[Path]) -> tuple[Margins, pd.Series]:
    """Margins of all pairs of a file under the voters of some files, and the pairs' ids.

    Raises:
        CurationError: as `vote_and_flip_files`.
    """
    ids = _column(pairs, "pair_id")
    refuse_unusable_ids(ids, "pairs")
    return _with_scores(_sides(pairs), scores).margins(), ids


def _sides(pairs: Path) -> SideScores:
    """Both sides of all pairs of a file, without a score yet."""
    return SideScores(_column(pairs, "chosen_id"), _column(pairs, "rejected_id"))


def _with_scores(sides: SideScores, scores: Sequence[Path]) -> SideScores:
    columns = ("response_id", "voter", "score")
    for file in scores:
        _require(file, columns)
    for batch in read_ahead(scores, _SCORE_ROWS, columns, dictionaries=("voter",)):
        sides.add(to_frame(pa.Table.from_batches([batch])))
    return sides


def _column(file: Path, name: str) -> pd.Series:
    _require(file, [name])
    with pq.ParquetFile(file) as reader:
        return to_frame(plain_strings(reader.read([name])))[name]


def _require(file: Path, columns: Sequence[str]) -> None:
    """Raise CurationError where a file is no Parquet file that can be read, or lacks a column."""
    try:
        names = pq.read_schema(file).names
    except (OSError, pa.ArrowException) as error:
        raise CurationError(f"{file} cannot be read: {error}") from error
    for name in columns:
        if name not in names:
            raise CurationError(f"{file}: there is no column {name!r}, only {names}")


def _rewrite(sources: Sequence[Path], output: Path, kinds: Mapping[str, str], change: Change) -> dict[str, int]:
    """Pass pairs through `change` into a folder of tables that appears whole; returns the rows written by name."""
    try:
        target = replaceable(output, MARKER, "output of curation")
    except OutputFolderError as error:
        raise CurationError(str(error)) from error
    for source in sources:
        _require(source, CARRIED)
    with atomic_directory(target) as folder:
        counts = rewrite(sources, folder, kinds, change)
        mark(folder, MARKER)
    return counts
