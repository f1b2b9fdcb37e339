"""ymhao/HPDv2: train.json (two images, `human_preference`) and test.json (several images, `rank`)."""

from __future__ import annotations

from collections.abc import Iterator

from dt2it_pipeline.errors import RowError
from dt2it_pipeline.ingest.adapters.registry import per_row
from dt2it_pipeline.ingest.adapters.shared import ranked_pairs
from dt2it_pipeline.ingest.rows import TIE, ImagePair, Item, Quarantined, Row

_COLUMNS = ("id", "prompt", "file_path", "human_preference", "image_path", "rank")


@per_row("hpdv2", ("t2i", "t2i_benchmark"), _COLUMNS)
def items(row: Row) -> Iterator[Item]:
    """One pair of a row of train.json, every pair of a row of test.json (rank 1 is best, its ties are counted)."""
    caption = row.text("prompt")
    if not row.has("human_preference") and row.has("rank"):
        images = row.media("image_path") or row.media("file_path")
        yield from ranked_pairs(row.row_id, caption, images, row.need("rank"))
        return
    marks = row.need("human_preference", "rank")
    row.need("file_path", "image_path")
    images = row.media("file_path") or row.media("image_path")
    if len(images) != 2 or not isinstance(marks, list) or len(marks) != 2 or not set(marks) <= {0, 1}:
        raise RowError("not two marked images", f"{len(images)} images, human_preference {marks!r}"[:120])
    if marks[0] == marks[1]:
        yield Quarantined(row.row_id, TIE, f"human_preference {marks}")
        return
    better = marks.index(1)
    yield ImagePair(row.row_id, caption, images[better], images[1 - better])
