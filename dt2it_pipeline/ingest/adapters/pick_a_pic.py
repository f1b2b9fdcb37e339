"""yuvalkirstain/pickapic_v2: two images as bytes, label_0 and label_1 (1 preferred, 0 not, 0.5 a tie)."""

from __future__ import annotations

from collections.abc import Iterator

from dt2it_pipeline.errors import RowError
from dt2it_pipeline.ingest.adapters.registry import per_row
from dt2it_pipeline.ingest.rows import TIE, ImagePair, Item, Quarantined, Row

_COLUMNS = ("id", "ranking_id", "caption", "jpg_0", "jpg_1", "label_0", "label_1", "has_label")


@per_row("pick_a_pic", ("t2i", "t2i_benchmark"), _COLUMNS)
def items(row: Row) -> Iterator[Item]:
    """One pair; rows without a label and ties are quarantined."""
    if row.get("has_label") is False:
        yield Quarantined(row.row_id, "no label", "has_label is false")
        return
    labels = tuple(row.number(name) if row.has(name) else row.need(name) for name in ("label_0", "label_1"))
    if labels == (0.5, 0.5):
        yield Quarantined(row.row_id, TIE, "label_0 = label_1 = 0.5")
        return
    if labels not in ((1.0, 0.0), (0.0, 1.0)):
        raise RowError("verdict unclear", f"label_0 {labels[0]!r}, label_1 {labels[1]!r}")
    images = row.image("jpg_0"), row.image("jpg_1")
    better, other = images if labels[0] == 1 else images[::-1]
    yield ImagePair(row.row_id, row.text("caption"), better, other)
