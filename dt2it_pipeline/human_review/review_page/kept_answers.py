"""Where answers of the page go: to an artifact home, or to files beside a table of one's own. Each is on disk at once.

| | of a round: in the artifact home | of a table: in the folder of answers |
| --- | --- | --- |
| answers of an audit | `people_votes.parquet`, with the audit's id | `audit.jsonl`, for `dt2it clean --audit` |
| other answers | `people_votes.parquet` | `votes.jsonl`, for `dt2it clean --votes` |
| skipped, bad image | `review_notes.jsonl` | `notes.jsonl` |
| what can be taken back | `review_journal.jsonl` | `journal.jsonl` |
| drawn pairs | `audit_pairs.parquet` | `audit_pairs.parquet` |
"""

from __future__ import annotations

import abc
import contextlib
import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from dt2it_pipeline.human_review.answers import keep_answers, kept_votes, restore_answer, votes_file
from dt2it_pipeline.human_review.audit_draws import AUDIT_PAIRS, audit_file
from dt2it_pipeline.human_review.review_page.journal import (
    NOTE,
    NOTE_FOR_VOTE,
    NOTES,
    VOTE,
    Deed,
    Journal,
    Notes,
    json_row,
    lines_of,
)
from dt2it_pipeline.human_review.review_page.row_file import ReviewError
from dt2it_pipeline.human_review.tasks import AUDIT, PERSON
from dt2it_pipeline.storage.atomic import replace_text
from dt2it_pipeline.storage.locks import exclusive

Vote = dict[str, Any]  # pair_id, person, preferred_id (None: neither), audit (None: none)
SideOf = Callable[[str, "str | None"], "str | None"]  # chosen, rejected or tie; None: the table has no such side


class NothingToUndo(ReviewError):
    """A person asked to take back an answer, and there is none that can be; the message says why."""


class KeptAnswers(Protocol):
    """What people answered; every method may be called from several threads, and by several processes."""

    samples: Path
    journal: Journal
    notes: Notes

    def votes(self, pair_id: str) -> list[Vote]:
        """The votes on a pair, of all people."""
        ...

    def by_person(self, person: str) -> dict[str, Vote]:
        """A person's votes, by pair."""
        ...

    def count(self) -> tuple[int, int, int]:
        """How many votes, people and pairs there are."""
        ...

    def keep(self, vote: Vote, weight: float | None) -> None:
        """Keep a vote. Raises OSError where it cannot be written."""
        ...

    def restore(self, pair_id: str, person: str, before: Vote | None) -> None:
        """Take a vote back: the one before stands again, or none. Raises OSError."""
        ...


def give(answers: KeptAnswers, vote: Vote, weight: float | None) -> None:
    """Keep a vote so that it can be taken back. Raises OSError."""
    pair_id, person = vote["pair_id"], vote["person"]
    with answers.journal.held():
        before = answers.by_person(person).get(pair_id)
        after = vote | {AUDIT: vote[AUDIT] or (before or {}).get(AUDIT)}
        deed = answers.journal.add(person, pair_id, VOTE, before, after)
        _or_not_done(answers, person, deed, lambda: answers.keep(vote, weight))


def give_note(answers: KeptAnswers, pair_id: str, person: str, note: str) -> bool:
    """Keep a note so that it can be taken back. Raises OSError.

    Returns:
        Whether the person had answered the pair: that answer is taken back, since who skips a pair gives no answer.
    """
    with answers.journal.held():
        vote, noted = answers.by_person(person).get(pair_id), answers.notes.by_person(person).get(pair_id)
        if vote is None:
            deed = answers.journal.add(person, pair_id, NOTE, noted, note)
            _or_not_done(answers, person, deed, lambda: answers.notes.add(pair_id, person, note))
            return False
        deed = answers.journal.add(person, pair_id, NOTE_FOR_VOTE, {**vote, "note": noted}, note)

        def keep() -> None:
            # In this order: a process that ends in between leaves an answer that counts, and loses none.
            answers.notes.add(pair_id, person, note)
            answers.restore(pair_id, person, None)

        _or_not_done(answers, person, deed, keep)
        return True


def undo(answers: KeptAnswers, person: str) -> str:
    """Take the last answer of a person back; returns the id of its pair, which may be gone.

    Raises:
        NothingToUndo: there is none, or what stands there was not given here.
        OSError: it cannot be written.
    """
    with answers.journal.held():
        return _undone(answers, person)


def _undone(answers: KeptAnswers, person: str) -> str:
    """See `undo`."""
    while (deed := answers.journal.last(person)) is not None:
        now = _now(answers, person, deed)
        if _same(now, deed.after):
            if deed.kind != VOTE:
                answers.notes.add(deed.pair_id, person, _as_note(deed))
            if deed.kind != NOTE:
                answers.restore(deed.pair_id, person, _as_vote(deed, person))
            answers.journal.done_with(person, deed)
            return deed.pair_id
        answers.journal.done_with(person, deed)
        if not _same(now, deed.before):
            raise NothingToUndo(
                f"Your answer about pair {deed.pair_id} was changed elsewhere since, by an import or on another page: "
                "it stays as it is. Undo again to take back the one before."
            )
        # Else a server was killed before it had kept this one. The note may be there, without its effect on the vote.
        noted = answers.notes.by_person(person).get(deed.pair_id)
        if deed.kind == NOTE_FOR_VOTE and noted == deed.after:
            answers.notes.add(deed.pair_id, person, _as_note(deed))
    raise NothingToUndo("There is nothing to take back. Answer a pair again to change it.")


