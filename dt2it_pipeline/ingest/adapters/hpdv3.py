"""MizzenAI/HPDv3: path1 is the preferred image, path2 the other."""

from __future__ import annotations

from collections.abc import Iterator

from dt2it_pipeline.ingest.adapters.registry import per_row
from dt2it_pipeline.ingest.rows import ImagePair, Item, Row


@per_row("hpdv3", ("t2i", "t2i_benchmark"), ("id", "prompt", "path1", "path2", "confidence"))
def items(row: Row) -> Iterator[Item]:
    """One pair; `confidence`, where there is one, is its strength."""
    confidence = row.number("confidence")
    yield ImagePair(row.row_id, row.text("prompt"), row.image("path1"), row.image("path2"), confidence)
