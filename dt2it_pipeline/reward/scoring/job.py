"""Scoring entry point: every unique response once, in shards that a killed run does not repeat.

    python -m dt2it_pipeline.engines.jobs job.json

The recipe's `scoring.engine` says who computes: our own model (scorer.py) or vLLM's pooling engine (vllm_scorer.py).
Who does the shards, workers of this machine or of a Ray cluster, is the launcher's business (engines/launch/shards.py).
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from dt2it_pipeline.config.sections.ray import RaySettings
from dt2it_pipeline.config.sections.scoring import ScoringSettings
from dt2it_pipeline.engines import lean_processes
from dt2it_pipeline.engines.jobs import Job, Reporter, ShardedJob, Summary
from dt2it_pipeline.engines.launch import fork_server
from dt2it_pipeline.engines.launch.launcher import Resources, WorkerPlace
from dt2it_pipeline.engines.launch.shards import model_launcher, shard_launcher
from dt2it_pipeline.observe.progress import Progress
from dt2it_pipeline.reward.errors import ScoringError
from dt2it_pipeline.reward.modeling.compile_time import Compilation, recorded
from dt2it_pipeline.reward.scoring.image_size import image_size
from dt2it_pipeline.storage import atomic, finished_work, integrity, records, schemas

_logger = logging.getLogger(__name__)
Response = tuple[str, str, str]  # response_id, prompt_id, text
Shard = tuple[int, list[Response]]  # its number, and its responses


class _Done(NamedTuple):
    """What a worker says of a shard that it has done."""

    responses: int
    worker: str
    compilation: Compilation | None  # of the worker since its start; None: its layers are not compiled


class ResponsesJob(Job):
    """What every scoring of a responses table has in common.

    Attributes:
        prompts: Parquet of kind `prompts`.
        responses: Parquet of kind `responses`; one that stands there several times is scored once.
        media_root: folder that the prompts' media paths are relative to.
        output: Parquet of kind `scores` to write; responses that cannot be scored go to a quarantine table beside it,
            `<output stem>.quarantine.parquet`.
        work: folder for finished shards, from which a killed run goes on.
        voter: how the scores call the model.
        settings: the recipe's section `scoring`.
        ray: the recipe's section `ray`; None: on this machine.
    """

    prompts: Path
    responses: Path
    media_root: Path
    output: Path
    work: Path
    voter: str
    settings: ScoringSettings
    ray: RaySettings | None = None

    help_page: ClassVar[str] = "troubleshooting#scoring"


class ScoreJob(ResponsesJob, ShardedJob):
    """Score a responses table with a checkpoint of ours.

    Attributes:
        checkpoint: folder of a reward model, or its Hub id.
    """

    entry_point: ClassVar[str] = "dt2it_pipeline.reward.scoring.job:run"
    shard_worker: ClassVar[str] = "dt2it_pipeline.reward.scoring.job:shard_worker"

    checkpoint: str

    @property
    def imports(self) -> str | None:
        """See `Job`."""
        here = self.settings.engine == "transformers" and self.ray is None
        return "dt2it_pipeline.reward.job_imports:scoring" if here else None

    @property
    def preloaded(self) -> str | None:
        """See `ShardedJob`."""
        return fork_server.VLLM if self.settings.engine == "vllm" else None


def run(job: ScoreJob, report: Reporter) -> Summary:
    """Score all responses of a table with one checkpoint.

    Args:
        job: what to score, and with which model.
        report: called after each shard with how many of the responses are scored.

    Returns:
        responses (unique ones) = scored + quarantined, shards, shards_resumed, seconds, gpu_seconds (GPUs times
        seconds), responses_per_second, and max_pixels and trained_max_pixels (see image_size.py); where layers are
        compiled, what that took the worker that it took longest (compile_time.py).

    Raises:
        ScoringError: vLLM was asked for, and a prompt shows a video.
        CheckpointError: the checkpoint is not a reward model of a supported family.
        EngineError: vLLM, where it is asked for, cannot load the checkpoint.
        ShardsError: a worker died or cannot be had, or a shard failed there.
    """
    settings = job.settings
    if settings.engine == "transformers":
        lean_processes.skip_unused()
    started = time.perf_counter()
    responses = atomic.read_given_parquet(job.responses, "responses")
    prompts = atomic.read_given_parquet(job.prompts, "prompts")
    if settings.engine == "vllm":
        _refuse_videos(responses, prompts, job.prompts)
    shards = plan_shards(responses, prompts, settings.shard_responses)
    job.work.mkdir(parents=True, exist_ok=True)
    todo = {n: (n, shard) for n, shard in enumerate(shards) if not shard_is_done(job.work, n)}
    total = sum(len(shard) for _, shard in todo.values())
    progress = Progress(report, "responses", total)

    compiled: dict[str, Compilation] = {}  # by worker

    def finished(number: int, done: _Done) -> None:
        if done.compilation is not None:
            compiled[done.worker] = done.compilation
        progress.add(done.responses)

    if settings.engine == "vllm":
        launcher = model_launcher(job.ray, settings.processes, settings.tensor_parallel)
    else:  # forked workers inherit imports and tables, which vLLM does not survive
        launcher = shard_launcher(job.ray, Resources(settings.processes), fork=True)
    gpus = launcher.run(job, todo, finished, shared=prompts)
    from dt2it_pipeline.reward.checkpoints.checkpoint import resolve_folder

    summary = _merge(job, responses, len(shards))
    if compiled:
        summary |= recorded(compiled.values())
    seconds = time.perf_counter() - started
    return summary | {
        "shards": len(shards),
        "shards_resumed": len(shards) - len(todo),
        "seconds": round(seconds, 2),
        "gpu_seconds": round(gpus * seconds, 1),
        "responses_per_second": round(total / seconds, 2),
        **image_size(resolve_folder(job.checkpoint), settings.pixel_limit),
    }


def _refuse_videos(responses: Any, prompts: Any, path: Path) -> None:
    """Raise before any work where a prompt shows a video: vLLM's scorer would quarantine every response to it."""
    wanted = set(responses.column("prompt_id").to_pylist())
    media = zip(prompts.column("prompt_id").to_pylist(), prompts.column("media").to_pylist(), strict=True)
    shown = [
        prompt_id
        for prompt_id, row in media
        if prompt_id in wanted and any(medium["kind"] == "video" for medium in row or ())
    ]
    if shown:
        raise ScoringError(
            f"scoring.engine: vllm takes texts and images, no video; {len(shown)} prompts of {path} show one, such "
            f"as {shown[0]}: choose transformers, or leave them out"
        )


