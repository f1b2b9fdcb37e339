"""Flat tables: one row per prompt, pair or T2I preference, the columns mapped by the manifest. The default adapter."""

from __future__ import annotations

from collections.abc import Iterator

from dt2it_pipeline.ingest.adapters.registry import per_row
from dt2it_pipeline.ingest.adapters.shared import user
from dt2it_pipeline.ingest.rows import TIE, Conversation, ImagePair, Item, Quarantined, Row

REQUIRED = {
    "prompts": ("question", "reference"),
    "preferences": ("question", "chosen", "rejected"),
    "truth": ("question", "chosen", "rejected"),
    "t2i": ("caption", "preferred", "other"),
    "benchmark": ("question", "chosen", "rejected"),
    "t2i_benchmark": ("caption", "preferred", "other"),
}
_OPTIONAL = ("id", "image", "images", "video", "videos", "group", "system", "strength", "tie")


@per_row("flat", tuple(REQUIRED), (*sorted({name for names in REQUIRED.values() for name in names}), *_OPTIONAL))
def items(row: Row) -> Iterator[Item]:
    """A row in our own fields; `strength` (a number) and `tie` (true or false) where the source has them."""
    for name in REQUIRED[row.kind]:
        row.need(name)
    if row.flag("tie"):
        yield Quarantined(row.row_id, TIE)
        return
    strength = row.number("strength")
    group = row.text("group") if row.has("group") else None
    if row.kind in ("t2i", "t2i_benchmark"):
        yield ImagePair(row.row_id, row.text("caption"), row.image("preferred"), row.image("other"), strength, group)
        return
    media = row.media("images") or row.media("image")
    media += row.media("videos", "video") or row.media("video", "video")
    question = row.text("question")
    chosen, rejected = (None, None) if row.kind == "prompts" else (row.text("chosen"), row.text("rejected"))
    yield Conversation(
        row.row_id,
        user(question),
        media,
        chosen,
        rejected,
        reference=row.text("reference") if row.kind == "prompts" else None,
        system=row.text("system") if row.has("system") else "",
        strength=strength,
        group=group,
    )
