"""yifanzhang114/MM-RLHF: pairs over an image or over a folder of video frames."""

from __future__ import annotations

from collections.abc import Iterator

from dt2it_pipeline.errors import RowError
from dt2it_pipeline.ingest.adapters.registry import per_row
from dt2it_pipeline.ingest.forms.chats import chat
from dt2it_pipeline.ingest.rows import TIE, Conversation, Item, Quarantined, Row


@per_row(
    "mm_rlhf", ("preferences",), ("id", "image", "video", "prompt", "chosen", "rejected", "is_tie", "mixed_up_image")
)
def items(row: Row) -> Iterator[Item]:
    """One pair; rows marked as ties, and rows whose image is marked as mixed up with another's, are quarantined."""
    yield pair(row)


def pair(row: Row, group: str | None = None) -> Item:
    """The item of a row of MM-RLHF or of its benchmark. Raises RowError where image and video are not exactly one."""
    system, turns = chat(row.need("prompt"), "prompt")
    media = (*row.media("image"), *row.media("video", "video"))
    if not media:
        row.need("image", "video")
    if row.has("image") == row.has("video"):
        raise RowError("not one of image and video", f"image {row.get('image')!r}, video {row.get('video')!r}"[:160])
    if row.flag("is_tie"):
        return Quarantined(row.row_id, TIE, "is_tie")
    if row.get("mixed_up_image"):
        return Quarantined(row.row_id, "mixed-up image", "mixed_up_image is set")
    chosen, rejected = row.text("chosen"), row.text("rejected")
    return Conversation(row.row_id, turns, media, chosen, rejected, system=system, group=group)
