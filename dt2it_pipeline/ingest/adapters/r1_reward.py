"""yifanzhang114/R1-Reward-RL: a judge's task as a chat, with both answers in its words and `<answer>2</answer>`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from dt2it_pipeline.errors import RowError
from dt2it_pipeline.ingest.adapters.registry import per_row
from dt2it_pipeline.ingest.adapters.shared import json_text, user
from dt2it_pipeline.ingest.rows import Conversation, Item, Row, checked_text
from dt2it_pipeline.media.store import Medium

_HEADINGS = ("[Response 1]:", "[Response 2]:")
_FORM = re.compile(r"\n#+[ \t*]*Output Format[^\n]*\n\s*<think>.*\Z", re.S | re.I)  # how to answer, behind both answers
_ANSWER = re.compile(r"<answer>\s*([12])\s*</answer>")


@per_row("r1_reward", ("preferences",), ("id", "question", "message", "answer", "image"))
def items(row: Row) -> Iterator[Item]:
    """One pair; the answers stand under the headings `[Response 1]:` and `[Response 2]:` of the task."""
    message = json_text(row.need("message"), "column 'message'")
    if not isinstance(message, list):
        raise RowError("not a conversation", f"column 'message': {message!r}"[:120])
    texts, images = _contents(message)
    sides = _sides(texts)
    answer = row.need("answer")
    verdicts = {m for text in (answer if isinstance(answer, list) else [answer]) for m in _ANSWER.findall(str(text))}
    if len(verdicts) != 1:
        raise RowError("verdict unclear", f"column 'answer': {answer!r}"[:120])
    chosen, rejected = sides if verdicts == {"1"} else sides[::-1]
    yield Conversation(row.row_id, user(row.text("question")), row.media("image") or images, chosen, rejected)


def _sides(task: str) -> tuple[str, str]:
    """Both answers, from under their headings; marks such as #### before a heading belong to it.

    What the task says behind them about the form of the reply belongs to neither.
    """
    first, second = task.find(_HEADINGS[0]), -1
    if first >= 0:
        second = task.find(_HEADINGS[1], first)
    if second < 0:
        raise RowError("answers not found", f"the message has no headings {' and '.join(_HEADINGS)}")
    lines = task[first + len(_HEADINGS[0]) : second].split("\n")
    if not lines[-1].strip("# \t"):
        lines.pop()
    texts = "\n".join(lines), _FORM.sub("", task[second + len(_HEADINGS[1]) :])
    one, two = (checked_text(text, f"answer under {name}").strip() for text, name in zip(texts, _HEADINGS, strict=True))
    return one, two


def _contents(message: list[Any]) -> tuple[str, tuple[Medium, ...]]:
    texts: list[str] = []
    images: list[Medium] = []
    for turn in message:
        content = turn["content"]
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if part.get("type") == "text":
                texts.append(part["text"])
            elif part.get("type") == "image":
                images.append(Medium("image", part["image"]))
    return "\n".join(texts), tuple(images)