def _now(answers: KeptAnswers, person: str, deed: Deed) -> Any:
    """What stands where a deed has written, a vote or a note. NOTE_FOR_VOTE takes the vote away last."""
    vote, note = (found.by_person(person).get(deed.pair_id) for found in (answers, answers.notes))
    if deed.kind == VOTE or (deed.kind == NOTE_FOR_VOTE and vote is not None):
        return vote
    return note


def _or_not_done(answers: KeptAnswers, person: str, deed: Deed, keep: Callable[[], object]) -> None:
    try:
        keep()
    except Exception:
        with contextlib.suppress(OSError):  # a disk that is full: `undo` sees that the answer is not there
            answers.journal.done_with(person, deed)
        raise


def _same(now: Any, known: Any) -> bool:
    """Whether a vote (or a note) is the one that a journal knows."""
    if isinstance(now, Mapping) and isinstance(known, Mapping):
        return all(now.get(name) == known.get(name) for name in ("preferred_id", AUDIT))
    return bool(now == known)


def _as_note(deed: Deed) -> str | None:
    """The note before a deed; None where there was none, or where the line of the journal was changed by others."""
    before = deed.before.get("note") if isinstance(deed.before, Mapping) else deed.before
    return before if before in NOTES else None


def _as_vote(deed: Deed, person: str) -> Vote | None:
    """The vote before a deed; None where there was none, or where the line of the journal was changed by others."""
    before = deed.before
    if not isinstance(before, Mapping) or not isinstance(before.get("preferred_id"), str | None):
        return None
    made = {"pair_id": deed.pair_id, "person": person, "preferred_id": before.get("preferred_id")}
    audit, weight, verdict = (before.get(name) for name in (AUDIT, "weight", "verdict"))
    made |= {AUDIT: audit if isinstance(audit, str) else None}
    made |= {"weight": weight if isinstance(weight, int | float) else None}
    return made | {"verdict": verdict if isinstance(verdict, str) else None}


class _Indexed(abc.ABC):
    """Votes that are read again when the file has changed, by pair and by person."""

    def __init__(self) -> None:
        self._stamp: Any = None
        self._by_pair: dict[str, list[Vote]] = {}
        self._by_person: dict[str, dict[str, Vote]] = {}
        self._guard = threading.Lock()

    def votes(self, pair_id: str) -> list[Vote]:
        """See KeptAnswers."""
        with self._guard:
            self._refresh()
            return list(self._by_pair.get(pair_id, ()))

    def by_person(self, person: str) -> dict[str, Vote]:
        """See KeptAnswers."""
        with self._guard:
            self._refresh()
            return dict(self._by_person.get(person, {}))

    def count(self) -> tuple[int, int, int]:
        """See KeptAnswers."""
        with self._guard:
            self._refresh()
            return sum(map(len, self._by_pair.values())), len(self._by_person), len(self._by_pair)

    def _refresh(self) -> None:
        stamp = tuple(_stamp(file) for file in self._files())
        if stamp == self._stamp:
            return
        self._by_pair, self._by_person = {}, {}
        for vote in self._all():
            self._by_pair.setdefault(vote["pair_id"], []).append(vote)
            self._by_person.setdefault(vote["person"], {})[vote["pair_id"]] = vote
        self._stamp = stamp

    @abc.abstractmethod
    def _files(self) -> tuple[Path, ...]:
        """Where the votes lie."""

    @abc.abstractmethod
    def _all(self) -> list[Vote]:
        """The votes in these files, in their order."""


class HomeAnswers(_Indexed):
    """Answers in an artifact home."""

    def __init__(self, home: Path) -> None:
        super().__init__()
        self._home, self.samples = home, audit_file(home)
        self.notes = Notes(home / "review_notes.jsonl")
        self.journal = Journal(home / "review_journal.jsonl")

    def keep(self, vote: Vote, weight: float | None) -> None:
        """See KeptAnswers."""
        keep_answers(self._home, [vote])

    def restore(self, pair_id: str, person: str, before: Vote | None) -> None:
        """See KeptAnswers."""
        kept = None if before is None else {name: before[name] for name in ("pair_id", "person", "preferred_id", AUDIT)}
        restore_answer(self._home, pair_id, person, kept)

    def _files(self) -> tuple[Path, ...]:
        return (votes_file(self._home),)

    def _all(self) -> list[Vote]:
        return kept_votes(self._home)


