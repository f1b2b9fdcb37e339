"""sqrti/SPA-VL: image, question, chosen, rejected; the questions are meant to provoke unsafe answers."""

from __future__ import annotations

from collections.abc import Iterator

from dt2it_pipeline.ingest.adapters.registry import per_row
from dt2it_pipeline.ingest.adapters.shared import user
from dt2it_pipeline.ingest.rows import Conversation, Item, Row


@per_row("spa_vl", ("preferences",), ("id", "image", "question", "chosen", "rejected"))
def items(row: Row) -> Iterator[Item]:
    """One pair."""
    image = (row.image("image"),)
    yield Conversation(row.row_id, user(row.text("question")), image, row.text("chosen"), row.text("rejected"))
