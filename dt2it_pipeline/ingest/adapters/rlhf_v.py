"""openbmb/RLHF-V-Dataset: image and `text`, a JSON string with question, chosen and rejected."""

from __future__ import annotations

from collections.abc import Iterator

from dt2it_pipeline.errors import RowError
from dt2it_pipeline.ingest.adapters.registry import per_row
from dt2it_pipeline.ingest.adapters.shared import json_text, kept, user
from dt2it_pipeline.ingest.rows import Conversation, Item, Row, checked_text


@per_row("rlhf_v", ("preferences",), ("image", "image_path", "text", "origin_dataset", "idx", "id"))
def items(row: Row) -> Iterator[Item]:
    """One pair; `text` may also have been parsed already."""
    value = json_text(row.need("text"), "column 'text'")
    if not isinstance(value, dict):
        raise RowError("malformed JSON", f"column 'text': expected an object, found {type(value).__name__}")
    question, chosen, rejected = (
        checked_text(value.get(name), f"column 'text', key {name!r}, of {sorted(value)}")
        for name in ("question", "chosen", "rejected")
    )
    image = row.media("image") or row.media("image_path")
    if not image:
        row.need("image", "image_path")
    yield Conversation(row.row_id, user(question), image, chosen, rejected, meta=kept(row, "origin_dataset"))
