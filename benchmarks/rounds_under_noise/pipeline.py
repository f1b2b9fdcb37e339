"""Training and scoring as the pipeline's assets start them, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.environment import WORKER_ENVIRONMENT


@dataclass(frozen=True)
class Jobs:
    """Jobs with the settings of a recipe, on the media of an artifact home."""

    recipe: Any
    media: Path

    def train(self, joined: Any, seed: int, work: Path) -> dict[str, Any]:
        """The training of the pipeline, as its assets start it (orchestrate/stage/model_jobs.py).

        It resumes in `work`, and returns the job's summary.
        """
        from dt2it_pipeline.config.paths import model_path
        from dt2it_pipeline.engines.launch.ranks import rank_environment, ranks_command
        from dt2it_pipeline.reward.training.job import TrainJob

        settings = self.recipe.training
        work.mkdir(parents=True, exist_ok=True)
        _write(joined, work)
        job = TrainJob(
            name="reward_model",
            base_model=model_path(settings.base_model),
            pairs=work / "pairs.parquet",
            prompts=work / "prompts.parquet",
            media_root=self.media,
            output=work / "checkpoint",
            work=work / "training",
            settings=settings,
            seed=seed,
        )
        path = work / "train.json"
        job.write(path)
        command = ranks_command(["dt2it_pipeline.engines.jobs", str(path)], settings.processes)
        return _run(command, rank_environment(settings.processes))

    def score(self, work: Path, responses: Any, prompts: Any, output: Path, voter: str) -> None:
        """Scores of the model in `work`, as the pipeline computes them."""
        from dt2it_pipeline.reward.scoring.job import ScoreJob
        from dt2it_pipeline.storage.atomic import write_parquet

        shards = work / f"{output.stem}-shards"
        shards.mkdir(exist_ok=True)
        write_parquet(responses, shards / "responses.parquet")
        write_parquet(prompts, shards / "prompts.parquet")
        job = ScoreJob(
            checkpoint=str(work / "checkpoint"),
            prompts=shards / "prompts.parquet",
            responses=shards / "responses.parquet",
            media_root=self.media,
            output=output,
            work=shards,
            voter=voter,
            settings=self.recipe.scoring,
        )
        path = work / "score.json"
        job.write(path)
        _run([sys.executable, "-m", "dt2it_pipeline.engines.jobs", str(path)], {})


def _write(joined: Any, work: Path) -> None:
    from dt2it_pipeline.storage.atomic import write_parquet

    for name in ("pairs", "prompts"):
        write_parquet(joined[name], work / f"{name}.parquet")


def _run(command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """Run a job's command line; returns its summary, which is the last line that it prints."""
    done = subprocess.run(
        command, env={**os.environ, **WORKER_ENVIRONMENT, **environment}, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with code {done.returncode}:\n{done.stdout}\n{done.stderr}")
    summary: dict[str, Any] = json.loads(next(x for x in reversed(done.stdout.splitlines()) if x.startswith("{")))
    return summary
