"""Replies of judges on disk, by content: what has been asked and answered once is not paid for again."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dt2it_pipeline import records
from dt2it_pipeline.construct.judges.protocol import Judge, JudgeRequest, Reply

_LOOKED_UP = 500  # keys per query; SQLite bounds the number of parameters


def reply_key(judge: Judge, request: JudgeRequest) -> str | None:
    """What a reply depends on, as a hash: model, sampling, template, question, pictures, reference, responses in order.

    None where the judge's replies need not be kept.
    """
    made_by = judge.fingerprint()
    if made_by is None:
        return None
    prompt = request.prompt
    return records.content_hash(
        "reply",
        made_by,
        judge.template_hash(request.mode, prompt["language"]),
        prompt["prompt_id"],  # the words and the content of the pictures
        prompt["reference"],
        request.mode,
        list(request.responses),
        request.attempt,
    )


class ReplyCache:
    """A SQLite file of replies. Each is on disk as soon as it is put, so that a killed run loses none.

    Args:
        path: of the file, made if absent; None keeps replies in memory only.
    """

    def __init__(self, path: Path | None) -> None:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        # In autocommit: every reply is a transaction of its own.
        self._database = sqlite3.connect(path or ":memory:", isolation_level=None, timeout=60)
        if path is not None:
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
        self._database.execute("CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL)")

    def get(self, keys: Sequence[str]) -> dict[str, Reply]:
        """The replies that are known, by key."""
        found: dict[str, Reply] = {}
        for start in range(0, len(keys), _LOOKED_UP):
            some = keys[start : start + _LOOKED_UP]
            marks = ",".join("?" * len(some))
            rows = self._database.execute(f"SELECT key, reply FROM replies WHERE key IN ({marks})", some)
            for key, reply in rows:
                with contextlib.suppress(ValueError, TypeError, RecursionError):  # a damaged row counts as unknown
                    found[key] = Reply(*json.loads(reply))
        return found

    def put(self, key: str, reply: Reply) -> None:
        """Keep a reply."""
        values: list[Any] = [reply.text, reply.finished, reply.prompt_tokens, reply.completion_tokens]
        # ASCII escapes: a judge may write half a surrogate pair, which SQLite would refuse.
        self._database.execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", (key, json.dumps(values)))

    def close(self) -> None:
        """Close the file."""
        self._database.close()