def plan_shards(responses: Any, prompts: Any, most: int) -> list[list[Response]]:
    """Split unique responses into shards of about `most` responses, a pure function of the tables.

    Responses of a prompt stay together, and so do prompts about the same image: it is then encoded once.

    Args:
        responses: table of kind `responses`.
        prompts: table of kind `prompts`.
        most: responses per shard; one more prompt's may exceed it.
    """
    columns = (responses.column(name).to_pylist() for name in ("response_id", "prompt_id", "text"))
    unique: dict[str, Response] = {}
    for response in zip(*columns, strict=True):
        unique.setdefault(response[0], response)
    media = prompts.column("media").to_pylist()
    first = {
        prompt_id: (shown[0]["sha256"] if shown else "")
        for prompt_id, shown in zip(prompts.column("prompt_id").to_pylist(), media, strict=True)
    }
    shards: list[list[Response]] = []
    before = None
    for response in sorted(unique.values(), key=lambda r: (first.get(r[1], ""), r[1], r[0])):
        if not shards or (len(shards[-1]) >= most and response[1] != before):
            shards.append([])
        shards[-1].append(response)
        before = response[1]
    return shards


def shard_path(work: Path, number: int) -> Path:
    """Scores of a finished shard; its quarantine rows lie beside it, `<stem>.quarantine.parquet`."""
    return work / f"shard-{number:06d}.parquet"


def shard_is_done(work: Path, number: int) -> bool:
    """Whether a shard was scored before, to its end; one that is damaged since is scored again, with one line."""
    try:
        return finished_work.finished(_marker(work, number)) is not None
    except finished_work.DamagedWorkError as error:
        _logger.warning("shard %d of the scores is damaged and is scored again (%s)", number, error)
        return False


def _marker(work: Path, number: int) -> Path:
    return shard_path(work, number).with_suffix(".json")


def shard_worker(job: ScoreJob, prompts: Any, place: WorkerPlace) -> Callable[[Shard], _Done]:
    """A worker's function: loads the model, and returns what scores one shard."""
    if job.settings.engine == "transformers":
        lean_processes.skip_unused()
    import torch

    from dt2it_pipeline.reward.data.preparation import prompt_rows
    from dt2it_pipeline.reward.modeling.compilation import compiled_so_far
    from dt2it_pipeline.reward.training.distributed import flush_denormals

    if place.threads is not None:  # a process of the worker's own, whose state is nobody else's
        torch.set_num_threads(place.threads)
        flush_denormals()
    scorer, before = _load(job, prompts, place), compiled_so_far()
    compiles = job.settings.engine == "transformers" and scorer.model.runs_compiled
    name = f"{platform.node()} {os.getpid()}"

    def do(shard: Shard) -> _Done:
        number, responses = shard
        rows = prompt_rows(prompts, {prompt_id for _, prompt_id, _ in responses})
        write_shard(job, number, responses, *scorer.score(rows, responses))
        return _Done(len(responses), name, compiled_so_far() - before if compiles else None)

    return do


