"""Part 1 through Dagster, on a recipe with a pool of models."""

from __future__ import annotations

from typing import Any

import dagster as dg

from dt2it_pipeline.config.recipe import Recipe, load_recipe
from dt2it_pipeline.definitions import build_defs
from dt2it_pipeline.storage.artifacts import Store

STAGES = ("candidate_responses", "judged_responses", "debiased_pairs")


def recipe_of(
    pool: list[str], restyle: dict[str, Any] | None = None, pairing: dict[str, Any] | None = None, **sampling: Any
) -> Recipe:
    demo = load_recipe("configs/recipes/demo.yaml")
    changes = {
        "sampling": {"models": pool, "temperatures": [0.5, 1.0], "samples": 4, "mismatched_samples": 0, **sampling},
        "pairing": {"restyle": restyle} | (pairing or {}),
    }
    return Recipe.model_validate(
        demo.model_dump() | {name: getattr(demo, name).model_dump() | new for name, new in changes.items()}
    )


def construct(recipe: Recipe, home: Store) -> dg.ExecuteInProcessResult:
    with dg.DagsterInstance.ephemeral() as instance:
        job = build_defs(recipe, home.home).resolve_job_def("construct")
        selected = [dg.AssetKey(name) for name in STAGES]
        return job.execute_in_process(asset_selection=selected, instance=instance, raise_on_error=False)


def checks(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, dg.AssetCheckEvaluation]:
    found = result.get_asset_check_evaluations()
    return {each.check_name: each for each in found if each.asset_key == dg.AssetKey(asset)}
