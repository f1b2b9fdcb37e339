"""yifanzhang114/R1-Reward-RL: a judge's task as a chat, with both answers in its words and `<answer>2</answer>`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from dt2it_pipeline.ingest.adapters.registry import per_row
from dt2it_pipeline.ingest.adapters.shared import json_text, user
from dt2it_pipeline.ingest.rows import Conversation, Item, Medium, Row, RowError, checked_text

_SIDES = re.compile(
    r"(?:^|#+)[ \t]*\[Response 1\]:(?P<first>.*?)(?:^|#+)[ \t]*\[Response 2\]:(?P<second>.*)\Z", re.S | re.M
)
_ANSWER = re.compile(r"<answer>\s*([12])\s*</answer>")


@per_row("r1_reward", ("preferences",), ("id", "question", "message", "answer", "image"))
def items(row: Row) -> Iterator[Item]:
    """One pair; the answers stand under the headings `[Response 1]:` and `[Response 2]:` of the task."""
    message = json_text(row.need("message"), "column 'message'")
    if not isinstance(message, list):
        raise RowError("not a conversation", f"column 'message': {message!r}"[:120])
    texts, pictures = _contents(message)
    found = _SIDES.search(texts)
    if not found:
        raise RowError("answers cannot be told", "the message has no headings [Response 1]: and [Response 2]:")
    sides = [
        checked_text(found[name], f"answer under [Response {n}]:").strip() for n, name in ((1, "first"), (2, "second"))
    ]
    answer = row.need("answer")
    verdicts = {m for text in (answer if isinstance(answer, list) else [answer]) for m in _ANSWER.findall(str(text))}
    if len(verdicts) != 1:
        raise RowError("verdict cannot be told", f"column 'answer': {answer!r}"[:120])
    chosen, rejected = sides if verdicts == {"1"} else sides[::-1]
    yield Conversation(row.row_id, user(row.text("question")), row.media("image") or pictures, chosen, rejected)


def _contents(message: list[Any]) -> tuple[str, tuple[Medium, ...]]:
    texts: list[str] = []
    pictures: list[Medium] = []
    for turn in message:
        content = turn["content"]
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if part.get("type") == "text":
                texts.append(part["text"])
            elif part.get("type") == "image":
                pictures.append(Medium("image", part["image"]))
    return "\n".join(texts), tuple(pictures)
