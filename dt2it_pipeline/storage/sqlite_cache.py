"""One SQLite file of what can be computed, or asked for, again: a cache that survives damage, kills and company.

What belongs here: opening, locking, replacing a damaged file, and errors that name it. What does not: tables and
queries, which are those of the caches (`judges.reply_cache`, `media.index`).
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import logging
import random
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TextIO, TypeVar

from dt2it_pipeline.errors import UserError
from dt2it_pipeline.storage.locks import UNSUPPORTED
from dt2it_pipeline.storage.permissions import make_private

_AT_ONCE = 500  # variables of one query; SQLite bounds their number
_TRIES = 10  # to be alone with a damaged file
_WAIT = 0.3  # seconds between two of them
_TIMEOUT = 120.0  # seconds that a statement waits for another process's transaction
_PAUSE = 0.02  # seconds between two tries of a statement that did not wait
_Found = TypeVar("_Found")
logger = logging.getLogger(__name__)


class CacheError(UserError, RuntimeError):
    """The file of a cache cannot be used; the message says which, why, and what to do."""

    help_page: ClassVar[str] = "troubleshooting#cache"


@dataclass(frozen=True)
class CacheKind:
    """What a cache holds.

    Attributes:
        name: of the file, in messages, such as "the file of judges' replies".
        tables: statements that make its tables where they are absent.
        probe: a query that fails where the tables are others; it need return nothing.
        if_lost: what becomes of the content of a damaged file, such as "what it held is asked for again".
        durable: every write is on disk at once (a write-ahead log); without it, a write may be lost when the machine
            stops, and the file may lie on a file system that has no shared memory.
        private: what it holds is not for everybody on the machine; see `storage.permissions`.
    """

    name: str
    tables: str
    probe: str
    if_lost: str
    durable: bool = True
    private: bool = False


class SqliteCache:
    """One SQLite file.

    A damaged file is renamed to `<name>.damaged`, with a warning, and a new one is begun. Several processes may use one
    file: each holds a shared lock beside it, and a file is renamed only under an exclusive one, since SQLite finds a
    file's journal by its name.

    Args:
        kind: what the file holds.
        path: of the file, made if absent; None keeps everything in memory.

    Raises:
        CacheError: the file cannot be made, read or written, or it is damaged and another process uses it. So do
            `rows`, `select` and `write`.
    """

    def __init__(self, kind: CacheKind, path: Path | None) -> None:
        self._kind, self._path = kind, path
        self._lock: TextIO | None = None
        if path is None:
            self._database = self._connected(":memory:")
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            beside = path.with_name(f"{path.name}.lock")
            if kind.private:
                make_private(beside)
            self._lock = beside.open("a", encoding="utf-8")
        except OSError as error:
            raise self._unusable(error) from error
        try:
            self._database = self._open(path, self._lock)
        except BaseException:
            self._lock.close()
            raise

    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        """The rows of a statement; where the file turns out to be damaged, those of the file that replaces it."""
        return self._tried(lambda: self._database.execute(statement, values).fetchall())

    def select(self, query: str, values: Sequence[Any]) -> Iterator[Any]:
        """The rows of `<query> (?, ?, ...)`, where `query` ends in IN; any number of values."""
        for start in range(0, len(values), _AT_ONCE):
            part = values[start : start + _AT_ONCE]
            yield from self.rows(f"{query} ({','.join('?' * len(part))})", part)

    def write(self, *changes: tuple[str, Iterable[Sequence[Any]]]) -> None:
        """Execute statements, each once for every tuple of values, in one transaction."""
        known = [(statement, list(values)) for statement, values in changes]

        def change() -> None:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                for statement, values in known:
                    self._database.executemany(statement, values)
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise

        self._tried(change)

    def close(self) -> None:
        """Close the file."""
        self._database.close()
        if self._lock is not None:
            self._lock.close()

    def __enter__(self) -> SqliteCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _tried(self, work: Callable[[], _Found]) -> _Found:
        try:
            return _when_free(work)
        except sqlite3.Error as error:
            if self._path is None or self._lock is None or not _damaged(error):
                raise self._unusable(error) from error
            self._database.close()
            self._database = self._open(self._path, self._lock, error)
        try:
            return _when_free(work)
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def _open(self, path: Path, lock: TextIO, fault: sqlite3.Error | None = None) -> sqlite3.Connection:
        """The database in `path`, under the shared lock; a damaged one is renamed first.

        Args:
            path: of the file.
            lock: of the file beside it.
            fault: how the file was found to be damaged, where opening it did not show that.
        """
        seen = _identity(path) if fault else None
        for _ in range(_TRIES):
            _take(lock, fcntl.LOCK_SH)  # waits while another process renames the file
            if fault is None or _identity(path) != seen:  # else another process has replaced it meanwhile
                try:
                    return self._connected(path)
                except OSError as error:
                    raise self._unusable(error) from error
                except sqlite3.Error as error:
                    if not _damaged(error):
                        raise self._unusable(error) from error
                    fault, seen = error, _identity(path)
            if _take(lock, fcntl.LOCK_EX | fcntl.LOCK_NB):
                if _identity(path) == seen:
                    self._rename_damaged(path, fault)
                fault = None
            else:
                time.sleep(random.uniform(0.5, 1) * _WAIT)
        raise CacheError(
            f"{self._kind.name} {path} is damaged ({fault}), and another process uses it; "
            "run this again when that has ended"
        ) from fault

    def _connected(self, path: Path | str) -> sqlite3.Connection:
        if isinstance(path, Path) and self._kind.private:
            make_private(path)  # SQLite gives its journals the permissions of the file
        # In autocommit: every statement outside `write` is a transaction of its own.
        database = sqlite3.connect(path, isolation_level=None, timeout=_TIMEOUT)
        try:
            _when_free(lambda: self._prepare(database, path))
        except BaseException:
            database.close()
            raise
        return database

    def _prepare(self, database: sqlite3.Connection, path: Path | str) -> None:
        if isinstance(path, Path) and self._kind.durable:
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=NORMAL")
        elif isinstance(path, Path):
            database.execute("PRAGMA synchronous=OFF")
        database.executescript(self._kind.tables)
        database.execute(self._kind.probe).fetchall()

    def _rename_damaged(self, path: Path, fault: sqlite3.Error) -> None:
        try:
            renamed = rename_damaged(path)
        except OSError as error:
            raise self._unusable(error) from error
        logger.warning(
            "%s %s is damaged (%s): it is renamed to %s, and a new one is begun; %s",
            self._kind.name, path, fault, renamed.name, self._kind.if_lost,
        )  # fmt: skip

    def _unusable(self, error: Exception) -> CacheError:
        if _busy(error):
            return CacheError(
                f"{self._kind.name} {self._path} cannot be used: another process has held it for "
                f"{_TIMEOUT:g} seconds ({error}); run this again when that has ended: what the file holds is kept"
            )
        full = getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL
        return CacheError(
            f"{self._kind.name} {self._path or 'in memory'} cannot be used: {'the disk is full' if full else error}; "
            "make room or mend the permissions of its folder, and run this again: what it holds is kept"
        )


def rename_damaged(path: Path) -> Path:
    """Rename a file, and what SQLite keeps beside it, to `<name>.damaged`, `<name>.damaged-2` and so on.

    Nobody may have it open. Returns the new path.

    Raises:
        OSError: the file system refuses.
    """
    names = (f"{path.name}.damaged{'' if number == 1 else f'-{number}'}" for number in itertools.count(1))
    renamed = next(path.with_name(name) for name in names if not path.with_name(name).exists())
    for end in ("-wal", "-shm", "-journal", ""):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + end).rename(renamed.with_name(renamed.name + end))
    return renamed


def _when_free(work: Callable[[], _Found]) -> _Found:
    """What `work` returns, tried again while another process's lock stops it, for as long as a statement waits.

    SQLite does not wait everywhere: changing the journal's mode while another process writes fails at once.
    """
    until = time.monotonic() + _TIMEOUT
    while True:
        try:
            return work()
        except UnicodeDecodeError as error:  # SQLite's message names a table, and that name is damaged
            fault = sqlite3.DatabaseError("the name of a table in it is no text")
            fault.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise fault from error
        except sqlite3.OperationalError as error:
            if not _busy(error) or time.monotonic() > until:
                raise
        time.sleep(random.uniform(0.5, 1) * _PAUSE)


def _busy(error: Exception) -> bool:
    """Whether another process's lock is to blame."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


def _damaged(error: sqlite3.Error) -> bool:
    """Whether the file is to blame: it is broken, or its tables are others."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or "no such column" in str(error)


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file stands under a path; None where there is none."""
    with contextlib.suppress(OSError):
        found = path.stat()
        return found.st_dev, found.st_ino
    return None


def _take(lock: TextIO, how: int) -> bool:
    """Take a lock, or turn one that is held into another; False where others hold it and `how` does not wait."""
    try:
        fcntl.flock(lock, how)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
    return True
