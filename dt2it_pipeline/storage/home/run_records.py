"""Dagster's own SQLite files in an artifact home: whether they can be used, and what is lost where one cannot.

What belongs here: words about these files for a person. What does not: their content, which is Dagster's, and
artifacts, which need none of them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import ClassVar

from dt2it_pipeline.errors import UserError

_LOST = {
    "history/runs.db": "the list of runs starts anew",
    "history/runs/index.db": "the UI shows assets as not made until their next run",
    "schedules/schedules.db": "sensors and schedules are as the recipe sets them at first",
}
_WAIT = 20.0  # seconds for another process's lock


class RunRecordsError(UserError, RuntimeError):
    """A database of Dagster's cannot be used; the message names the file, what mends it, and what is lost."""

    help_page: ClassVar[str] = "troubleshooting#dagster-database"


def require_usable(home: Path, wait: float = _WAIT) -> None:
    """Make sure that the databases that every run opens can be read and written; one that is absent is made by Dagster.

    Args:
        home: the artifact home.
        wait: seconds to wait for another process's lock.

    Raises:
        RunRecordsError: one is damaged, locked for longer, or cannot be opened.

    >>> import tempfile
    >>> require_usable(Path(tempfile.mkdtemp()))  # nothing has run there yet
    """
    for name in _LOST:
        file = home / name
        if not file.exists():
            continue
        try:
            with closing(sqlite3.connect(file, timeout=wait, isolation_level=None)) as database:
                found = [row[0] for row in database.execute("PRAGMA quick_check(1)")]
                if found != ["ok"]:
                    raise RunRecordsError(_damaged(file, home, found[0] if found else "its check says nothing"))
                database.execute("BEGIN IMMEDIATE")
                database.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise RunRecordsError(_in_words(file, home, error)) from error


def fault_in_words(error: BaseException, home: Path) -> str | None:
    """What a person can do about an error of SQLite in one of Dagster's files; None where it is about something else.

    Args:
        error: as it was raised, SQLite's own or one that has it as its cause.
        home: the artifact home.
    """
    found = next((each for each in _chain(error) if isinstance(each, sqlite3.Error)), None)
    if found is None:
        return None
    try:
        require_usable(home, wait=1.0)
    except RunRecordsError as fault:
        return str(fault)
    # SQLite's errors name no file; those of single runs are looked at only now.
    for file in sorted((home / "history" / "runs").glob("*.db")):
        try:
            with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=1.0)) as database:
                rows = [row[0] for row in database.execute("PRAGMA quick_check(1)")]
        except sqlite3.Error as fault:
            return _in_words(file, home, fault)
        if rows != ["ok"]:
            return _damaged(file, home, rows[0])
    return _in_words(home / "history", home, found) if _is_locked(found) else None


def mend_of(file: Path, home: Path) -> str:
    """What mends a damaged database, and what is lost by it."""
    lost = _LOST.get(file.relative_to(home).as_posix(), "the events of this one run are gone")
    away = f"rm -f {file}-wal {file}-shm; mv {file} {file}.damaged"
    return f"stop Dagster and move it away (`{away}`): {lost}, artifacts stay"


def _damaged(file: Path, home: Path, fault: str) -> str:
    return f"Dagster's database {file} is damaged ({fault.splitlines()[-1]}); {mend_of(file, home)}"


def _in_words(file: Path, home: Path, error: sqlite3.Error) -> str:
    if _is_locked(error):
        return (
            f"Dagster's database {file} is locked by another process ({error}); end other runs and UIs of this home "
            f"(`fuser -v {file}` lists them), or let a team's runs use Postgres"
        )
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return _damaged(file, home, str(error))
    return f"Dagster's database {file} cannot be used ({error}); make room or mend its permissions, and run this again"


def _is_locked(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = following.__cause__ or following.__context__
