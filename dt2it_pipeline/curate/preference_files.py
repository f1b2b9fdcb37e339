"""`clean_preferences` on files: tables in, and a folder with the cleaned pairs and the outcome of every pair out.

What belongs here: formats and the folder. What does not: any decision about a pair (`preferences`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from dt2it_pipeline.curate.evidence_table import FILE
from dt2it_pipeline.curate.out_of_core.published_steps import MARKER
from dt2it_pipeline.curate.preferences import CleanedPreferences, clean_preferences
from dt2it_pipeline.curate.voters.margins import CurationError
from dt2it_pipeline.human_review.audit_answers import load_audit
from dt2it_pipeline.human_review.own_tables import CHOSEN, REJECTED, blind_id
from dt2it_pipeline.storage.atomic import atomic_directory, write_parquet
from dt2it_pipeline.storage.output_folder import OutputFolderError, mark, replaceable
from dt2it_pipeline.storage.table_files import TableFileError, as_keys, read_table_file


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
    given = _read(pairs)
    voted = None if votes is None else _votes_of(_read(votes), judges)
    answers = None if audit is None else load_audit(audit)
    if answers is not None:
        sides = (settings.get("chosen"), settings.get("rejected"))
        answers = replace(answers, table=_named_sides(answers.table, given, *sides))
    cleaned = clean_preferences(
        given,
        pd.concat([_read(file) for file in scores], ignore_index=True) if scores else None,
        voted,
        None if answers is None else answers.table,
        trusted=None if trusted is None else _read(trusted),
        **settings,
    )
    if answers is not None and answers.unusable:
        place, reason = answers.unusable[0]
        unread = f"{audit}: {len(answers.unusable)} rows cannot be used; the first, {place}: {reason}"
        cleaned = replace(cleaned, notes=(unread, *cleaned.notes))
    if answers is not None and answers.counts["unanswered"]:
        left = f"{audit}: {answers.counts['unanswered']} rows have no answer yet"
        cleaned = replace(cleaned, notes=(left, *cleaned.notes))
    kept = cleaned.apply(given)
    if "probability" in given:
        own = f"{pairs} has a column `probability` of its own, which is kept; the model's is `{list(kept)[-1]}`"
        cleaned = replace(cleaned, notes=(*cleaned.notes, own))
    carried = {name: given[name].to_numpy() for name in ("source", "row_id") if name in given}
    with atomic_directory(target) as folder:
        write_parquet(kept, folder / "pairs.parquet")
        write_parquet(cleaned.pairs.assign(**carried), folder / "outcomes.parquet")
        write_parquet(cleaned.wanted, folder / "wanted.parquet")
        cleaned.evidence().write(folder / FILE)
        mark(folder, MARKER)
    return cleaned


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


def _named_sides(table: pd.DataFrame, pairs: pd.DataFrame, chosen: str | None, rejected: str | None) -> pd.DataFrame:
    """Answers with the sides as a table without ids of responses has them: `chosen` and `rejected`.

    People who check such a table know its sides by `blind_id`.
    """
    columns = {CHOSEN: chosen or CHOSEN, REJECTED: rejected or REJECTED}
    if "chosen_id" in pairs or not set(columns.values()) <= set(pairs.columns):
        return table
    keys = as_keys(pairs["pair_id"] if "pair_id" in pairs else pd.Series(range(len(pairs))))
    row_of = {key: row for row, key in enumerate(keys)}
    named = []
    for pair, better in zip(as_keys(table["pair_id"]), table["better_id"], strict=True):
        sides: dict[str, str] = {}
        if (row := row_of.get(pair)) is not None:
            sides = {blind_id(pair, str(pairs[column].iloc[row])): side for side, column in columns.items()}
        named.append(better if pd.isna(better) else sides.get(better, better))
    return table.assign(better_id=pd.Series(named, table.index, dtype="str"))
