"""Replies of judges on disk, by content: what has been asked and answered once is not paid for again."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dt2it_pipeline.judges.protocol import Judge, JudgeRequest, Reply
from dt2it_pipeline.storage import content_ids
from dt2it_pipeline.storage.sqlite_cache import CacheKind, SqliteCache

_logger = logging.getLogger(__name__)
_REPLIES = CacheKind(
    name="the file of judges' replies",
    tables="CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL);",
    probe="SELECT key, reply FROM replies LIMIT 0",
    if_lost="what it held is asked for again",
    private=True,
)


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
        *([request.run] if request.run else []),
    )


class ReplyCache:
    """Replies in a `SqliteCache`. Each is on disk as soon as it is put, so that a killed run loses none.

    `put_here` has the keys of what this object was given: the replies of this run, as against those of earlier ones.

    Args:
        path: of the file, made if absent; None keeps replies in memory only.

    Raises:
        CacheError: the file cannot be used. So do `get` and `put`.
    """

    def __init__(self, path: Path | None) -> None:
        self.file, self._path = SqliteCache(_REPLIES, path), path
        self._damage_reported = False
        self.put_here: set[str] = set()
        self._handed_on: set[str] = set()

    def get(self, keys: Sequence[str]) -> dict[str, Reply]:
        """The replies that are known, by key."""
        found: dict[str, Reply] = {}
        # As bytes: a row whose text is damaged must not stop the others.
        query = "SELECT CAST(key AS BLOB), CAST(reply AS BLOB) FROM replies WHERE key IN"
        for key, reply in self.file.select(query, keys):
            try:
                *values, check = json.loads(reply.decode())
                if check != content_ids.content_hash(key.decode(), values):
                    raise ValueError("its content is not what was written")
                found[key.decode()] = _reply(values)
            except (ValueError, TypeError, AttributeError, RecursionError):  # a damaged row counts as unknown
                self._report_damage()
        return found

    def _report_damage(self) -> None:
        if not self._damage_reported:
            self._damage_reported = True
            _logger.warning(
                "%s %s holds damaged rows: what they held is asked for again, the others are used",
                _REPLIES.name,
                self._path or "in memory",
            )

    def put(self, key: str, reply: Reply) -> None:
        """Keep a reply."""
        values: list[Any] = [reply.text, reply.finished, reply.prompt_tokens, reply.completion_tokens]
        # ASCII escapes: a judge may write half a surrogate pair, which SQLite would refuse.
        row = [*values, content_ids.content_hash(key, values)]
        self.file.rows("INSERT OR REPLACE INTO replies VALUES (?, ?)", (key, json.dumps(row)))
        self.put_here.add(key)

    def rows(self) -> list[tuple[str, str]]:
        """Everything as it is stored, for `holding` on a machine that cannot open the file."""
        return [(key, reply) for key, reply in self.file.rows("SELECT key, reply FROM replies ORDER BY key")]

    @classmethod
    def holding(cls, rows: Sequence[tuple[str, str]]) -> ReplyCache:
        """A cache in memory that knows what another one's `rows` are."""
        made = cls(None)
        made.file.write(("INSERT INTO replies VALUES (?, ?)", rows))
        return made

    def new(self) -> dict[str, Reply]:
        """Replies that were put here since this was called last, by key."""
        keys = sorted(self.put_here - self._handed_on)
        self._handed_on.update(keys)
        return self.get(keys)

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def _reply(values: Any) -> Reply:
    """A reply from its JSON. Raises ValueError where that is something else."""
    kinds = (str, bool, int, int)
    if not isinstance(values, list) or [type(value) for value in values] != list(kinds):
        raise ValueError(f"no reply: {values!r}")
    return Reply(*values)
