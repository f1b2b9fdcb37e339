"""Training and scoring as the assets call them: the job, what it asks for, and the result as an artifact."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa

from dt2it_pipeline.config.paths import model_path
from dt2it_pipeline.config.recipe_files import hostfile_path, read_deepspeed_config
from dt2it_pipeline.config.sections.ray import RaySettings
from dt2it_pipeline.config.sections.scoring import ScoringSettings
from dt2it_pipeline.config.sections.training import TrainingSettings
from dt2it_pipeline.engines.jobs import Summary
from dt2it_pipeline.engines.launch.launcher import Resources
from dt2it_pipeline.engines.launch.ranks import rank_environment
from dt2it_pipeline.ingest.provenance import recorded
from dt2it_pipeline.orchestrate.resources import ChildProcesses, StoreResource
from dt2it_pipeline.orchestrate.stage.cached_stage import run_stage
from dt2it_pipeline.orchestrate.stage.metadata import training_curve
from dt2it_pipeline.reward.scoring.any_model import ModelScoreJob
from dt2it_pipeline.reward.scoring.job import ResponsesJob, ScoreJob
from dt2it_pipeline.reward.too_long import left_out
from dt2it_pipeline.reward.training.job import TrainJob
from dt2it_pipeline.reward.training.restarts import launch_training
from dt2it_pipeline.storage import schemas
from dt2it_pipeline.storage.artifacts import Artifact, model_digest
from dt2it_pipeline.storage.atomic import read_parquet, write_parquet


@dataclass(frozen=True)
class ModelJobs:
    """Trains and scores reward models for one step.

    Attributes:
        context: of the step.
        store: where results, media and work lie.
        children: launches the jobs.
        training, scoring, ray: sections of the recipe.
        seed: the recipe's.
    """

    context: dg.AssetExecutionContext
    store: StoreResource
    children: ChildProcesses
    training: TrainingSettings
    scoring: ScoringSettings
    ray: RaySettings | None
    seed: int

    def train(self, pairs: pa.Table, prompts: pa.Table, inputs: Mapping[str, Artifact | str]) -> Artifact:
        """Train a reward model on a pairs table and its prompts; the checkpoint is the artifact's folder."""

        def compute(work: Path) -> Artifact:
            summary = self.train_in(work, pairs, prompts, self.seed)
            quarantine = read_parquet(work / "checkpoint" / "quarantine.parquet", "quarantine")
            return Artifact({"quarantine": quarantine}, summary, work / "checkpoint")

        return run_stage(
            self.context,
            self.store.open(),
            compute,
            inputs={**inputs, "base_model": model_digest(model_path(self.training.base_model))},
            settings={
                "training": self.training,
                "deepspeed_config": read_deepspeed_config(self.training.deepspeed_config),
                "seed": self.seed,
            },
        )

    def train_in(self, work: Path, pairs: pa.Table, prompts: pa.Table, seed: int) -> Summary:
        """Train within a stage: the checkpoint lies in `work`/checkpoint; what is returned sums the training up."""
        settings = self.training
        write_parquet(pairs, work / "pairs.parquet")
        write_parquet(prompts, work / "prompts.parquet")
        job = TrainJob(
            name=self.context.asset_key.to_user_string(),
            base_model=model_path(settings.base_model),
            pairs=work / "pairs.parquet",
            prompts=work / "prompts.parquet",
            media_root=self.store.open().media,
            output=work / "checkpoint",
            work=work / "training",
            settings=settings,
            seed=seed,
            sources=recorded(self.store.open()),
        )
        ranks = Resources(
            settings.processes,
            gpus=1,
            hostfile=hostfile_path(settings),
            environment=rank_environment(settings.processes),
            settings="training.processes",
        )
        summary = launch_training(
            job,
            lambda job: self.children.run(self.context, job, work, ranks),
            self.context.log.warning,
        )
        if found := left_out(read_parquet(work / "checkpoint" / "quarantine.parquet", "quarantine")):
            line = found.in_words(pairs.num_rows, "pairs", "training.max_length", settings.max_length)
            self.context.log.warning(line)
        return summary

    def score(self, checkpoint: Artifact, responses: pa.Table, prompts: pa.Table, voter: str, work: Path) -> Artifact:
        """Score a responses table with a checkpoint; the artifact holds `scores` and `quarantine`."""
        shared = self._responses_job(responses, prompts, voter, work)
        return self._scored(ScoreJob(checkpoint=str(checkpoint.folder), **shared), responses, work)

    def score_any(
        self,
        model: str,
        system_prompt: str | None,
        responses: pa.Table,
        prompts: pa.Table,
        voter: str,
        work: Path,
    ) -> Artifact:
        """Score as `score` does with any reward model; see `ModelScoreJob` for `model` and `system_prompt`."""
        shared = self._responses_job(responses, prompts, voter, work)
        return self._scored(ModelScoreJob(model=model, system_prompt=system_prompt, **shared), responses, work)

    def _responses_job(self, responses: pa.Table, prompts: pa.Table, voter: str, work: Path) -> dict[str, Any]:
        """The fields that all scoring jobs share; writes their tables."""
        write_parquet(responses, work / "responses.parquet")
        write_parquet(prompts, work / "prompts.parquet")
        return {
            "prompts": work / "prompts.parquet",
            "responses": work / "responses.parquet",
            "media_root": self.store.open().media,
            "output": work / "scores.parquet",
            "work": work / "shards",
            "voter": voter,
            "settings": self.scoring,
            "ray": self.ray,  # in no stage's key: where shards are done changes no result
        }

    def _scored(self, job: ResponsesJob, responses: pa.Table, work: Path) -> Artifact:
        summary = self.children.run(self.context, job, work)
        tables = {
            "scores": read_parquet(job.output, "scores"),
            "quarantine": read_parquet(work / "scores.quarantine.parquet", "quarantine"),
        }
        if found := left_out(tables["quarantine"]):
            line = found.in_words(responses.num_rows, "responses", "scoring.max_length", self.scoring.max_length)
            self.context.log.warning(line)
        counts = {
            "rows_in": responses.num_rows,
            "rows_out": tables["scores"].num_rows,
            "rows_quarantined": tables["quarantine"].num_rows,
        }
        return Artifact(tables, summary | counts)


