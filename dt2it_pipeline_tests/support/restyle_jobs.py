"""Rewriting jobs on questions about shapes, for the tests of judges and rewriters in several processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dt2it_pipeline.config.sections.pairing import RestyleSettings
from dt2it_pipeline.construct.restyle import RestyleJob
from dt2it_pipeline.storage import atomic, records, schemas
from dt2it_pipeline_tests.support.construct_world import response_rows

SHAPES = ("circle", "triangle", "rectangle")


def restyling(
    folder: Path, prompts: Sequence[Mapping[str, Any]], *, referenced: bool = True, processes: int = 1, **settings: Any
) -> RestyleJob:
    """A job that rewrites two answers to each prompt: the first names the shape that is its reference.

    Args:
        folder: of tables, images, output and cache.
        prompts: rows; without a reference, the first answer is the first of SHAPES.
        referenced: whether the rewriter sees the references.
        processes: how many judge and rewrite.
        settings: of rewriting.
    """
    pairs, responses = [], []
    for prompt in prompts:
        right, *others = sorted(SHAPES, key=lambda shape: shape != prompt["reference"])
        sides = (f"It is a {right}.", f"It is a {others[0]}.")
        pairs.append(records.make_pair(prompt["prompt_id"], *sides, source="s", strength=2.0, label="constructed"))
        responses += response_rows(dict(prompt), *sides)
    seen = prompts if referenced else [{**prompt, "reference": None} for prompt in prompts]
    for name, rows in (("pairs", pairs), ("prompts", seen), ("responses", responses)):
        atomic.write_parquet(schemas.table(rows, name), folder / f"{name}.parquet")
    return RestyleJob(
        **{name: folder / f"{name}.parquet" for name in ("pairs", "prompts", "responses")},
        media_root=folder,
        output=folder / "one",
        cache=folder / "one.sqlite",
        near_identical=0.95,
        settings=RestyleSettings.model_validate({"style": "one sentence", **settings}),
        processes=processes,
    )
