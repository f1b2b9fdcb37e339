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
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from dt2it_pipeline.errors import UserError
from dt2it_pipeline.human_review.tasks import AUDIT, BETTER, FIRST, PERSON, SECOND, TIE
from dt2it_pipeline.storage import content_ids, records, schemas
from dt2it_pipeline.storage.artifacts import Store
from dt2it_pipeline.storage.atomic import arrow_bytes, write_parquet
from dt2it_pipeline.storage.locks import exclusive
from dt2it_pipeline.storage.schemas import RecordError
from dt2it_pipeline.storage.table_files import plain_bytes

_KIND = "people_votes"
_CHECKED = ("contested_pairs", "verified_pairs")  # every pair that a round may put to judges
CANCELLED, UNFINISHED = "annotations that were cancelled", "records that are not completed"
DRAFTS, DISCARDED = "answers that are drafts", "answers that were discarded"
NO_CHOICE, SEVERAL_CHOICES = "no choice was made", "more than one choice was made"
_STATUSES = {"draft": DRAFTS, "discarded": DISCARDED, "submitted": None}  # of an answer in Argilla
_CREATED_BY = re.compile(r"\s*(\S+@\S+), (\d+)\s*")  # Label Studio's `created_username`: address and id
_MALFORMED = (KeyError, TypeError, AttributeError, IndexError, ValueError)


class AnswersError(UserError, ValueError):
    """A file of answers, or of kept votes, cannot be read; the message says why and what to do."""

    help_page: ClassVar[str] = "troubleshooting#answers"


class _NoVoteError(UserError):
    """A whole answer that decides nothing; the message says why."""


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
    place and reason of what is malformed, and of answers without a choice or with several; `unfinished`: how much
    people took back or have not finished.
    """

    votes: list[dict[str, Any]]
    unusable: list[tuple[str, str]]
    unfinished: Mapping[str, int] = field(default_factory=dict)


def read_answers(file: Path) -> Answers:
    """Read what people did: Label Studio's export as JSON, or Argilla's records.json.

    A person whom an export names by id here and by address there is one voter. Where Argilla writes the status of each
    answer, submitted ones count; where it does not, the answers of completed records do.

    Raises:
        AnswersError: the file is neither.
    """
    try:
        entries = json.loads(plain_bytes(file).decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise AnswersError(
            f"{file} cannot be read: {error}; give Label Studio's export as JSON, or Argilla's records.json"
        ) from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise AnswersError(f"{file} holds no list of tasks; export as JSON from Label Studio, or by Argilla's to_disk")
    last: dict[tuple[str, str], tuple[Any, dict[str, Any]]] = {}  # the answer that was given last, and when
    addresses = dict(_addresses(entries))
    unusable: list[tuple[str, str]] = []
    unfinished: Counter[str] = Counter()
    for place, entry in enumerate(entries):
        try:
            if "annotations" not in entry and "responses" not in entry:
                raise ValueError(
                    "no annotations and no responses; export as JSON, not JSON-MIN, once people have answered"
                )
            about, answers, read = (
                (entry["data"], entry["annotations"], partial(_label_studio, addresses=addresses))
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
            except _NoVoteError as error:
                unusable.append((f"entry {place}, pair {pair}", str(error)))
            except _MALFORMED as error:
                unusable.append((f"entry {place}", f"an answer is malformed: {type(error).__name__} {error}"))
        for given in sorted(by_time, key=lambda each: each.when):
            if given.choice not in ids:
                fault = f"{given.choice!r} was chosen, which is none of {', '.join(ids)}"
                unusable.append((f"entry {place}", fault))
                continue
            vote = {"pair_id": pair, "person": given.person, "preferred_id": ids[given.choice], AUDIT: drawn}
            known = last.get((pair, given.person))
            if known is None or given.when >= known[0]:
                last[pair, given.person] = (given.when, vote)
    if entries and not last and len(unusable) == len(entries):
        raise AnswersError(
            f"no answer in {file} can be used, which Label Studio's JSON or Argilla's records.json should hold; the "
            f"first: {unusable[0][1]}"
        )
    return Answers([vote for _, vote in last.values()], unusable, unfinished)


def keep_answers(home: Path, votes: Sequence[Mapping[str, Any]]) -> int:
    """Add votes to those that the artifact home keeps; returns how many it holds then.

    A vote that was given in an audit stays marked as such where the same person answers the pair again elsewhere.

    Raises:
        OSError: it cannot be written.
        AnswersError: what lies there is no table of votes.
    """
    with exclusive(_lock(home), on_wait=print):  # two may import at once
        kept = {(row["pair_id"], row["person"]): row for row in kept_votes(home)}
        for row in votes:
            key = row["pair_id"], row["person"]
            drawn = row.get(AUDIT) or kept.get(key, {}).get(AUDIT)
            kept[key] = {**row, AUDIT: drawn}
        write_parquet(schemas.table([kept[key] for key in sorted(kept)], _KIND), votes_file(home))
    return len(kept)


def restore_answer(home: Path, pair_id: str, person: str, before: Mapping[str, Any] | None) -> None:
    """Take a person's vote on a pair back: the one `before` it stands again, or none.

    Raises:
        OSError, AnswersError: as `keep_answers`.
    """
    with exclusive(_lock(home), on_wait=print):
        kept = {(row["pair_id"], row["person"]): row for row in kept_votes(home)}
        kept.pop((pair_id, person), None)
        if before is not None:
            kept[pair_id, person] = dict(before)
        write_parquet(schemas.table([kept[key] for key in sorted(kept)], _KIND), votes_file(home))


def _lock(home: Path) -> Path:
    return home / ".people_votes.lock"


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
            made = {"pair_id": row["pair_id"], "judge": f"{PERSON}{row['person']}", "order": "people"}
            fault = "the answer that was preferred is no side of the pair" if verdict is None else None
            votes.append(made | {"verdict": verdict, "fault": fault})
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
    statuses = [_status(answer) for answer in entry["responses"].get(BETTER) or []]
    found = [words for status in statuses if (words := _STATUSES.get(status or "")) is not None]
    return found if found or "submitted" in statuses or entry.get("status") == "completed" else [UNFINISHED]


def _was_cancelled(annotation: Any) -> bool:
    return isinstance(annotation, Mapping) and bool(annotation.get("was_cancelled"))


def _addresses(entries: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Id and e-mail address of each person whom Label Studio's export names by both, somewhere in it."""
    for entry in entries:
        annotations = entry.get("annotations")
        for annotation in annotations if isinstance(annotations, list) else ():
            if not isinstance(annotation, Mapping):
                continue
            by = annotation.get("completed_by")
            created = _CREATED_BY.fullmatch(str(annotation.get("created_username") or ""))
            if isinstance(by, Mapping) and by.get("email") and by.get("id") is not None:
                yield str(by["id"]), _address(by["email"])
            elif created and str(by) == created[2]:
                yield created[2], _address(created[1])


