"""`clean_preferences` on files: tables in, and a folder with the cleaned pairs and the outcome of every pair out.

What belongs here: formats and the folder. What does not: any decision about a pair (`preferences`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dt2it_pipeline.curate.evidence_table import FILE
from dt2it_pipeline.curate.given_pairs import GivenPairs, GivenScores, PairFrame, ScoreFrame
from dt2it_pipeline.curate.id_index import IdIndex, present
from dt2it_pipeline.curate.out_of_core.preference_streams import PairFile, ScoreFiles
from dt2it_pipeline.curate.out_of_core.published_steps import MARKER
from dt2it_pipeline.curate.preferences import CleanedPreferences, clean_given, listed
from dt2it_pipeline.curate.voters.margins import CurationError
from dt2it_pipeline.human_review.audit_answers import load_audit
from dt2it_pipeline.human_review.own_tables import CHOSEN, REJECTED, blind_id
from dt2it_pipeline.storage.atomic import atomic_directory, write_parquet
from dt2it_pipeline.storage.output_folder import OutputFolderError, mark, replaceable
from dt2it_pipeline.storage.table_files import TableFileError, key_strings, read_table_file

_DECIDING = ("pair_id", "chosen_id", "rejected_id", "source", "row_id")


def clean_preference_files(
    pairs: Path,
    output: Path,
    scores: Sequence[Path] = (),
    votes: Path | None = None,
    audit: Path | None = None,
    trusted: Path | None = None,
    judges: Sequence[str] = (),
    **settings: Any,
) -> CleanedPreferences:
    """`clean_preferences` on files.

    Args:
        pairs: table of pairs.
        output: folder to make, which appears whole or not at all; an earlier output there is replaced, nothing else is.
            It holds pairs.parquet (the pairs that stay, sides swapped where they were flipped, with `probability`, or
            `label_probability` where the table has a column `probability`),
            outcomes.parquet (every pair), wanted.parquet (pairs that are worth a judge call) and
            cleaning_evidence.parquet (every voter's margin and every judge's verdict, for the review page).
        scores: tables of scores.
        votes: table of votes.
        audit: checked pairs: a table of pair_id and better_id, or what people filled in of `dt2it review sample`.
        trusted: table of pairs whose label is right.
        judges: whose votes count; all that voted when empty.
        **settings: of `clean_preferences`.

    Raises:
        CurationError: as `clean_preferences`; a file cannot be read; or `output` holds something else.
        AnswersError, AuditError: the audit cannot be read.
    """
    try:
        target = replaceable(output, MARKER, "output of curation")
    except OutputFolderError as error:
        raise CurationError(str(error)) from error
    with closing(_pairs_of(pairs, settings)) as given:
        voted = None if votes is None else _votes_of(_read(votes), judges)
        answers = None if audit is None else load_audit(audit)
        if answers is not None:
            sides = (settings.get("chosen"), settings.get("rejected"))
            answers = replace(answers, answers=_named_sides(answers.answers, given, *sides))
        cleaned = clean_given(
            given,
            _scores_of(scores),
            voted,
            None if answers is None else answers.answers,
            trusted=None if trusted is None else _read(trusted),
            **settings,
        )
        if answers is not None and answers.unusable:
            place, reason = answers.unusable[0]
            unread = f"{audit}: {len(answers.unusable)} rows cannot be used; the first, {place}: {reason}"
            cleaned = replace(cleaned, notes=(unread, *cleaned.notes))
        if answers is not None and answers.counts["unanswered"]:
            unanswered = answers.counts["unanswered"]
            left = f"{audit}: {unanswered} {'row has' if unanswered == 1 else 'rows have'} no answer yet"
            cleaned = replace(cleaned, notes=(left, *cleaned.notes))
        ours = cleaned.probability_column(given.columns)
        if "probability" in given.columns:
            own = f"{pairs} has a column `probability` of its own, which is kept; the model's is `{ours}`"
            cleaned = replace(cleaned, notes=(*cleaned.notes, own))
        with atomic_directory(target) as folder, ThreadPoolExecutor(1) as beside:
            kept = beside.submit(_write_kept, cleaned, given, folder / "pairs.parquet")
            carried = {name: _carried(given.frame[name]) for name in ("source", "row_id") if name in given.columns}
            write_parquet(cleaned.pairs.assign(**carried), folder / "outcomes.parquet")
            write_parquet(cleaned.wanted, folder / "wanted.parquet")
            cleaned.evidence().write(folder / FILE)
            kept.result()
            mark(folder, MARKER)
    return cleaned


def _pairs_of(file: Path, settings: Mapping[str, Any]) -> GivenPairs:
    """The table of pairs, without its texts where that can be."""
    sides = settings.get("chosen") or CHOSEN, settings.get("rejected") or REJECTED
    scored = [listed(settings.get(name, ())) for name in ("chosen_scores", "rejected_scores")]
    needed = (*_DECIDING, *scored[0], *scored[1])
    return PairFile.opened(file, needed, sides, [sides, *zip(*scored, strict=False)]) or PairFrame(_read(file))


def _scores_of(files: Sequence[Path]) -> GivenScores | None:
    if not files:
        return None
    opened = ScoreFiles.opened(files)
    return opened or ScoreFrame(pd.concat([_read(file) for file in files], ignore_index=True))


def _write_kept(cleaned: CleanedPreferences, given: GivenPairs, file: Path) -> None:
    """Write the pairs that stay, as `CleanedPreferences.apply` makes them."""
    if not isinstance(given, PairFile):
        write_parquet(cleaned.apply(given.frame), file)
        return
    flipped, stays = cleaned.pairs["outcome"] == "flipped", cleaned.pairs["outcome"] != "dropped"
    added = {cleaned.probability_column(given.columns): cleaned.pairs["probability"].to_numpy()}
    given.write(file, cleaned.swapped(given.columns), flipped.to_numpy(bool), stays.to_numpy(bool), added)


def _carried(column: pd.Series) -> Any:
    """A column beside the outcomes, by the number of the row."""
    return column.array if isinstance(column.dtype, pd.StringDtype) else column.to_numpy()


def _votes_of(votes: pd.DataFrame, judges: Sequence[str]) -> pd.DataFrame:
    if not judges:
        return votes
    there = set(votes["judge"].dropna().astype(str)) if "judge" in votes else set()
    if unknown := sorted(set(judges) - there):
        names = ", ".join(map(repr, unknown))
        raise CurationError(f"votes: there is no judge {names}; there are: {', '.join(sorted(there)) or 'none'}")
    return votes[votes["judge"].astype(str).isin(judges)]


def _read(file: Path) -> pd.DataFrame:
    """The rows of a table in a file. Raises CurationError where it cannot be read."""
    try:
        return read_table_file(file)
    except TableFileError as error:
        raise CurationError(str(error)) from error


def _named_sides(table: pd.DataFrame, pairs: GivenPairs, chosen: str | None, rejected: str | None) -> pd.DataFrame:
    """Answers with the sides as a table without ids of responses has them: `chosen` and `rejected`.

    People who check such a table know its sides by `blind_id`.
    """
    columns = {CHOSEN: chosen or CHOSEN, REJECTED: rejected or REJECTED}
    if "chosen_id" in pairs.columns or not set(columns.values()) <= set(pairs.columns):
        return table
    frame = pairs.frame
    keys = key_strings(frame["pair_id"] if "pair_id" in frame else pd.Series(np.arange(len(frame))))
    asked = key_strings(table["pair_id"])
    rows = np.flatnonzero(present(keys) & (IdIndex(asked[asked.notna()]).positions(keys) >= 0))
    texts = pairs.cells(rows, list(dict.fromkeys(columns.values())))
    text_of = {key: place for place, key in enumerate(keys.iloc[rows])}
    named = []
    for pair, better in zip(asked, table["better_id"], strict=True):
        sides: dict[str, str] = {}
        if (row := text_of.get(pair)) is not None:
            sides = {blind_id(pair, str(texts[column].iloc[row])): side for side, column in columns.items()}
        named.append(better if pd.isna(better) else sides.get(better, better))
    return table.assign(better_id=pd.Series(named, table.index, dtype="str"))
