"""`clean_preferences` on files: tables in, and a folder with the cleaned pairs and the outcome of every pair out.

What belongs here: formats and the folder. What does not: any decision about a pair (`preferences`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from dt2it_pipeline.curate.out_of_core.published_steps import MARKER
from dt2it_pipeline.curate.preferences import CleanedPreferences, clean_preferences
from dt2it_pipeline.curate.voters.margins import CurationError
from dt2it_pipeline.human_review.audit_answers import load_audit
from dt2it_pipeline.storage.atomic import atomic_directory, write_parquet
from dt2it_pipeline.storage.output_folder import OutputFolderError, mark, replaceable

_FORMATS = ".parquet, .csv, .tsv, .jsonl or .json, also with .gz, .zst, .bz2 or .xz"


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
            It holds pairs.parquet (the pairs that stay, sides swapped where they were flipped, with `probability`),
            outcomes.parquet (every pair) and wanted.parquet (pairs that are worth a judge call).
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
    carried = {name: given[name].to_numpy() for name in ("source", "row_id") if name in given}
    with atomic_directory(target) as folder:
        write_parquet(kept, folder / "pairs.parquet")
        write_parquet(cleaned.pairs.assign(**carried), folder / "outcomes.parquet")
        write_parquet(cleaned.wanted, folder / "wanted.parquet")
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
    """The rows of a table in a file.

    Raises:
        CurationError: there is no such file, its format is not known, or it cannot be read.
    """
    kinds = [suffix for suffix in file.suffixes if suffix.lower() not in (".gz", ".zst", ".bz2", ".xz")]
    kind = kinds[-1].lower() if kinds else ""
    if not file.is_file():
        raise CurationError(f"there is no file {file}")
    try:
        if kind == ".parquet":
            found = pd.read_parquet(file)
        elif kind in (".csv", ".tsv"):
            texts = {name: "str" for name in ("pair_id", "chosen_id", "rejected_id", "response_id", "better_id")}
            found = pd.read_csv(file, sep="\t" if kind == ".tsv" else ",", dtype=texts, encoding="utf-8-sig")
        elif kind in (".jsonl", ".json"):
            found = pd.read_json(file, lines=kind == ".jsonl", dtype=False, convert_dates=False)
        else:
            raise CurationError(f"{file}: the format is not known by the name; use {_FORMATS}")
    except (OSError, ValueError, ImportError) as error:
        if isinstance(error, CurationError):
            raise
        raise CurationError(f"{file} cannot be read: {error}; give {_FORMATS}") from error
    return found.set_axis(found.columns.astype(str), axis=1)
