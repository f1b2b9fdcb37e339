"""What people say about contested pairs: their answers are read, kept, and decide.

    python -m dt2it_pipeline.export --round 1 --undecided --format label_studio --output FOLDER
    python -m dt2it_pipeline.curate.people ANSWERS.json [--home DT2IT_HOME]

A pair that people have voted on is theirs to decide: no judge is asked about it. The next run of a round in which it is
contested heeds their votes; so run the round again. A person's later answer replaces the earlier one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from dt2it_pipeline import records
from dt2it_pipeline.curate.frames import select_rows
from dt2it_pipeline.curate.steps import AnnotationResult, resolve_annotations
from dt2it_pipeline.export.people import BETTER, FIRST, SECOND, TIE
from dt2it_pipeline.recipe import artifact_home
from dt2it_pipeline.records import RecordError
from dt2it_pipeline.store import read_parquet, write_parquet

_KIND = "people_votes"


class AnswersError(ValueError):
    """A file of answers cannot be read; the message says why and what is expected."""


@dataclass(frozen=True)
class Answers:
    """Votes (rows of kind `people_votes`, a person's last one per pair), and what was no vote: place and reason."""

    votes: list[dict[str, Any]]
    unusable: list[tuple[str, str]]


def read_answers(file: Path) -> Answers:
    """Read what people did: Label Studio's export as JSON, or Argilla's records.json.

    Raises:
        AnswersError: the file is neither.
    """
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AnswersError(f"{file} cannot be read: {error}") from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise AnswersError(f"{file} holds no list of tasks; export as JSON from Label Studio, or by Argilla's to_disk")
    last: dict[tuple[str, str], dict[str, Any]] = {}
    unusable: list[tuple[str, str]] = []
    for place, entry in enumerate(entries):
        try:
            about, said = _label_studio(entry) if "annotations" in entry else _argilla(entry)
            ids = {FIRST: _text(about["first_id"]), SECOND: _text(about["second_id"]), TIE: None}
            pair = _text(about["pair_id"])
            for person, choice in said:
                if choice not in ids:
                    unusable.append((f"entry {place}", f"{person} chose {choice!r}, which is none of {', '.join(ids)}"))
                    continue
                last[pair, person] = {"pair_id": pair, "person": person, "preferred_id": ids[choice]}
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            unusable.append((f"entry {place}", f"not as it was exported: {type(error).__name__} {error}"))
    if entries and not last and len(unusable) == len(entries):
        raise AnswersError(f"{file} is neither Label Studio's JSON nor Argilla's records.json: {unusable[0][1]}")
    return Answers(list(last.values()), unusable)


def keep_answers(home: Path, votes: Sequence[Mapping[str, Any]]) -> int:
    """Add votes to those that the artifact home keeps; returns how many it holds then.

    Raises:
        OSError: it cannot be written.
        RecordError: what lies there is no table of votes.
    """
    kept = {(row["pair_id"], row["person"]): row for row in _kept(home)}
    kept |= {(row["pair_id"], row["person"]): dict(row) for row in votes}
    write_parquet(records.table([kept[key] for key in sorted(kept)], _KIND), _file(home))
    return len(kept)


def people_votes(home: Path, pairs: pd.DataFrame) -> pa.Table:
    """Kept votes on these pairs as a table of kind `votes`.

    A vote for a response that is no side of the pair (another pair of the same id there cannot be) is null.
    """
    rows = _kept(home)
    sides = {pair: (chosen, rejected) for pair, chosen, rejected in zip(
        pairs["pair_id"], pairs["chosen_id"], pairs["rejected_id"], strict=True
    )}  # fmt: skip
    votes = []
    for row in rows:
        if row["pair_id"] in sides:
            verdicts = dict(zip(sides[row["pair_id"]], ("chosen", "rejected"), strict=True)) | {None: "tie"}
            verdict = verdicts.get(row["preferred_id"])
            votes.append(
                {"pair_id": row["pair_id"], "judge": f"person:{row['person']}", "order": "people", "verdict": verdict}
            )
    return records.table(votes, "votes")


def decide_by_people(contested: pd.DataFrame, votes: pd.DataFrame) -> tuple[AnnotationResult, pd.DataFrame]:
    """Settle the pairs that people have voted on: the majority decides, a tie drops the pair.

    Args:
        contested: pairs as step 2 returns them.
        votes: pair_id, judge, order, verdict, as of `people_votes`.

    Returns:
        Their part, with `strength` the difference of people's votes, and the pairs without a vote of theirs.
    """
    usable = votes[votes["verdict"].notna()]
    theirs = contested["pair_id"].isin(set(usable["pair_id"])).to_numpy(dtype=bool)
    return resolve_annotations(select_rows(contested, theirs), usable, None), select_rows(
        contested, np.logical_not(theirs)
    )


def _label_studio(task: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[tuple[str, Any]]]:
    """What a task is about, and who chose what, the latest last."""
    said: list[tuple[str, str, Any]] = []
    for annotation in task["annotations"]:
        if annotation.get("was_cancelled"):
            continue
        by = annotation.get("completed_by")
        person = str(by.get("email") or by["id"] if isinstance(by, dict) else by)
        for result in annotation["result"]:
            if result.get("from_name") == BETTER:
                when = str(annotation.get("updated_at") or annotation.get("created_at") or "")
                said.append((when, person, result["value"]["choices"][0]))
    return task["data"], [(person, choice) for _, person, choice in sorted(said, key=lambda each: each[0])]


def _argilla(record: Mapping[str, Any]) -> tuple[Mapping[str, Any], Iterator[tuple[str, Any]]]:
    responses = record["responses"].get(BETTER) or []
    return record["metadata"], ((str(answer["user_id"]), answer["value"]) for answer in responses)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"an id must be text, found {value!r}")
    return value


def _file(home: Path) -> Path:
    return home / f"{_KIND}.parquet"


def _kept(home: Path) -> list[dict[str, Any]]:
    return read_parquet(_file(home), _KIND).to_pylist() if _file(home).exists() else []


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m dt2it_pipeline.curate.people",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("answers", type=Path, help="Label Studio's export as JSON, or Argilla's records.json")
    parser.add_argument("--home", type=Path, default=artifact_home(), help="artifact home; by default DT2IT_HOME")
    given = parser.parse_args(arguments)
    try:
        found = read_answers(given.answers)
        total = keep_answers(given.home, found.votes)
    except (AnswersError, RecordError) as error:
        raise SystemExit(f"error: {error}") from None
    except OSError as error:
        raise SystemExit(f"error: cannot write {_file(given.home)}: {error}") from None
    people, pairs = ({row[name] for row in found.votes} for name in ("person", "pair_id"))
    print(f"{len(found.votes)} votes of {len(people)} people on {len(pairs)} pairs; {_file(given.home)} holds {total}")
    for place, reason in found.unusable:
        print(f"no vote: {place}: {reason}")
    if found.votes:
        print("Run the round again: what it has made already is used, and people's votes decide the pairs they are on.")


if __name__ == "__main__":
    main()