def _address(email: Any) -> str:
    return str(email).strip().casefold()


def _label_studio(annotation: Mapping[str, Any], addresses: Mapping[str, str]) -> list[_Answer]:
    """The answer in one annotation of a task: none where it was cancelled. Raises _NoVoteError."""
    if _was_cancelled(annotation):
        return []
    by = annotation.get("completed_by")
    if isinstance(by, dict):
        who = _address(by["email"]) if by.get("email") else by["id"]
    else:
        who = by if by is not None else f"annotation {annotation['id']}"  # the latter in an anonymous export
    person = pseudonym("label_studio", addresses.get(str(who), who))
    when = _time(annotation.get("updated_at") or annotation.get("created_at"))
    chosen = [
        choice
        for result in annotation["result"]
        if result.get("from_name") == BETTER
        for choice in result["value"].get("choices") or ()
    ]
    return [_Answer(when, person, _only(chosen))]


def _argilla_record(record: Mapping[str, Any]) -> tuple[Any, list[Any], Callable[[Any], list[_Answer]]]:
    """Metadata of a record, and its answers that count: submitted ones, or all once it is completed."""
    answers = record["responses"].get(BETTER) or []
    completed = record.get("status") == "completed"
    counted = [answer for answer in answers if (_status(answer) or "submitted") not in ("draft", "discarded")]
    return record["metadata"], [answer for answer in counted if completed or _status(answer)], _argilla


def _status(answer: Any) -> str | None:
    """Status of an answer in Argilla; None where there is none, as in what earlier versions of it write."""
    status = answer.get("status") if isinstance(answer, Mapping) else None
    return None if status is None else _text(status)


def _argilla(answer: Mapping[str, Any]) -> list[_Answer]:
    value = answer["value"]
    if (status := _status(answer)) is not None and status not in _STATUSES:
        raise ValueError(f"its status is {status!r}, which is none of {', '.join(_STATUSES)}")
    chosen = value if isinstance(value, list) else [] if value is None else [value]
    return [_Answer(_time(None), pseudonym("argilla", answer["user_id"]), _only(chosen))]


def _only(chosen: Sequence[Any]) -> str:
    """The one choice. Raises _NoVoteError where there is none or another beside it."""
    different = list(dict.fromkeys(_text(choice) for choice in chosen))
    if not different:
        raise _NoVoteError(NO_CHOICE)
    if len(different) > 1:
        raise _NoVoteError(f"{SEVERAL_CHOICES}: {' and '.join(different)}")
    return different[0]


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
        return schemas.validate(
            pq.read_table(arrow_bytes(file.read_bytes()), page_checksum_verification=True), _KIND
        ).to_pylist()
    except (OSError, pa.ArrowException, RecordError) as error:
        raise AnswersError(
            f"the file of people's votes {file} cannot be read: {error}; bring a copy of it back, or remove it and "
            "import the answers again"
        ) from error