class FolderAnswers(_Indexed):
    """Answers in a folder beside a table: audit.jsonl and votes.jsonl.

    Args:
        folder: made if absent.
        side_of: says of a pair what a side is in the table, since `dt2it clean --votes` knows sides by that.

    Raises:
        ReviewError: the folder cannot be made.
    """

    def __init__(self, folder: Path, side_of: SideOf) -> None:
        super().__init__()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ReviewError(f"the folder of answers {folder} cannot be made: {error}; name another one") from error
        self._folder, self._side_of = folder, side_of
        self.samples = folder / f"{AUDIT_PAIRS}.parquet"
        self.notes = Notes(folder / "notes.jsonl")
        self.journal = Journal(folder / "journal.jsonl")

    def keep(self, vote: Vote, weight: float | None) -> None:
        """See KeptAnswers."""
        with exclusive(self._lock, on_wait=print):
            before = self._of(vote["pair_id"], vote["person"])
            drawn = vote[AUDIT] or (before or {}).get(AUDIT)
            if weight is None and before is not None:
                weight = before.get("weight")
            self._write(vote["pair_id"], vote["person"], {**vote, AUDIT: drawn, "weight": weight})

    def restore(self, pair_id: str, person: str, before: Vote | None) -> None:
        """See KeptAnswers."""
        with exclusive(self._lock, on_wait=print):
            self._write(pair_id, person, before)

    @property
    def _lock(self) -> Path:
        return self._folder / ".answers.lock"

    def _files(self) -> tuple[Path, ...]:
        return self._folder / "audit.jsonl", self._folder / "votes.jsonl"

    def _all(self) -> list[Vote]:
        audit, other = self._files()
        found = [
            {
                "pair_id": row["pair_id"],
                "person": row["auditor"],
                "preferred_id": row["better_id"],
                AUDIT: row["audit"],
                "weight": row.get("weight"),
            }
            for row in map(json_row, lines_of(audit))
            if row is not None and _is_audit_row(row)
        ]
        found += [
            {
                "pair_id": row["pair_id"],
                "person": row["judge"].removeprefix(PERSON),
                "preferred_id": row["preferred_id"],
                AUDIT: None,
                "weight": None,
                "verdict": row.get("verdict"),
            }
            for row in map(json_row, lines_of(other))
            if row is not None and _is_vote_row(row)
        ]
        return found

    def _of(self, pair_id: str, person: str) -> Vote | None:
        return next((row for row in self._all() if (row["pair_id"], row["person"]) == (pair_id, person)), None)

    def _write(self, pair_id: str, person: str, vote: Vote | None) -> None:
        audit, other = self._files()
        # The file that gets the vote comes first: a process that ends in between leaves it in both, never in none.
        first, second = (audit, other) if vote is not None and vote[AUDIT] is not None else (other, audit)
        for file in (first, second):
            # Lines of others stay as they are, whatever has become of their pairs.
            lines = [line for line in lines_of(file) if _about(json_row(line), file == audit) != (pair_id, person)]
            if vote is not None and file == first:
                made = self._audit_row(vote) if file == audit else self._vote_row(vote)
                lines.append(json.dumps(made, ensure_ascii=False))
            if lines or file.exists():
                replace_text(file, "".join(f"{line}\n" for line in lines))

    @staticmethod
    def _audit_row(row: Vote) -> dict[str, Any]:
        made = {"pair_id": row["pair_id"], "better_id": row["preferred_id"], "auditor": row["person"]}
        return made | {AUDIT: row[AUDIT], "weight": row["weight"]}

    def _vote_row(self, row: Vote) -> dict[str, Any]:
        # Of a pair that is gone only the vote itself may know what its side was.
        verdict = self._side_of(row["pair_id"], row["preferred_id"]) or row.get("verdict")
        made = {"pair_id": row["pair_id"], "judge": f"{PERSON}{row['person']}", "verdict": verdict}
        return made | {"preferred_id": row["preferred_id"]}  # not `better_id`: `clean` knows other ids


def _about(row: Mapping[str, Any] | None, audit: bool) -> tuple[str, str] | None:
    """Pair and person of a row as this page writes it; None for rows of others."""
    if row is None or not (_is_audit_row(row) if audit else _is_vote_row(row)):
        return None
    return row["pair_id"], row["auditor"] if audit else row["judge"].removeprefix(PERSON)


def _is_audit_row(row: Mapping[str, Any] | None) -> bool:
    """Whether a row of audit.jsonl is as this page writes it."""
    return (
        row is not None
        and all(isinstance(row.get(name), str) for name in ("auditor", AUDIT))
        and isinstance(row.get("better_id", 0), str | None)
        and isinstance(row.get("weight"), int | float | None)
    )


def _is_vote_row(row: Mapping[str, Any] | None) -> bool:
    """Whether a row of votes.jsonl is as this page writes it: votes of other judges may lie there, too."""
    return (
        row is not None
        and isinstance(row.get("judge"), str)
        and row["judge"].startswith(PERSON)
        and isinstance(row.get("preferred_id", 0), str | None)
    )


def _stamp(file: Path) -> Any:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
