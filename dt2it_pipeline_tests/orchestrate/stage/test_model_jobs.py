"""What heavy steps hand to their jobs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from dagster import AssetKey, Failure

from dt2it_pipeline.config.recipe import load_recipe
from dt2it_pipeline.config.sections.ray import RaySettings
from dt2it_pipeline.orchestrate.resources import ChildProcesses, StoreResource
from dt2it_pipeline.orchestrate.stage.model_jobs import ModelJobs
from dt2it_pipeline.reward.scoring.job import ScoreJob
from dt2it_pipeline.reward.too_long import too_long
from dt2it_pipeline.reward.training.job import TrainJob
from dt2it_pipeline.reward.training.restarts import Place, memory_error
from dt2it_pipeline.storage import records, schemas
from dt2it_pipeline.storage.artifacts import Artifact
from dt2it_pipeline.storage.atomic import write_parquet


@dataclass
class Recorded:
    """Stands where child processes are started; leaves the empty tables that a scoring job of no rows would."""

    jobs: list[ScoreJob] = field(default_factory=list)
    quarantine: list[dict[str, str]] = field(default_factory=list)

    def run(self, context: Any, job: Any, work: Path, ranks: Any = None) -> dict[str, Any]:
        if isinstance(job, TrainJob):
            write_parquet(schemas.table(self.quarantine, "quarantine"), job.output / "quarantine.parquet")
            return {}
        self.jobs.append(job)
        write_parquet(schemas.table([], "scores"), job.output)
        write_parquet(schemas.table(self.quarantine, "quarantine"), job.output.with_name("scores.quarantine.parquet"))
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


@dataclass
class Context:
    """Stands in the place of a step's context; keeps what is logged."""

    lines: list[str] = field(default_factory=list)
    asset_key: AssetKey = field(default_factory=lambda: AssetKey("reward_model"))

    @property
    def log(self) -> Any:
        return SimpleNamespace(warning=self.lines.append)


def test_what_is_too_long_is_one_line_with_the_setting_that_lifts_it(tmp_path: Path) -> None:
    recipe, context = load_recipe("configs/recipes/demo.yaml"), Context()
    lost = [records.quarantine_row(f"r{n}", "x", *(too_long(600 + n, 512) or ())) for n in range(3)]
    other = records.quarantine_row("r9", "x", "missing image", "gone.png")
    models = ModelJobs(
        cast(Any, context),
        StoreResource(home=str(tmp_path)),
        cast(ChildProcesses, Recorded(quarantine=[*lost, other])),
        recipe.training.model_copy(update={"max_length": 512}),
        recipe.scoring,
        None,
        recipe.seed,
    )
    prompts = schemas.table([], "prompts")
    models.train_in(tmp_path, schemas.table([], "pairs"), prompts, 0)
    models.score(Artifact({}, {}, tmp_path), schemas.table([], "responses"), prompts, "v", tmp_path)
    training, scoring = context.lines
    assert training.startswith(
        "3 of 0 pairs are left out: longer than training.max_length (512 tokens; the longest has 602)"
    )
    assert "Raise it, or remove it" in training
    assert scoring.startswith("3 of 0 responses are left out: longer than the context of the model (512 tokens; the")
    assert "scoring.max_pixels" in scoring


@dataclass
class OutOfMemory(Recorded):
    """Stands where child processes are started, and whose memory holds no more than some pairs."""

    pairs: int = 4
    trained: list[TrainJob] = field(default_factory=list)

    def run(self, context: Any, job: Any, work: Path, ranks: Any = None) -> dict[str, Any]:
        self.trained.append(job)
        if job.most_per_pass.pairs > self.pairs:
            job.work.mkdir(exist_ok=True)
            size = job.most_per_pass.pairs
            raise Failure(str(memory_error(job, Place("at step 7", size, size, 900), 0, 1, MemoryError())))
        return super().run(context, job, work, ranks)


def test_a_training_whose_memory_ran_out_is_started_again_once(tmp_path: Path) -> None:
    recipe, context, children = load_recipe("configs/recipes/demo.yaml"), Context(), OutOfMemory()
    models = ModelJobs(
        cast(Any, context),
        StoreResource(home=str(tmp_path)),
        cast(ChildProcesses, children),
        recipe.training.model_copy(update={"micro_batch_size": 8, "micro_batch_tokens": None}),
        recipe.scoring,
        None,
        recipe.seed,
    )
    tables = schemas.table([], "pairs"), schemas.table([], "prompts")
    models.train_in(tmp_path, *tables, 0)
    assert [job.most_per_pass.pairs for job in children.trained] == [8, 4]
    (line,) = context.lines
    assert line.startswith("memory ran out at step 7, rank 0 of 1 (MemoryError); training goes on from its last saved")

    children.pairs = 2
    with pytest.raises(Failure, match="the micro-batch was halved already, to 4 pairs"):
        models.train_in(tmp_path, *tables, 0)
    assert [job.most_per_pass.pairs for job in children.trained] == [8, 4, 4]  # as the note says, and not again