def responses_of(pairs: pa.Table) -> pa.Table:
    """Every unique response that a pairs (or benchmark_items) table names, in the order of its id."""
    texts: dict[str, tuple[str, str]] = {}
    for side in ("chosen", "rejected"):
        columns = (pairs[f"{side}_id"].to_pylist(), pairs["prompt_id"].to_pylist(), pairs[side].to_pylist())
        for key, prompt, text in zip(*columns, strict=True):
            texts[key] = (prompt, text)
    rows = [
        {"response_id": key, "prompt_id": prompt, "text": text, "generator": ""}
        for key, (prompt, text) in sorted(texts.items())
    ]
    return schemas.table(rows, "responses")


def training_log(checkpoint: Artifact) -> list[dict[str, Any]]:
    """Entries of a checkpoint's training log: step, loss, accuracy, learning rate and pairs per second."""
    return _log(checkpoint, "training_log")


def _log(checkpoint: Artifact, name: str) -> list[dict[str, Any]]:
    lines = (checkpoint.folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def validation_log(checkpoint: Artifact) -> list[dict[str, Any]]:
    """Evaluations of the held-out pairs: step, loss, accuracy and pairs; empty where nothing was held out."""
    return _log(checkpoint, "validation_log") if (checkpoint.folder / "validation_log.jsonl").exists() else []


def training_metadata(checkpoint: Artifact) -> dict[str, Any]:
    """Metadata of a trained model: its last figures and the loss curve, with held-out pairs where there are some."""
    log = training_log(checkpoint)
    if not log:
        return {}
    last = log[-1]
    # The log has the speed of single steps; the summary has that of the training.
    whole = {key: checkpoint.metadata.get(key) for key in ("pairs", "pairs_too_long", "pairs_per_second")}
    shown: dict[str, Any] = {key: value for key, value in whole.items() if value is not None}
    shown |= {key: last[key] for key in ("loss", "accuracy", "learning_rate") if key in last}
    return shown | {"training_curve": training_curve(log, validation_log(checkpoint))}
