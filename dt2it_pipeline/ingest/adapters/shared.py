"""What several schemas have in common: one question, JSON in a column, ranked images."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

from dt2it_pipeline.ingest.rows import TIE, ImagePair, Item, Quarantined, Row, RowError, Turn, as_number
from dt2it_pipeline.media.store import Medium


def user(question: str) -> tuple[Turn, ...]:
    """A conversation of one question."""
    return ({"role": "user", "text": question},)


def json_text(value: Any, where: str) -> Any:
    """What a column that holds JSON as text says; a value that is no text is returned as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise RowError("malformed JSON", f"{where}: {error}") from error


def ranked_pairs(row_id: str, caption: str, images: Sequence[Medium], ranks: Sequence[Any]) -> Iterator[Item]:
    """Every pair of ranked images (1 is best); equal ranks are ties, a difference of ranks is the strength.

    Raises RowError where the numbers of images and ranks differ, or a rank is no number.
    """
    if len(images) != len(ranks) or len(ranks) < 2:
        raise RowError("ranks and images differ", f"{len(images)} images, {len(ranks)} ranks")
    ranks = [as_number(rank, f"ranks {ranks!r}"[:80]) for rank in ranks]
    for first, second in combinations(range(len(ranks)), 2):
        if ranks[first] == ranks[second]:
            yield Quarantined(row_id, TIE, f"images {first} and {second} both have rank {ranks[first]:g}")
            continue
        better, worse = (first, second) if ranks[first] < ranks[second] else (second, first)
        strength = float(ranks[worse] - ranks[better])
        part = f"{first}-{second}"
        yield ImagePair(row_id, caption, images[better], images[worse], strength, part=part)


def kept(row: Row, *names: str) -> dict[str, Any]:
    """Columns worth keeping beside a prompt, those that the row has."""
    return {name: row.get(name) for name in names if row.has(name)}
