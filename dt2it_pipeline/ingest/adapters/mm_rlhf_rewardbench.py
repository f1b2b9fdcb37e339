"""yifanzhang114/MM-RLHF-RewardBench: the first folder of the medium's path is the category; ids cover several pairs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from dt2it_pipeline.errors import RowError
from dt2it_pipeline.ingest.adapters.mm_rlhf import pair
from dt2it_pipeline.ingest.adapters.registry import per_row
from dt2it_pipeline.ingest.rows import Item, Row

CATEGORIES = ("mcq", "long", "short", "safety", "video")


@per_row("mm_rlhf_rewardbench", ("benchmark",), ("id", "image", "video", "prompt", "chosen", "rejected"))
def items(row: Row) -> Iterator[Item]:
    """One pair; every pair of an id has that id, by which the benchmark's Acc+ counts."""
    path = row.get("image") or row.get("video") or row.need("image", "video")
    parts = PurePosixPath(path).parts if isinstance(path, str) else ()
    group = next((part for part in parts[:-1] if part in CATEGORIES), None)
    if group is None:
        raise RowError("unknown category", f"no folder of {path!r} is one of {', '.join(CATEGORIES)}"[:200])
    yield pair(row, group)
