"""Files to which the page only adds lines: notes about pairs, and what people did, in its order.

By the latter each can take it back, after the server was started again, too.

A line of the journal is on disk before the answer itself is kept: a server that is killed in between leaves a line
about an answer that is not there, which `undo` passes over, and never an answer that cannot be taken back.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dt2it_pipeline.storage.locks import exclusive
from dt2it_pipeline.storage.permissions import make_private

SKIP, BAD_IMAGE = "skip", "bad_image"
NOTES = (SKIP, BAD_IMAGE)
_TAKEN_BACK = "taken back"
VOTE, NOTE, NOTE_FOR_VOTE = "vote", "note", "note for vote"
_logger = logging.getLogger(__name__)
_reported: set[Path] = set()  # files of which this process has said that a line is damaged


@dataclass(frozen=True)
class Deed:
    """An answer that a person gave.

    Attributes:
        id: of the line in the journal.
        pair_id: the pair.
        kind: VOTE, NOTE, or NOTE_FOR_VOTE, a note in whose favour a vote was taken back.
        before: what the person's vote (a dict) or note (a text) on the pair was before; None: there was none. Of
            NOTE_FOR_VOTE, the vote, with the note under `note`.
        after: what it became; of NOTE_FOR_VOTE, the note.
    """

    id: str
    pair_id: str
    kind: str
    before: Any
    after: Any


class AppendedLines:
    """JSON Lines that are only added to; what others add is seen, and no line is read twice."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._inode, self._read = -1, 0

    def add(self, row: Mapping[str, Any]) -> None:
        """Write a row with the time; it is on disk then. Raises OSError."""
        line = {**row, "time": datetime.now(UTC).isoformat(timespec="seconds")}
        make_private(self.file)
        with self.file.open("a+b") as stream:
            end = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, end - 1))
            torn = end > 0 and stream.read(1) != b"\n"  # a process was killed while it wrote
            stream.write(b"\n" * torn + json.dumps(line).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())

    def new(self) -> tuple[bool, Iterator[dict[str, Any]]]:
        """Whether the file is another one than before, and the rows about pairs that have come since the last call."""
        try:
            found = self.file.stat()
        except OSError:
            anew = self._inode != -1
            self._inode, self._read = -1, 0
            return anew, iter(())
        anew = found.st_ino != self._inode or found.st_size < self._read
        if anew:
            self._inode, self._read = found.st_ino, 0
        if found.st_size == self._read:
            return anew, iter(())
        with self.file.open("rb") as stream:
            stream.seek(self._read)
            content = stream.read()
        whole = content.rpartition(b"\n")[0]  # the last line may be half written
        self._read += len(whole) + bool(whole)
        lines = whole.decode("utf-8", "replace").split("\n")
        return anew, (row for row in map(json_row, lines) if row is not None)


class Journal:
    """What each person did and has not taken back, the last deed last. Several threads and processes may use it."""

    def __init__(self, file: Path) -> None:
        self._lines = AppendedLines(file)
        self._lock = file.with_name(f".{file.name}.lock")
        self._guard = threading.Lock()
        self._deeds: dict[str, dict[str, Deed]] = {}  # person -> id of the line -> deed

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep other servers of the same answers waiting, from looking at what there is until it is changed."""
        with exclusive(self._lock, on_wait=print):
            yield

    def add(self, person: str, pair_id: str, kind: str, before: Any, after: Any) -> Deed:
        """Note what a person is about to do. Raises OSError."""
        made = Deed(uuid.uuid4().hex, pair_id, kind, before, after)
        with self._guard:
            self._lines.add({"person": person, **vars(made)})
        return made

    def done_with(self, person: str, deed: Deed) -> None:
        """Note that a deed is taken back, or did not happen. Raises OSError."""
        with self._guard:
            self._lines.add({"person": person, "pair_id": deed.pair_id, "undone": deed.id})

    def last(self, person: str) -> Deed | None:
        """The last deed of a person; None where there is none to take back."""
        with self._guard:
            self._refresh()
            deeds = self._deeds.get(person)
            return next(reversed(deeds.values())) if deeds else None

    def _refresh(self) -> None:
        anew, rows = self._lines.new()
        if anew:
            self._deeds = {}
        for row in rows:
            person, made, undone = row.get("person"), row.get("id"), row.get("undone")
            if not isinstance(person, str):
                continue
            deeds = self._deeds.setdefault(person, {})
            if isinstance(undone, str):
                deeds.pop(undone, None)
            elif isinstance(made, str) and row.get("kind") in (VOTE, NOTE, NOTE_FOR_VOTE):
                deeds[made] = Deed(made, row["pair_id"], row["kind"], row.get("before"), row.get("after"))


class Notes:
    """Skipped pairs and bad images: a line each, which is added at the end of a file."""

    def __init__(self, file: Path) -> None:
        self._appended = AppendedLines(file)
        self._guard = threading.Lock()
        self._last: dict[tuple[str, str], str] = {}

    def add(self, pair_id: str, person: str, note: str | None) -> None:
        """Keep a note, None to take it back. Raises OSError."""
        with self._guard:
            self._appended.add({"pair_id": pair_id, "person": person, "note": note or _TAKEN_BACK})

    def by_person(self, person: str) -> dict[str, str]:
        """A person's notes, by pair."""
        with self._guard:
            self._refresh()
            return {pair: note for (pair, who), note in self._last.items() if who == person}

    def _refresh(self) -> None:
        anew, rows = self._appended.new()
        if anew:
            self._last = {}
        for row in rows:
            person, note = row.get("person"), row.get("note")
            if not (isinstance(person, str) and isinstance(note, str)):
                continue
            self._last.pop((row["pair_id"], person), None)
            if note in NOTES:
                self._last[row["pair_id"], person] = note


def json_row(line: str) -> dict[str, Any] | None:
    """A line of JSON Lines about a pair; None where it is none, such as one that was not written to its end."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("pair_id"), str) else None


def lines_of(file: Path) -> list[str]:
    """The lines of a file that are not empty; none where there is no file."""
    if not file.exists():
        return []
    lines = [line for line in file.read_text(encoding="utf-8", errors="replace").split("\n") if line.strip()]
    torn = next((number for number, line in enumerate(lines, 1) if not _is_json(line)), None)
    if torn is not None and file not in _reported:
        _reported.add(file)
        _logger.warning(
            "%s: line %d is no JSON, as where a process was killed while it wrote; that line does not count, all "
            "others do",
            file, torn,
        )  # fmt: skip
    return lines


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True
