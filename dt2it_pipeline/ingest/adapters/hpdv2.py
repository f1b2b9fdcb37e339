"""ymhao/HPDv2: train.json (two pictures, `human_preference`) and test.json (several pictures, `rank`)."""

from __future__ import annotations

from collections.abc import Iterator

from dt2it_pipeline.ingest.adapters.registry import per_row
from dt2it_pipeline.ingest.adapters.shared import ranked_pairs
from dt2it_pipeline.ingest.rows import TIE, Item, PicturePair, Row, RowError, SetAside

_COLUMNS = ("id", "prompt", "file_path", "human_preference", "image_path", "rank")


@per_row("hpdv2", ("t2i", "t2i_benchmark"), _COLUMNS)
def items(row: Row) -> Iterator[Item]:
    """One pair of a row of train.json, every pair of a row of test.json (rank 1 is best, its ties are counted)."""
    caption = row.text("prompt")
    if not row.has("human_preference") and row.has("rank"):
        pictures = row.media("image_path") or row.media("file_path")
        yield from ranked_pairs(row.row_id, caption, pictures, row.need("rank"))
        return
    marks = row.need("human_preference", "rank")
    row.need("file_path", "image_path")
    pictures = row.media("file_path") or row.media("image_path")
    if len(pictures) != 2 or not isinstance(marks, list) or len(marks) != 2 or not set(marks) <= {0, 1}:
        raise RowError("not two marked pictures", f"{len(pictures)} pictures, human_preference {marks!r}"[:120])
    if marks[0] == marks[1]:
        yield SetAside(row.row_id, TIE, f"human_preference {marks}")
        return
    better = marks.index(1)
    yield PicturePair(row.row_id, caption, pictures[better], pictures[1 - better])
