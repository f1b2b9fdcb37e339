"""People's answers about uncertain pairs: they are read, kept, and decide.

    dt2it review export --round 1 --format label_studio --output FOLDER
    dt2it review import ANSWERS.json [--home DT2IT_HOME]

A pair that people have voted on is theirs to decide: no judge is asked about it. The next run of a round heeds their
votes, on verified pairs too; so run the round again. What is imported later replaces the same person's answer about the
same pair before; nothing is taken back by an answer that is missing. Who a person is does not stay known: names and
addresses become a short hash, since votes travel with exported pairs.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from dt2it_pipeline.errors import UserError
from dt2it_pipeline.human_review.tasks import AUDIT, BETTER, FIRST, PERSON, SECOND, TIE
from dt2it_pipeline.storage import content_ids, records, schemas
from dt2it_pipeline.storage.artifacts import Store
from dt2it_pipeline.storage.atomic import write_parquet
from dt2it_pipeline.storage.locks import exclusive
from dt2it_pipeline.storage.schemas import RecordError

_KIND = "people_votes"
_CHECKED = ("contested_pairs", "verified_pairs")  # every pair that a round may put to judges
CANCELLED, UNFINISHED = "annotations that were cancelled", "records that are not completed"
_MALFORMED = (KeyError, TypeError, AttributeError, IndexError, ValueError)


class AnswersError(UserError, ValueError):
    """A file of answers, or of kept votes, cannot be read; the message says why and what to do."""

    help_page: ClassVar[str] = "troubleshooting#answers"


@dataclass(frozen=True)
class _Answer:
    """One answer: when, of whom (a pseudonym), and what was chosen."""

    when: datetime
    person: str
    choice: str


@dataclass(frozen=True)
class Answers:
    """Votes (rows of kind `people_votes`, a person's last one per pair), and what was no vote.

    `audit` of a vote is the draw that its task came from, null for a task that was not drawn at random. `unusable`:
    place and reason of what is malformed; `unfinished`: how much people took back or have not finished.
    """

    votes: list[dict[str, Any]]
    unusable: list[tuple[str, str]]
    unfinished: Mapping[str, int] = field(default_factory=dict)


def read_answers(file: Path) -> Answers:
    """Read what people did: Label Studio's export as JSON, or Argilla's records.json.

    Raises:
        AnswersError: the file is neither.
    """
    try:
        entries = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise AnswersError(
            f"{file} cannot be read: {error}; give Label Studio's export as JSON, or Argilla's records.json"
        ) from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise AnswersError(f"{file} holds no list of tasks; export as JSON from Label Studio, or by Argilla's to_disk")
    last: dict[tuple[str, str], dict[str, Any]] = {}
    unusable: list[tuple[str, str]] = []
    unfinished: Counter[str] = Counter()
    for place, entry in enumerate(entries):
        try:
            if "annotations" not in entry and "responses" not in entry:
                raise ValueError(
                    "no annotations and no responses; export as JSON, not JSON-MIN, once people have answered"
                )
            about, answers, read = (
                (entry["data"], entry["annotations"], _label_studio)
                if "annotations" in entry
                else _argilla_record(entry)
            )
            ids = {FIRST: _text(about["first_id"]), SECOND: _text(about["second_id"]), TIE: None}
            pair = _text(about["pair_id"])
            drawn = None if about.get(AUDIT) is None else _text(about[AUDIT])
            all_answers = list(answers)
            unfinished.update(_unfinished(entry))
        except _MALFORMED as error:
            unusable.append((f"entry {place}", f"not as the tool exports it: {error}"))
            continue
        by_time: list[_Answer] = []
        for answer in all_answers:
            try:
                by_time += read(answer)
            except _MALFORMED as error:
                unusable.append((f"entry {place}", f"an answer is malformed: {type(error).__name__} {error}"))
        for given in sorted(by_time, key=lambda each: each.when):
            if given.choice not in ids:
                fault = f"{given.choice!r} was chosen, which is none of {', '.join(ids)}"
                unusable.append((f"entry {place}", fault))
                continue
            vote = {"pair_id": pair, "person": given.person, "preferred_id": ids[given.choice], AUDIT: drawn}
            last[pair, given.person] = vote
    if entries and not last and len(unusable) == len(entries):
        raise AnswersError(
            f"no answer in {file} can be used, which Label Studio's JSON or Argilla's records.json should hold; the "
            f"first: {unusable[0][1]}"
        )
    return Answers(list(last.values()), unusable, unfinished)


def keep_answers(home: Path, votes: Sequence[Mapping[str, Any]]) -> int:
    """Add votes to those that the artifact home keeps; returns how many it holds then.

    A vote that was given in an audit stays marked as such where the same person answers the pair again elsewhere.

    Raises:
        OSError: it cannot be written.
        AnswersError: what lies there is no table of votes.
    """
    with exclusive(home / ".people_votes.lock", on_wait=print):  # two may import at once
        kept = {(row["pair_id"], row["person"]): row for row in kept_votes(home)}
        for row in votes:
            key = row["pair_id"], row["person"]
            drawn = row.get(AUDIT) or kept.get(key, {}).get(AUDIT)
            kept[key] = {**row, AUDIT: drawn}
        write_parquet(schemas.table([kept[key] for key in sorted(kept)], _KIND), votes_file(home))
    return len(kept)


def people_votes(home: Path, pairs: pd.DataFrame) -> pa.Table:
    """Kept votes on these pairs as a table of kind `votes`.

    A vote for a response that is no side of the pair (a file of answers may hold anything) has no verdict: null.
    """
    sides = {pair: (chosen, rejected) for pair, chosen, rejected in zip(
        pairs["pair_id"], pairs["chosen_id"], pairs["rejected_id"], strict=True
    )}  # fmt: skip
    votes = []
    for row in kept_votes(home):
        if row["pair_id"] in sides:
            verdicts = dict(zip(sides[row["pair_id"]], ("chosen", "rejected"), strict=True)) | {None: "tie"}
            verdict = verdicts.get(row["preferred_id"])
            votes.append(
                {"pair_id": row["pair_id"], "judge": f"{PERSON}{row['person']}", "order": "people", "verdict": verdict}
            )
    return schemas.table(votes, "votes")


def unknown_pairs(home: Path, votes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Ids of the pairs voted on that no round of the artifact home knows, in their order.

    Raises:
        StoreError: a round's pairs cannot be read.
    """
    store = Store(home)
    known: set[str] = set()
    for name in _CHECKED:
        for number in store.partitions(name):
            known.update(store.read(name, number)["pairs"]["pair_id"].to_pylist())
    return [pair for pair in dict.fromkeys(row["pair_id"] for row in votes) if pair not in known]


def _unfinished(entry: Mapping[str, Any]) -> list[str]:
    """What of an entry is not counted as an answer, by the tool's own word."""
    if "annotations" in entry:
        return [CANCELLED for annotation in entry["annotations"] if _was_cancelled(annotation)]
    return [] if entry.get("status") == "completed" else [UNFINISHED]


def _was_cancelled(annotation: Any) -> bool:
    return isinstance(annotation, Mapping) and bool(annotation.get("was_cancelled"))


def _label_studio(annotation: Mapping[str, Any]) -> list[_Answer]:
    """The answer in one annotation of a task: none where it was cancelled."""
    if _was_cancelled(annotation):
        return []
    by = annotation.get("completed_by")
    who = (by.get("email") or by["id"]) if isinstance(by, dict) else by
    if who is None:  # an anonymous export
        who = f"annotation {annotation['id']}"
    when = _time(annotation.get("updated_at") or annotation.get("created_at"))
    chosen = [result["value"]["choices"][0] for result in annotation["result"] if result.get("from_name") == BETTER]
    return [_Answer(when, pseudonym("label_studio", who), _text(choice)) for choice in chosen]


def _argilla_record(record: Mapping[str, Any]) -> tuple[Any, list[Any], Callable[[Any], list[_Answer]]]:
    """Metadata and answers of a record; its answers count once it is completed."""
    answers = (record["responses"].get(BETTER) or []) if record.get("status") == "completed" else []
    return record["metadata"], answers, _argilla


def _argilla(answer: Mapping[str, Any]) -> list[_Answer]:
    return [_Answer(_time(None), pseudonym("argilla", answer["user_id"]), _text(answer["value"]))]


def pseudonym(tool: str, who: Any) -> str:
    """Short hash that stands for a person of a tool: 10 hex digits."""
    return content_ids.content_hash(tool, str(who))[:10]


def _time(text: Any) -> datetime:
    """A moment; the earliest where none is given."""
    moment = datetime.fromisoformat(text) if text else datetime.min
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"an id must be text, found {value!r}")
    if value != records.writable(value):
        raise ValueError(f"an id is not UTF-8: {value!r}")
    return value


def votes_file(home: Path) -> Path:
    """Where an artifact home keeps people's votes."""
    return home / f"{_KIND}.parquet"


def kept_votes(home: Path) -> list[dict[str, Any]]:
    """The votes that an artifact home keeps, rows of kind `people_votes`; none where there is no file.

    Raises:
        AnswersError: the file cannot be read.
    """
    file = votes_file(home)
    if not file.exists():
        return []
    try:
        # All of it at once: an import may replace the file meanwhile.
        return schemas.validate(pq.read_table(pa.BufferReader(file.read_bytes())), _KIND).to_pylist()
    except (OSError, pa.ArrowException, RecordError) as error:
        raise AnswersError(
            f"the file of people's votes {file} cannot be read: {error}; bring a copy of it back, or remove it and "
            "import the answers again"
        ) from error
