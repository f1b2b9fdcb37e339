"""What heavy steps hand to their jobs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from dt2it_pipeline.config.recipe import load_recipe
from dt2it_pipeline.config.sections.ray import RaySettings
from dt2it_pipeline.orchestrate.resources import ChildProcesses, StoreResource
from dt2it_pipeline.orchestrate.stage.model_jobs import ModelJobs
from dt2it_pipeline.reward.scoring.job import ScoreJob
from dt2it_pipeline.storage import schemas
from dt2it_pipeline.storage.artifacts import Artifact
from dt2it_pipeline.storage.atomic import write_parquet


@dataclass
class Recorded:
    """Stands where child processes are started; leaves the empty tables that a scoring job of no rows would."""

    jobs: list[ScoreJob] = field(default_factory=list)

    def run(self, context: Any, job: ScoreJob, work: Path) -> dict[str, Any]:
        self.jobs.append(job)
        write_parquet(schemas.table([], "scores"), job.output)
        write_parquet(schemas.table([], "quarantine"), job.output.with_name("scores.quarantine.parquet"))
        return {}


def test_scoring_goes_to_ray_where_the_recipe_has_it_and_nowhere_else(tmp_path: Path) -> None:
    children, recipe = Recorded(), load_recipe("configs/recipes/demo.yaml")
    ray = RaySettings(workers=3, gpus_per_worker=1)
    for where in (None, ray):
        models = ModelJobs(
            cast(Any, None),
            StoreResource(home=str(tmp_path)),
            cast(ChildProcesses, children),
            recipe.training,
            recipe.scoring,
            where,
            recipe.seed,
        )
        tables = (schemas.table([], "responses"), schemas.table([], "prompts"))
        models.score(Artifact({}, {}, tmp_path), *tables, "reward_model/0", tmp_path)
    without, with_ray = children.jobs
    assert without.ray is None
    assert with_ray.ray == ray
    assert with_ray.model_copy(update={"ray": None}) == without
