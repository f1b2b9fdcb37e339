"""zhiqings/LLaVA-Human-Preference-10K: a chat that ends with a question, two outputs, and which one people prefer."""

from __future__ import annotations

from collections.abc import Iterator

from dt2it_pipeline.errors import RowError
from dt2it_pipeline.ingest.adapters.registry import per_row
from dt2it_pipeline.ingest.adapters.shared import kept
from dt2it_pipeline.ingest.forms.chats import chat, message
from dt2it_pipeline.ingest.rows import Conversation, Item, Row

_COLUMNS = ("id", "image", "conversations", "output_1", "output_2", "preference", "hallucination")


@per_row("llava_human_preference", ("preferences",), _COLUMNS)
def items(row: Row) -> Iterator[Item]:
    """One pair; `preference` is 1 or 2."""
    system, turns = chat(row.need("conversations"), "conversations")
    if turns[-1]["role"] != "user":
        raise RowError("not a conversation", "conversations ends with an answer")
    outputs = [message(row.need(name), name) for name in ("output_1", "output_2")]
    preference = row.need("preference")
    if preference not in (1, 2):
        raise RowError("verdict unclear", f"column 'preference' is {preference!r}, neither 1 nor 2")
    chosen, rejected = outputs if preference == 1 else outputs[::-1]
    meta = kept(row, "hallucination")
    yield Conversation(row.row_id, turns, row.media("image"), chosen, rejected, system=system, meta=meta)
