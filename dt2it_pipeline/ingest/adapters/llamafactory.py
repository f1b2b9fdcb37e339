"""LLaMA-Factory's preference JSON: a chat that ends with a question, `chosen` and `rejected`, media in lists."""

from __future__ import annotations

from collections.abc import Iterator

from dt2it_pipeline.errors import RowError
from dt2it_pipeline.ingest.adapters.registry import per_row
from dt2it_pipeline.ingest.adapters.shared import chat, message
from dt2it_pipeline.ingest.rows import Conversation, Item, Row

_COLUMNS = ("id", "conversations", "messages", "chosen", "rejected", "images", "videos", "system")


@per_row("llamafactory", ("preferences",), _COLUMNS)
def items(row: Row) -> Iterator[Item]:
    """One pair."""
    system, turns = chat(row.need("conversations", "messages"), "conversations")
    if turns[-1]["role"] != "user":
        raise RowError("not a conversation", "conversations ends with an answer")
    yield Conversation(
        row.row_id,
        turns,
        (*row.media("images"), *row.media("videos", "video")),
        message(row.need("chosen"), "chosen"),
        message(row.need("rejected"), "rejected"),
        system=(row.text("system") if row.get("system") else "") or system,
    )
