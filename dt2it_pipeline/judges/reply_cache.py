"""Replies of judges on disk, by content: what has been asked and answered once is not paid for again."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import logging
import random
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from dt2it_pipeline.judges.protocol import Judge, JudgeRequest, Reply
from dt2it_pipeline.storage import content_ids
from dt2it_pipeline.storage.locks import UNSUPPORTED

_LOOKED_UP = 500  # keys per query; SQLite bounds the number of parameters
_TRIES = 10  # to be alone with a damaged file
_WAIT = 0.3  # seconds between two of them
logger = logging.getLogger(__name__)


def reply_key(judge: Judge, request: JudgeRequest) -> str | None:
    """What a reply depends on, as a hash: model, sampling, template, question, images, reference, responses in order.

    None where the judge's replies need not be kept.
    """
    made_by = judge.fingerprint()
    if made_by is None:
        return None
    prompt = request.prompt
    return content_ids.content_hash(
        "reply",
        made_by,
        judge.template_hash(request.mode, prompt["language"]),
        prompt["prompt_id"],  # the words and the content of the images
        prompt["reference"],
        request.mode,
        list(request.responses),
        request.attempt,
    )


class CacheError(RuntimeError):
    """The file of replies cannot be used; the message says which, why, and what to do."""


class ReplyCache:
    """A SQLite file of replies. Each is on disk as soon as it is put, so that a killed run loses none.

    A damaged file is put aside (renamed, with a warning), and a new one is begun: its replies are asked for again.
    Several processes may use one file. Whoever does holds a shared lock beside it; a file is put aside only under an
    exclusive one, since SQLite finds a file's journal by its name.

    Args:
        path: of the file, made if absent; None keeps replies in memory only.

    Raises:
        CacheError: the file cannot be made, read or written, or it is damaged and another process uses it. So do `get`
            and `put`.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock: TextIO | None = None
        if path is None:
            self._database = _opened(":memory:")
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = path.with_name(f"{path.name}.lock").open("a", encoding="utf-8")
        except OSError as error:
            raise _unusable(path, error) from error
        self._database = self._open(path, self._lock)

    def get(self, keys: Sequence[str]) -> dict[str, Reply]:
        """The replies that are known, by key."""
        found: dict[str, Reply] = {}
        for start in range(0, len(keys), _LOOKED_UP):
            some = keys[start : start + _LOOKED_UP]
            marks = ",".join("?" * len(some))
            # As bytes: a row whose text is damaged must not stop the others.
            query = f"SELECT CAST(key AS BLOB), CAST(reply AS BLOB) FROM replies WHERE key IN ({marks})"
            for key, reply in self._execute(query, some):
                with contextlib.suppress(ValueError, TypeError, RecursionError):  # a damaged row counts as unknown
                    found[key.decode()] = _reply(json.loads(reply.decode()))
        return found

    def put(self, key: str, reply: Reply) -> None:
        """Keep a reply."""
        values: list[Any] = [reply.text, reply.finished, reply.prompt_tokens, reply.completion_tokens]
        # ASCII escapes: a judge may write half a surrogate pair, which SQLite would refuse.
        self._execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", (key, json.dumps(values)))

    def close(self) -> None:
        """Close the file."""
        self._database.close()
        if self._lock is not None:
            self._lock.close()

    def _execute(self, statement: str, values: Sequence[str]) -> list[Any]:
        """The rows of a statement; where the file turns out to be damaged, those of the file that replaces it."""
        try:
            return self._database.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            if self._path is None or self._lock is None or not _damaged(error):
                raise _unusable(self._path, error) from error
            self._database.close()
            self._database = self._open(self._path, self._lock, error)
        try:
            return self._database.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise _unusable(self._path, error) from error

    @staticmethod
    def _open(path: Path, lock: TextIO, fault: sqlite3.Error | None = None) -> sqlite3.Connection:
        """The database in `path`, under the shared lock; a damaged one is put aside first.

        Args:
            path: of the file.
            lock: of the file beside it.
            fault: how the file was found to be damaged, where opening it did not show that.
        """
        seen = _identity(path) if fault else None
        for _ in range(_TRIES):
            _take(lock, fcntl.LOCK_SH)  # waits while another process puts the file aside
            if fault is None or _identity(path) != seen:  # else another process has replaced it meanwhile
                try:
                    return _opened(path)
                except sqlite3.Error as error:
                    if not _damaged(error):
                        raise _unusable(path, error) from error
                    fault, seen = error, _identity(path)
            if _take(lock, fcntl.LOCK_EX | fcntl.LOCK_NB):
                if _identity(path) == seen:
                    _put_aside(path, fault)
                fault = None
            else:
                time.sleep(random.uniform(0.5, 1) * _WAIT)
        raise CacheError(
            f"the file of judges' replies {path} is damaged ({fault}), and another process uses it; "
            "run this again when that has ended"
        ) from fault


def _reply(values: Any) -> Reply:
    """A reply from its JSON. Raises ValueError where that is something else."""
    kinds = (str, bool, int, int)
    if not isinstance(values, list) or [type(value) for value in values] != list(kinds):
        raise ValueError(f"no reply: {values!r}")
    return Reply(*values)


def _opened(path: Path | str) -> sqlite3.Connection:
    # In autocommit: every reply is a transaction of its own.
    database = sqlite3.connect(path, isolation_level=None, timeout=60)
    try:
        if isinstance(path, Path):
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=NORMAL")
        database.execute("CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL)")
        database.execute("SELECT key, reply FROM replies LIMIT 0")
    except BaseException:
        database.close()
        raise
    return database


def _damaged(error: sqlite3.Error) -> bool:
    """Whether the file is to blame: it is broken, or its table is another one."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or "no such column" in str(error)


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file stands under a path; None where there is none."""
    with contextlib.suppress(OSError):
        found = path.stat()
        return found.st_dev, found.st_ino
    return None


def _put_aside(path: Path, fault: sqlite3.Error) -> None:
    """Rename a damaged file, and what SQLite keeps beside it, to `<name>.damaged`, `<name>.damaged-2` and so on."""
    names = (f"{path.name}.damaged{'' if number == 1 else f'-{number}'}" for number in itertools.count(1))
    aside = next(path.with_name(name) for name in names if not path.with_name(name).exists())
    try:
        for end in ("-wal", "-shm", ""):
            with contextlib.suppress(FileNotFoundError):
                path.with_name(path.name + end).rename(aside.with_name(aside.name + end))
    except OSError as error:
        raise _unusable(path, error) from error
    logger.warning(
        "the file of judges' replies %s is damaged (%s): it is put aside as %s, and a new one is begun; "
        "what it held is asked for again",
        path,
        fault,
        aside.name,
    )


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


def _unusable(path: Path | None, error: Exception) -> CacheError:
    said = "the disk is full" if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL else str(error)
    return CacheError(
        f"the file of judges' replies {path or 'in memory'} cannot be used: {said}; "
        "make room or mend the permissions of its folder, and run this again: what it holds is not asked for again"
    )
