"""An example of the options by which rows of no known kind may be read, from the names and values of their columns.

What belongs here: the guess of two answers that nobody has named. What does not: reading by it.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from dt2it_pipeline.ingest.adapters.auto import NEEDED
from dt2it_pipeline.ingest.forms.fields import NAMES, Fields, is_media, plain_name
from dt2it_pipeline.ingest.rows import Row

# Words by which columns may be those of a better and a worse answer: proposed, and never read without being named.
_OPPOSITES = (
    ("good", "bad"), ("best", "worst"), ("better", "worse"), ("positive", "negative"), ("pos", "neg"),
    ("correct", "incorrect"), ("correct", "wrong"), ("right", "wrong"), ("winning", "losing"), ("win", "lose"),
    ("winner", "loser"), ("accepted", "rejected"), ("preferred", "rejected"), ("like", "dislike"),
    ("liked", "disliked"), ("up", "down"),
)  # fmt: skip


def example(rows: Sequence[Row], found: tuple[str, ...]) -> str:
    """Options by which rows may be read: two answers that are known by their words, else a kind that fits.

    Of the kinds for which there are columns enough, that is the one that needs most; else the one that lacks least.

    Args:
        rows: of the file; each column is judged by the first value in it.
        found: the file's columns.
    """
    values = dict.fromkeys(found)
    for row in reversed(rows):
        values |= {name: value for name, value in row.values.items() if value not in (None, "")}
    fields = Fields(replace(rows[0], values=values))
    lacking = {names: [name for name in names if fields.column(name) is None] for names in NEEDED.values()}
    free = {*found} - {fields.column(name) for name in NAMES}
    named = _opposites([name for name in sorted(free) if _may_be_answer(values[name])])
    kind = "t2i" if named and all(is_media(values[name]) for name in named) else "preferences"
    if named and lacking[NEEDED[kind]][-2:] == [*NEEDED[kind][1:]]:  # the file has neither of both
        given = dict(zip(NEEDED[kind][1:], named, strict=True))
    else:
        enough = [names for names in lacking if len(lacking[names]) <= len(free)]
        nearest = min(
            enough or lacking, key=lambda names: (-len(names) * bool(enough), len(lacking[names]) / len(names))
        )
        return " ".join(f"--column {name}=COLUMN" for name in lacking[nearest])
    given |= {name: "COLUMN" for name in NEEDED[kind][:1] if fields.column(name) is None}
    return " ".join(f"--column {name}={shlex.quote(column)}" for name, column in given.items())


def _opposites(columns: Sequence[str]) -> tuple[str, str] | None:
    """Two columns whose names differ in one word alone, of which the one means better and the other worse.

    >>> _opposites(["answer_bad", "answer_good", "note"]), _opposites(["good", "bad_answer"])
    (('answer_good', 'answer_bad'), None)
    """
    parts = {tuple(plain_name(column).split("_")): column for column in columns}
    for words, column in parts.items():
        for place, word in enumerate(words):
            for better, worse in _OPPOSITES:
                other = parts.get((*words[:place], worse, *words[place + 1 :])) if word == better else None
                if other is not None:
                    return column, other
    return None


def _may_be_answer(value: Any) -> bool:
    """Whether a value is a medium or text that is more than a number."""
    return is_media(value) or (isinstance(value, str) and any(map(str.isalpha, value)))
