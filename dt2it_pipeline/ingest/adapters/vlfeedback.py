"""MMInstruction/VLFeedback: several answers to a prompt, each rated from 1 to 5 in three aspects."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

from dt2it_pipeline.errors import RowError
from dt2it_pipeline.ingest.adapters.registry import per_row
from dt2it_pipeline.ingest.adapters.shared import user
from dt2it_pipeline.ingest.forms import answer_lists
from dt2it_pipeline.ingest.rows import TIE, Conversation, Item, Quarantined, Row, checked_text

ASPECTS = ("Helpfulness", "Ethical Considerations", "Visual Faithfulness")


@per_row("vlfeedback", ("preferences",), ("id", "prompt", "completions", "models", "image", "img_path"))
def items(row: Row) -> Iterator[Item]:
    """Every pair of answers whose mean ratings differ; the strength is the difference, in points of the rating.

    An answer that lacks a number in one of the aspects is quarantined; equal means are ties.
    """
    media = row.media("image") or row.media("img_path")
    if not media:
        row.need("image", "img_path")
    question = user(row.text("prompt"))
    rated: list[tuple[int, str, float]] = []
    for number, completion in enumerate(_completions(row.need("completions"))):
        try:
            where = f"completions[{number}]"
            rated.append((number, checked_text(completion.get("response"), f"{where}.response"), _rating(completion)))
        except RowError as error:
            yield Quarantined(row.row_id, error.reason, f"answer {number}: {error.detail}")
    if len(rated) < 2:
        yield Quarantined(row.row_id, "fewer than two rated answers", f"{len(rated)} with ratings")
    ranks = answer_lists.ranks([answer_lists.Answer(text, rating) for _, text, rating in rated])
    places = [rank for rank in ranks if rank is not None]  # all of them: each answer is rated
    for one, other in combinations(zip(rated, places, strict=True), 2):
        (i, _, a), (j, _, b) = one[0], other[0]
        if a == b:
            yield Quarantined(row.row_id, TIE, f"answers {i} and {j} are both rated {a:.2f}")
            continue
        ((_, chosen, _), first), ((_, rejected, _), second) = (one, other) if a > b else (other, one)
        # Means of thirds, so that equal sums are equal means; rounded where binary fractions would show.
        strength, part, ranked = round(abs(a - b), 6), f"{i}-{j}", (first, second)
        yield Conversation(row.row_id, question, media, chosen, rejected, strength=strength, part=part, ranks=ranked)


def _completions(value: Any) -> list[dict[str, Any]]:
    """Completions as a list of objects; `datasets` gives a sequence of objects as an object of lists."""
    if isinstance(value, Mapping):
        lengths = {name: len(values) for name, values in value.items()}
        if len(set(lengths.values())) > 1:
            raise RowError("not a list of completions", f"lists of different lengths: {lengths}")
        value = [dict(zip(value, entry, strict=True)) for entry in zip(*value.values(), strict=True)]
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise RowError("not a list of completions", repr(value)[:120])
    return value


def _rating(completion: Mapping[str, Any]) -> float:
    annotations = completion.get("annotations")
    if not isinstance(annotations, Mapping):
        raise RowError("rating is not a number", f"annotations: {annotations!r}"[:120])
    values = []
    for aspect in ASPECTS:
        entry = annotations.get(aspect)
        found = entry.get("Rating") if isinstance(entry, Mapping) else entry
        try:
            value = float(found)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            value = math.nan
        if not math.isfinite(value):
            raise RowError("rating is not a number", f"{aspect}: {found!r}; there are {sorted(annotations)}"[:160])
        values.append(value)
    return math.fsum(values) / len(values)
