"""Training and scoring as the assets call them: the job description, the launcher, and the result as an artifact."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa

from dt2it_pipeline.config.paths import model_path
from dt2it_pipeline.config.ray import RaySettings
from dt2it_pipeline.config.recipe_files import hostfile_path, read_deepspeed_config
from dt2it_pipeline.config.scoring import ScoringSettings
from dt2it_pipeline.config.training import TrainingSettings
from dt2it_pipeline.engines.deepspeed_launcher import REMOTE_ENVIRONMENT, deepspeed_command, rank_environment
from dt2it_pipeline.orchestrate.cached_stage import run_stage
from dt2it_pipeline.orchestrate.metadata import training_curve
from dt2it_pipeline.orchestrate.resources import ChildProcesses, StoreResource
from dt2it_pipeline.storage import schemas
from dt2it_pipeline.storage.artifacts import Artifact, Store, model_digest
from dt2it_pipeline.storage.atomic import read_parquet, write_parquet


@dataclass(frozen=True)
class ModelJobs:
    """What a step that trains or scores needs: its context, the store, child processes and the recipe's sections."""

    context: dg.AssetExecutionContext
    store: StoreResource
    children: ChildProcesses
    training: TrainingSettings
    scoring: ScoringSettings
    ray: RaySettings | None
    seed: int

    def train(self, pairs: pa.Table, prompts: pa.Table, inputs: Mapping[str, Artifact | str]) -> Artifact:
        """Train a reward model on a pairs table and its prompts; the checkpoint is the artifact's folder."""
        settings = self.training

        def compute(work: Path) -> Artifact:
            summary = self.train_in(work, pairs, prompts, self.seed)
            quarantine = read_parquet(work / "checkpoint" / "quarantine.parquet", "quarantine")
            return Artifact({"quarantine": quarantine}, summary, work / "checkpoint")

        return run_stage(
            self.context,
            self._opened,
            compute,
            inputs={**inputs, "base_model": model_digest(model_path(settings.base_model))},
            settings={
                "training": settings,
                "deepspeed_config": read_deepspeed_config(settings.deepspeed_config),
                "seed": self.seed,
            },
        )

    def train_in(self, work: Path, pairs: pa.Table, prompts: pa.Table, seed: int) -> dict[str, Any]:
        """Train within a stage: the checkpoint lies in `work`/checkpoint; what is returned sums the training up."""
        settings = self.training
        write_parquet(pairs, work / "pairs.parquet")
        write_parquet(prompts, work / "prompts.parquet")
        job = {
            "name": self.context.asset_key.to_user_string(),
            "base_model": model_path(settings.base_model),
            "pairs": str(work / "pairs.parquet"),
            "prompts": str(work / "prompts.parquet"),
            "media_root": str(self._opened.media),
            "output": str(work / "checkpoint"),
            "work": str(work / "training"),
            "settings": settings.model_dump(mode="json"),
            "seed": seed,
        }
        return self.children.run(
            self.context,
            "dt2it_pipeline.reward.training.train:run",
            job,
            work,
            launch=lambda module: deepspeed_command(module, settings.processes, hostfile=hostfile_path(settings)),
            env=rank_environment(settings.processes)
            | ({REMOTE_ENVIRONMENT: str(work / "remote_environment")} if settings.hostfile else {}),
        )

    def score(self, checkpoint: Artifact, responses: pa.Table, prompts: pa.Table, voter: str, work: Path) -> Artifact:
        """Score a responses table with a checkpoint; the artifact holds `scores` and `quarantine`."""
        target = "dt2it_pipeline.reward.scoring.job:run"
        return self.score_with(target, {"checkpoint": str(checkpoint.folder)}, responses, prompts, voter, work)

    def score_with(
        self,
        target: str,
        model: Mapping[str, str | None],
        responses: pa.Table,
        prompts: pa.Table,
        voter: str,
        work: Path,
    ) -> Artifact:
        """Score a responses table with the job function `target`, to which `model` says which model it is."""
        write_parquet(responses, work / "responses.parquet")
        write_parquet(prompts, work / "prompts.parquet")
        job = {
            **model,
            "prompts": str(work / "prompts.parquet"),
            "responses": str(work / "responses.parquet"),
            "media_root": str(self._opened.media),
            "output": str(work / "scores.parquet"),
            "work": str(work / "shards"),
            "voter": voter,
            "settings": self.scoring.model_dump(mode="json"),
            "ray": ray_job(self.ray),
        }
        summary = self.children.run(self.context, target, job, work)
        tables = {
            "scores": read_parquet(work / "scores.parquet", "scores"),
            "quarantine": read_parquet(work / "scores.quarantine.parquet", "quarantine"),
        }
        counts = {
            "rows_in": responses.num_rows,
            "rows_out": tables["scores"].num_rows,
            "rows_quarantined": tables["quarantine"].num_rows,
        }
        return Artifact(tables, summary | counts)

    @property
    def _opened(self) -> Store:
        return self.store.open()


def ray_job(ray: RaySettings | None) -> dict[str, Any] | None:
    """The recipe's `ray` as a job carries it. It is in no stage's key: where shards are done changes no result."""
    return None if ray is None else ray.model_dump(mode="json")


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
    shown = {key: last[key] for key in ("loss", "accuracy", "learning_rate", "pairs_per_second") if key in last}
    return shown | {"training_curve": training_curve(log, validation_log(checkpoint))}
