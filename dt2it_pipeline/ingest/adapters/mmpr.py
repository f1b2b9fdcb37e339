"""OpenGVLab/MMPR-v1.2: meta.json names the parts, each a JSON Lines file and the folder of its images.

The manifest says `format: parts`. `repeat_time` of meta.json, a training weight, is not applied: a pair counts once.
"""

from __future__ import annotations

from collections.abc import Iterator

from dt2it_pipeline.ingest.adapters.registry import per_row
from dt2it_pipeline.ingest.forms.chats import chat
from dt2it_pipeline.ingest.rows import Conversation, Item, Row
from dt2it_pipeline.media.store import Medium

PART_ROOT = "part_root"  # column that the reader adds: the folder of the part's images, below the media root


@per_row("mmpr", ("preferences",), ("id", "image", "question", "chosen", "rejected"))
def items(row: Row) -> Iterator[Item]:
    """One pair; `image` is a path, a list of paths, or absent for a question in words alone."""
    root = row.get(PART_ROOT)
    media = tuple(
        Medium(m.kind, f"{root}/{m.value}") if root and isinstance(m.value, str) else m for m in row.media("image")
    )
    system, turns = chat(row.need("question"), "question")
    yield Conversation(row.row_id, turns, media, row.text("chosen"), row.text("rejected"), system=system)
