"""Lists of answers to one prompt: as tables for training, and plain loops that losses are checked against."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dt2it_pipeline.reward.training.job import TrainJob
from dt2it_pipeline.storage import atomic, records, schemas
from dt2it_pipeline_tests.support.tiny import WORDS


def ranked_pairs(
    prompt: str, texts: Sequence[str], name: str | None, *, left_out: Iterable[tuple[int, int]] = (), **fields: Any
) -> list[dict[str, Any]]:
    """All pairs of a list whose texts stand from best to worst, but for those of `left_out`, by place."""
    dropped = set(left_out)
    return [
        records.make_pair(
            prompt,
            texts[better],
            texts[worse],
            source="lists",
            list_id=name,
            chosen_rank=None if name is None else better + 1.0,
            rejected_rank=None if name is None else worse + 1.0,
            strength=float(worse - better),
            **fields,
        )
        for better, worse in itertools.combinations(range(len(texts)), 2)
        if (better, worse) not in dropped
    ]


def flipped(pair: Mapping[str, Any]) -> dict[str, Any]:
    """The pair with its sides changed, as curation leaves it."""
    other = {"chosen": "rejected", "rejected": "chosen"}
    sides = {f"{side}{rest}": pair[f"{other[side]}{rest}"] for side in other for rest in ("", "_id", "_rank")}
    return dict(pair) | sides | {"label": "flipped"}


def answers(count: int, number: int) -> list[str]:
    """So many different texts, others for every number."""
    return [" ".join(WORDS[(number + 3 * n + m) % len(WORDS)] for m in range(2 + n)) for n in range(count)]


def listed_job(job: TrainJob, folder: Path, answers_per_list: int = 4, lists: int = 8, named: bool = True) -> TrainJob:
    """The job on lists of answers to its first prompts instead; `named` says whether the pairs know of their lists."""
    prompts = [row["prompt_id"] for row in atomic.read_parquet(job.prompts, "prompts").to_pylist()[:lists]]
    rows = [
        pair
        for number, prompt in enumerate(prompts)
        for pair in ranked_pairs(prompt, answers(answers_per_list, number), f"lists/{number}" if named else None)
    ]
    return on_pairs(job, rows, folder)


def on_pairs(job: TrainJob, rows: Sequence[Mapping[str, Any]], folder: Path) -> TrainJob:
    """The job on other pairs."""
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write_parquet(schemas.table(rows, "pairs"), folder / "pairs.parquet")
    return job.model_copy(update={"pairs": folder / "pairs.parquet"})


def ranking_probability(scores: Sequence[float]) -> float:
    """Plackett-Luce probability of an order, its best answer first: a product of choices among those that are left."""
    worths = [math.exp(score) for score in scores]
    return math.prod(worth / sum(worths[place:]) for place, worth in enumerate(worths[:-1]))
