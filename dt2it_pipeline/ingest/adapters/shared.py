"""What several schemas have in common: chats, rankings, two answers with a preference."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

from dt2it_pipeline.ingest.rows import TIE, ImagePair, Item, Quarantined, Row, RowError, Turn, as_number, checked_text
from dt2it_pipeline.media.store import Medium

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def user(question: str) -> tuple[Turn, ...]:
    """A conversation of one question."""
    return ({"role": "user", "text": question},)


def chat(value: Any, where: str) -> tuple[str, tuple[Turn, ...]]:
    """System text and turns of a chat written as [{from, value}] or [{role, content}], or of one question as text.

    Raises:
        RowError: it is something else, a role is unknown, or a system turn stands behind the first place.
    """
    if isinstance(value, str):
        return "", user(checked_text(value, where))
    if not isinstance(value, Sequence) or not value:
        raise RowError("not a conversation", f"{where}: {value!r}"[:120])
    turns = [_turn(entry, f"{where}, turn {number}") for number, entry in enumerate(value, start=1)]
    system = turns.pop(0)["text"] if turns[0]["role"] == "system" else ""
    if any(turn["role"] == "system" for turn in turns):
        raise RowError("not a conversation", f"{where}: a system turn behind the first place")
    return system, tuple(turns)


def message(value: Any, where: str) -> str:
    """The text of one message: {from, value}, {role, content} or the text itself."""
    if isinstance(value, dict):
        value = value.get("value", value.get("content"))
    return checked_text(value, where)


def two_sides(chosen: Sequence[Turn], rejected: Sequence[Turn]) -> tuple[tuple[Turn, ...], str, str]:
    """Prompt and two answers from two whole chats: what both begin with is the prompt, the rest of each is its side.

    Where the chats part before their last answers, as when two models each led their own conversation, a side holds
    all that follows: its answers, and the questions between them under the heading `User:`.

    Raises:
        RowError: the chats do not begin with a question that is the same in both, or one ends there.
    """
    same = 0
    while same < min(len(chosen), len(rejected)) and chosen[same] == rejected[same]:
        same += 1
    while same and chosen[same - 1]["role"] != "user":
        same -= 1
    sides = chosen[same:], rejected[same:]
    if not same or not all(side and side[-1]["role"] == "assistant" for side in sides):
        identical = list(chosen) == list(rejected)
        raise RowError("identical sides" if identical else "conversations do not begin alike", str(chosen[:1])[:120])
    return tuple(chosen[:same]), _answer(sides[0]), _answer(sides[1])


def json_text(value: Any, where: str) -> Any:
    """What a column that holds JSON as text says; a value that is no text is returned as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise RowError("malformed JSON", f"{where}: {error}") from error


def ranked_pairs(row_id: str, caption: str, images: Sequence[Medium], ranks: Sequence[Any]) -> Iterator[Item]:
    """Every pair of ranked images (1 is best); equal ranks are ties, a difference of ranks is the strength.

    Raises RowError where the numbers of images and ranks differ, or a rank is no number.
    """
    if len(images) != len(ranks) or len(ranks) < 2:
        raise RowError("ranks and images differ", f"{len(images)} images, {len(ranks)} ranks")
    ranks = [as_number(rank, f"ranks {ranks!r}"[:80]) for rank in ranks]
    for first, second in combinations(range(len(ranks)), 2):
        if ranks[first] == ranks[second]:
            yield Quarantined(row_id, TIE, f"images {first} and {second} both have rank {ranks[first]:g}")
            continue
        better, worse = (first, second) if ranks[first] < ranks[second] else (second, first)
        strength = float(ranks[worse] - ranks[better])
        part = f"{first}-{second}"
        yield ImagePair(row_id, caption, images[better], images[worse], strength, part=part)


def kept(row: Row, *names: str) -> dict[str, Any]:
    """Columns worth keeping beside a prompt, those that the row has."""
    return {name: row.get(name) for name in names if row.has(name)}


def _turn(entry: Any, where: str) -> Turn:
    if not isinstance(entry, dict):
        raise RowError("not a conversation", f"{where}: {entry!r}"[:120])
    role = _ROLES.get(str(entry.get("from", entry.get("role"))))
    if role is None:
        raise RowError("not a conversation", f"{where}: unknown role in {sorted(entry)}: {entry!r}"[:160])
    return {"role": role, "text": message(entry, where)}


def _answer(turns: Sequence[Turn]) -> str:
    first, *rest = turns
    return "\n\n".join(
        [first["text"], *(("User: " if t["role"] == "user" else "Assistant: ") + t["text"] for t in rest)]
    )
