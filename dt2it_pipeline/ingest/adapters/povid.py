"""YiyangAiLab/POVID: two whole chats per row, `conversations` being the better one."""

from __future__ import annotations

from collections.abc import Iterator

from dt2it_pipeline.ingest.adapters.registry import per_row
from dt2it_pipeline.ingest.forms.chats import chat, two_sides
from dt2it_pipeline.ingest.rows import Conversation, Item, Row


@per_row("povid", ("preferences",), ("id", "image", "conversations", "rejected_conversations"))
def items(row: Row) -> Iterator[Item]:
    """One pair; what both chats begin with is the prompt."""
    system, chosen = chat(row.need("conversations"), "conversations")
    _, rejected = chat(row.need("rejected_conversations"), "rejected_conversations")
    prompt, better, worse = two_sides(chosen, rejected)
    yield Conversation(row.row_id, prompt, row.media("image"), better, worse, system=system)
