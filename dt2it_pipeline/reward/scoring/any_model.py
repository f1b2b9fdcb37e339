"""Scores of a responses table by any reward model: our checkpoints, those of other trainers, or a server behind a URL.

    python -m dt2it_pipeline.engines.jobs job.json

A killed run goes on where it stopped.
"""

from __future__ import annotations

import re
import time
from typing import ClassVar

import pyarrow as pa

from dt2it_pipeline.engines.jobs import Reporter, Summary
from dt2it_pipeline.observe.progress import Progress
from dt2it_pipeline.reward.scoring.image_size import image_size
from dt2it_pipeline.reward.scoring.job import (
    ResponsesJob,
    ScoreJob,
    plan_shards,
    shard_is_done,
    shard_path,
    write_shard,
)
from dt2it_pipeline.storage import atomic, schemas

_URL = re.compile(r"https?://", re.IGNORECASE)
_SHARD = 512  # responses


class ModelScoreJob(ResponsesJob):
    """Score a responses table with any reward model.

    Attributes:
        model: checkpoint folder of ours or of another trainer, Hub id, or URL of a pooling server.
        system_prompt: of a model whose chat template does not have it, behind a server or of another trainer.
    """

    entry_point: ClassVar[str] = "dt2it_pipeline.reward.scoring.any_model:run"

    model: str
    system_prompt: str | None = None

    def with_checkpoint(self, checkpoint: str) -> ScoreJob:
        """The job for a checkpoint of ours."""
        shared = {name: getattr(self, name) for name in ResponsesJob.model_fields}
        return ScoreJob(checkpoint=checkpoint, **shared)


def is_url(model: str) -> bool:
    """Whether a model is named by the URL of a server."""
    return _URL.match(model) is not None


def run(job: ModelScoreJob, report: Reporter) -> Summary:
    """Score all responses; tables and summary are those of `reward.scoring.job.run`.

    A server's summary has served_model and system_prompt instead of figures about shards; max_pixels is None where the
    server's checkpoint is not on this machine.

    Raises:
        CheckpointError, ScoringError, ShardsError, EngineError: as there, or the server cannot be used.
    """
    if is_url(job.model):
        return _by_server(job, report)
    from dt2it_pipeline.reward.checkpoints.checkpoint import resolve_folder
    from dt2it_pipeline.reward.checkpoints.heads import serving_fault
    from dt2it_pipeline.reward.checkpoints.processor_files import CARD
    from dt2it_pipeline.reward.scoring import job as scoring_job

    folder, imported = resolve_folder(job.model), job.work / "imported"
    # Another trainer's model is imported: it then has the system prompt in its card, and either engine can load it.
    if not (folder / CARD).is_file() or serving_fault(folder):
        from dt2it_pipeline.reward.foreign import import_checkpoint

        if not imported.exists():
            import_checkpoint(folder, imported, system_prompt=job.system_prompt)
        folder = imported
    return scoring_job.run(job.with_checkpoint(str(folder)), report)


def _by_server(job: ModelScoreJob, report: Reporter) -> Summary:
    from dt2it_pipeline.engines.score_endpoint import EndpointScorer
    from dt2it_pipeline.reward.data.preparation import prompt_rows

    started = time.perf_counter()
    prompts = atomic.read_given_parquet(job.prompts, "prompts")
    responses = atomic.read_given_parquet(job.responses, "responses")
    limit = job.settings.pixel_limit
    scorer = EndpointScorer(job.model, job.media_root, system_prompt=job.system_prompt or "", max_pixels=limit)
    job.work.mkdir(parents=True, exist_ok=True)
    shards = plan_shards(responses, prompts, _SHARD)
    done, progress = 0, Progress(report, "responses", sum(map(len, shards)))
    for number, shard in enumerate(shards):
        if not shard_is_done(job.work, number):
            scores, faults = scorer.score(prompt_rows(prompts, {prompt for _, prompt, _ in shard}), shard)
            write_shard(job, number, sorted(shard), scores, dict(sorted(faults.items())))
        done += len(shard)
        progress.at(done)
    tables = {}
    for kind, suffix in (("scores", ".parquet"), ("quarantine", ".quarantine.parquet")):
        files = [shard_path(job.work, number).with_suffix(suffix) for number in range(len(shards))]
        tables[kind] = pa.concat_tables([schemas.table([], kind), *(atomic.read_parquet(file, kind) for file in files)])
    atomic.write_parquet(tables["quarantine"], job.output.with_name(f"{job.output.stem}.quarantine.parquet"))
    atomic.write_parquet(tables["scores"], job.output)
    return {
        "responses": done,
        "scored": tables["scores"].num_rows,
        "quarantined": tables["quarantine"].num_rows,
        "served_model": scorer.model,
        "system_prompt": scorer.system_prompt,
        "seconds": round(time.perf_counter() - started, 2),
        **image_size(scorer.root, limit),
    }