def write_shard(
    job: ResponsesJob,
    number: int,
    responses: list[Response],
    scores: Mapping[str, float],
    faults: Mapping[str, tuple[str, str]],
) -> None:
    """Write the scores of one shard and its quarantine rows, and after them the marker that says that it is done.

    Args:
        job: whose work folder it goes to.
        number: of the shard.
        responses: of the shard; scores are written in their order.
        scores: by response_id.
        faults: reason and detail by response_id, of responses that cannot be scored.
    """
    path = shard_path(job.work, number)
    aside = [records.quarantine_row(name, "scoring", *fault) for name, fault in faults.items()]
    atomic.write_parquet(schemas.table(aside, "quarantine"), path.with_suffix(".quarantine.parquet"))
    rows = [
        {"response_id": name, "voter": job.voter, "score": scores[name]} for name, _, _ in responses if name in scores
    ]
    atomic.write_parquet(schemas.table(rows, "scores"), path)
    files = [path, path.with_suffix(".quarantine.parquet")]
    finished_work.finish(_marker(job.work, number), integrity.digests_of(job.work, files))


def _load(job: ScoreJob, prompts: Any, place: WorkerPlace) -> Any:
    """The scorer of a job at a worker's place."""
    if job.settings.engine == "vllm":
        return _load_vllm(job, prompts)
    import torch

    from dt2it_pipeline.engines.device import found_device
    from dt2it_pipeline.reward.scoring.scorer import Scorer

    return Scorer(
        job.checkpoint,
        job.media_root,
        max_length=job.settings.max_length,
        max_pixels=job.settings.pixel_limit,
        tokens_per_batch=job.settings.tokens_per_batch,
        device=found_device() if place.device == "auto" else torch.device(place.device),
        precision=job.settings.precision,
        attention=job.settings.attention,
        compile=job.settings.compile,
        vision_disk_gib=job.settings.vision_disk_gib,
    )


def _load_vllm(job: ScoreJob, prompts: Any) -> Any:
    """The vLLM scorer of a job; it takes the GPU that its process sees."""
    import pyarrow.compute as pc

    if multiprocessing.parent_process() is not None:  # one of several workers: the engine stays in its process
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    from dt2it_pipeline.reward.scoring.vllm_scorer import VllmScorer

    return VllmScorer(
        job.checkpoint,
        job.media_root,
        max_length=job.settings.max_length,
        max_pixels=job.settings.pixel_limit,
        tokens_per_batch=job.settings.tokens_per_batch,
        max_images=pc.max(pc.list_value_length(prompts.column("media"))).as_py() or 0,
        precision=job.settings.precision,
        run=job.settings,
    )


def _merge(job: ScoreJob, responses: Any, count: int) -> Summary:
    """Put the shards together in the order of the responses table."""
    import pyarrow as pa

    shards = [shard_path(job.work, number) for number in range(count)]
    empty = {kind: schemas.table([], kind) for kind in ("scores", "quarantine")}
    order = {name: place for place, name in reversed(list(enumerate(responses.column("response_id").to_pylist())))}
    scores = pa.concat_tables([empty["scores"], *(atomic.read_parquet(p, "scores") for p in shards)])
    files = [path.with_suffix(".quarantine.parquet") for path in shards]
    aside = pa.concat_tables([empty["quarantine"], *(atomic.read_parquet(p, "quarantine") for p in files)])
    scores = scores.take(_by_order(scores.column("response_id"), order))
    aside = aside.take(_by_order(aside.column("row_id"), order))
    atomic.write_parquet(aside, job.output.with_name(f"{job.output.stem}.quarantine.parquet"))
    atomic.write_parquet(schemas.validate(scores, "scores"), job.output)
    return {"responses": len(order), "scored": scores.num_rows, "quarantined": aside.num_rows}


def _by_order(names: Any, order: Mapping[str, int]) -> Any:
    import numpy as np

    return np.argsort(np.array([order[name] for name in names.to_pylist()], dtype=np.int64), kind="stable")
