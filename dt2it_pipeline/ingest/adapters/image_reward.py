"""ImageReward: its ranking JSON (THUDM) and ImageRewardDB (zai-org), which has one row per image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from dt2it_pipeline.errors import RowError
from dt2it_pipeline.ingest.adapters.registry import guarded, over_rows, per_row, quarantine
from dt2it_pipeline.ingest.adapters.shared import ranked_pairs
from dt2it_pipeline.ingest.rows import Item, Row
from dt2it_pipeline.media.store import Medium


@per_row("image_reward", ("t2i", "t2i_benchmark"), ("id", "prompt", "generations", "ranking"))
def items(row: Row) -> Iterator[Item]:
    """Every pair of a ranking (1 is best); ties are counted."""
    row.need("generations")
    yield from ranked_pairs(row.row_id, row.text("prompt"), row.media("generations"), row.need("ranking"))


@over_rows("image_reward_db", ("t2i", "t2i_benchmark"), ("prompt_id", "prompt", "image_path", "image", "rank", "id"))
def database(rows: Iterable[Row]) -> Iterator[Item]:
    """Every pair of images of one prompt_id, by rank (1 is best); wherever in the file its rows stand.

    Rows are held back until the source has ended: paths take little memory, images as bytes take theirs.
    """
    prompts: dict[str, tuple[str, list[Medium], list[Any]]] = {}
    for row in rows:
        try:
            image = row.media("image_path") or row.media("image")
            if len(image) != 1:
                row.need("image_path", "image")
                raise RowError("missing value", "no image in the row")
            key = str(row.need("prompt_id"))
            caption, images, ranks = prompts.setdefault(key, (row.text("prompt"), [], []))
            ranks.append(row.need("rank"))
            images.append(image[0])
        except RowError as error:
            yield quarantine(row.row_id, error)
    for key, (caption, images, ranks) in prompts.items():
        yield from guarded(_ranked, Row(key, {"prompt": caption, "generations": images, "ranking": ranks}))


def _ranked(row: Row) -> Iterator[Item]:
    return ranked_pairs(row.row_id, row.text("prompt"), row.get("generations"), row.get("ranking"))
