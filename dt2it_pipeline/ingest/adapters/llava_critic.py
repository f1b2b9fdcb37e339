"""lmms-lab/llava-critic-113k, config `pairwise`: a judge's task and a verdict in free words."""

from __future__ import annotations

import re
from collections.abc import Iterator

from dt2it_pipeline.errors import RowError
from dt2it_pipeline.ingest.adapters.registry import per_row
from dt2it_pipeline.ingest.adapters.shared import kept, user
from dt2it_pipeline.ingest.forms.chats import chat
from dt2it_pipeline.ingest.rows import TIE, Conversation, Item, Quarantined, Row, checked_text

_FIRST = r"(?:the\s+)?(?:first\s+(?:response|answer)|(?:response|answer)\s+(?:1|A))"
_SECOND = r"(?:the\s+)?(?:second\s+(?:response|answer)|(?:response|answer)\s+(?:2|B))"
_EDGE = r"[^\w\n]{0,20}"  # marks around a heading, such as ** or ###
_HEADINGS = tuple(
    re.compile(rf"^{_EDGE}{heading}{_EDGE}?:", re.M | re.I) for heading in (r"(?:user\s+)?question", _FIRST, _SECOND)
)
_END = re.compile(rf"^{_EDGE}ASSISTANT\s*:\s*\Z", re.M | re.I)
_BETTER = (
    r"(?:is|are|was|would\s+be)\s+(?:\w+ly\s+|much\s+|far\s+|the\s+|a\s+(?:bit|little)\s+)*"
    r"(?:better|best|superior|preferred|preferable|stronger)\b"
)
_WORSE = r"is\s+(?:\w+ly\s+|much\s+)*(?:worse|inferior|weaker)\b"
_TIED = re.compile(
    r"\b(?:equally\s+(?:good|bad|well|helpful|accurate|strong|matched)|it\s+is\s+a\s+tie|both\s+(?:responses|answers)\s+are\s+equal"
    r"|(?:neither|no)\s+(?:response|answer)\s+is\s+(?:clearly\s+)?better|two\s+(?:responses|answers)\s+are\s+(?:equal|comparable))",
    re.I,
)
# How published verdicts end: "The better response: [second]"; tasks call answers first and second, 1 and 2 or A and B.
_DECLARED = re.compile(
    r"\b(?:better|preferred|best)\s+(?:response|answer)[\s*]*(?:is[\s*]*)?:?[\s*]*\[\s*(?:the\s+)?"
    r"(?:(?:response|answer)\s+)?(?:(first|1|A)|(second|2|B))\b",
    re.I,
)
_FINAL = re.compile(r"(?:better|preferred|best)\s+(?:response|answer|one)\s*(?:is|:)\s*\W*", re.I)


@per_row("llava_critic", ("preferences",), ("id", "source", "conversations", "image"))
def items(row: Row) -> Iterator[Item]:
    """One pair, where the task has its question and answers under headings and the verdict names one side alone."""
    _, turns = chat(row.need("conversations"), "conversations")
    if [turn["role"] for turn in turns] != ["user", "assistant"]:
        raise RowError("not a conversation", f"expected a task and a verdict, found {len(turns)} turns")
    task, words = turns[0]["text"], turns[1]["text"]
    question, first, second = (
        checked_text(_unwrapped(part), f"{name} of the task")
        for name, part in zip(("question", "first", "second"), _parts(task.replace("<image>", "")), strict=True)
    )
    side = verdict(words)
    if side is None:
        raise RowError("verdict unclear", words[-160:])
    if side == 0:
        yield Quarantined(row.row_id, TIE, words[:160])
        return
    chosen, rejected = (first, second) if side == 1 else (second, first)
    yield Conversation(row.row_id, user(question), row.media("image"), chosen, rejected, meta=kept(row, "source"))


def verdict(words: str) -> int | None:
    """Which response a judge's words prefer: 1, 2, 0 for a tie, None where they name none or contradict themselves.

    A verdict that is declared as such counts before what the reasoning finds on single aspects.
    """
    declared = {1 if found[1] else 2 for found in _DECLARED.finditer(words)}
    if declared:
        return declared.pop() if len(declared) == 1 else None
    named = set()
    for number, (one, other) in enumerate(((_FIRST, _SECOND), (_SECOND, _FIRST)), start=1):
        if re.search(rf"\b{one}\s+{_BETTER}", words, re.I) or re.search(rf"\b{other}\s+{_WORSE}", words, re.I):
            named.add(number)
        if any(re.match(one + r"\b", words[m.end() :], re.I) for m in _FINAL.finditer(words)):
            named.add(number)
    if not named and _TIED.search(words):
        return 0
    return named.pop() if len(named) == 1 and not (_TIED.search(words) and named) else None


def _parts(task: str) -> tuple[str, str, str]:
    """Question and both responses, from under their headings. Raises RowError where one is missing."""
    spans, at = [], 0
    for heading in _HEADINGS:
        found = heading.search(task, at)
        if not found:
            raise RowError("answers not found", "the task has no headings of a question and two responses")
        spans.append(found.span())
        at = found.end()
    end = _END.search(task, at)
    return (
        task[spans[0][1] : spans[1][0]],
        task[spans[1][1] : spans[2][0]],
        task[spans[2][1] : end.start() if end else len(task)],
    )


def _unwrapped(text: str) -> str:
    text = text.strip()
    return text[1:-1].strip() if text.startswith("[") and text.endswith("]") else text
