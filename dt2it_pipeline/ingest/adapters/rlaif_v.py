"""openbmb/RLAIF-V-Dataset: image, question, chosen, rejected."""

from __future__ import annotations

from collections.abc import Iterator

from dt2it_pipeline.ingest.adapters.registry import per_row
from dt2it_pipeline.ingest.adapters.shared import kept, user
from dt2it_pipeline.ingest.rows import Conversation, Item, Row

_COLUMNS = ("image", "image_path", "question", "chosen", "rejected", "origin_dataset", "origin_split", "idx", "id")


@per_row("rlaif_v", ("preferences",), _COLUMNS)
def items(row: Row) -> Iterator[Item]:
    """One pair; the image stands in `image`, in copies without images its path in `image_path`."""
    image = row.media("image") or row.media("image_path")
    if not image:
        row.need("image", "image_path")
    yield Conversation(
        row.row_id,
        user(row.text("question")),
        image,
        row.text("chosen"),
        row.text("rejected"),
        meta=kept(row, "origin_dataset"),
    )
