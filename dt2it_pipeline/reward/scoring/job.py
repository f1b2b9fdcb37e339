"""Scoring entry point: every unique response once, in shards that a killed run does not repeat.

    python -m dt2it_pipeline.reward.scoring.job job.json

job: {checkpoint, prompts, responses, media_root, output, work, settings (ScoringSettings), voter}, optionally ray
(RaySettings). `output` is a scores table; responses that cannot be scored go to a quarantine table beside it,
`<output stem>.quarantine.parquet`. The recipe's `scoring.engine` says who computes: our own model (scorer.py) or vLLM's
pooling engine (vllm_scorer.py). Shards are shared out among local processes or, with `ray`, among Ray's workers.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from dt2it_pipeline.config.ray import RaySettings
from dt2it_pipeline.config.scoring import ScoringSettings
from dt2it_pipeline.engines import lean_imports
from dt2it_pipeline.engines.ray_shards import run_shards, threads_of
from dt2it_pipeline.errors import UserError
from dt2it_pipeline.storage import atomic, records, schemas

Report = Callable[[Mapping[str, Any]], None]


class ScoringError(UserError, RuntimeError):
    """Scoring cannot start or go on; the message says why."""

    help_page: ClassVar[str] = "troubleshooting#scoring"


def run(job: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Score all responses of a table with one checkpoint.

    Raises:
        ScoringError: a worker process died, or vLLM was asked for and a prompt shows a video.
        CheckpointError: the checkpoint is not a reward model of a supported family.
        EngineError: vLLM, where it is asked for, cannot load the checkpoint.
        RayShardsError: Ray, where it is asked for, is missing or out of reach, or a shard failed there.
    """
    settings = ScoringSettings.model_validate(dict(job["settings"]))
    # A process whose thread pool has started must not be forked; one that has yet to import torch has started none.
    forkable = "torch" not in sys.modules
    if settings.engine == "transformers":
        lean_imports.skip_unused()
    started = time.perf_counter()
    responses = atomic.read_parquet(job["responses"], "responses")
    prompts = atomic.read_parquet(job["prompts"], "prompts")
    if settings.engine == "vllm":
        _refuse_videos(responses, prompts, job["prompts"])
    shards = plan_shards(responses, prompts, settings.shard_responses)
    work = Path(job["work"])
    work.mkdir(parents=True, exist_ok=True)
    open_shards = [number for number in range(len(shards)) if not _shard_path(work, number).exists()]
    scored_now = sum(len(shards[number]) for number in open_shards)
    if open_shards:
        _score_shards(job, settings, shards, open_shards, prompts, report, forkable)
    summary = _merge(job, responses, work, len(shards))
    seconds = time.perf_counter() - started
    return summary | {
        "shards": len(shards),
        "shards_resumed": len(shards) - len(open_shards),
        "seconds": round(seconds, 2),
        "responses_per_second": round(scored_now / seconds, 2),
    }


def _refuse_videos(responses: Any, prompts: Any, path: str) -> None:
    """Say before any work that the vLLM scorer takes no videos, rather than set every response to one aside."""
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


Response = tuple[str, str, str]  # response_id, prompt_id, text


def plan_shards(responses: Any, prompts: Any, most: int) -> list[list[Response]]:
    """Split unique responses into shards of about `most`, a pure function of the tables.

    Responses of a prompt stay together, and so do prompts about the same image: it is then encoded once.
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


def _shard_path(work: Path, number: int) -> Path:
    return work / f"shard-{number:06d}.parquet"


def _score_shards(
    job: Mapping[str, Any],
    settings: ScoringSettings,
    shards: Sequence[Sequence[Response]],
    numbers: Sequence[int],
    prompts: Any,
    report: Report,
    forkable: bool,
) -> None:
    """Score the given shards in one or several processes or on Ray, reporting as they finish."""
    total = sum(len(shards[n]) for n in numbers)
    started = time.perf_counter()
    done = 0

    def finished(count: int) -> None:
        nonlocal done
        done += count
        speed = done / (time.perf_counter() - started)
        report({"responses": done, "responses_total": total, "responses_per_second": round(speed, 2)})

    if job.get("ray") is not None:
        payload = {n: (n, shards[n]) for n in numbers}
        cluster = RaySettings.model_validate(dict(job["ray"]))
        target = "dt2it_pipeline.reward.scoring.job:ray_worker"
        run_shards(cluster, target, job, payload, lambda _, count: finished(count), shared=prompts)
        return
    import torch

    cuda = torch.cuda.is_available()
    workers = max(1, min(settings.processes, len(numbers)))
    if workers == 1:
        scorer = _load(job, settings, "cuda" if cuda else "cpu")
        _work(scorer, job, [(n, shards[n]) for n in numbers], prompts, finished)
        return
    import multiprocessing

    # Forked workers inherit imports and tables, which saves each its start-up; CUDA and vLLM do not survive a fork.
    fresh = cuda or settings.engine == "vllm" or not forkable
    context: Any = multiprocessing.get_context("spawn" if fresh else "fork")
    scorer = None
    if not fresh:
        torch.set_num_threads(1)  # loading must not start the thread pool either
        scorer = _load(job, settings, "cpu")
    queue: Any = context.SimpleQueue()
    processes = []
    for index in range(workers):
        mine = [(n, shards[n]) for n in numbers[index::workers]]
        device = f"cuda:{index % torch.cuda.device_count()}" if cuda else "cpu"
        process = context.Process(
            target=_worker, args=(job, settings, mine, prompts, device, queue, scorer), daemon=True
        )
        process.start()
        processes.append(process)
    left = workers
    while left:
        if queue.empty():
            dead = next((p for p in processes if p.exitcode not in (None, 0)), None)
            if dead is not None and queue.empty():
                raise ScoringError(f"a scoring process ended with exit code {dead.exitcode}")
            time.sleep(0.02)
            continue
        kind, value = queue.get()
        if kind == "error":
            for process in processes:
                process.terminate()
            raise ScoringError(f"a scoring process failed:\n{value}")
        if kind == "end":
            left -= 1
        else:
            finished(value)
    for process in processes:
        process.join()


def _worker(job: Any, settings: ScoringSettings, mine: Any, prompts: Any, device: str, queue: Any, scorer: Any) -> None:
    _end_with_parent()
    try:
        import torch

        from dt2it_pipeline.reward.training.distributed import flush_denormals

        torch.set_num_threads(max(1, (os.cpu_count() or 1) // settings.processes))
        flush_denormals()
        _work(scorer or _load(job, settings, device), job, mine, prompts, lambda count: queue.put(("done", count)))
        queue.put(("end", None))
    except Exception:
        queue.put(("error", traceback.format_exc()))


def _end_with_parent() -> None:
    """End this process when the one that started it is gone, be it killed: nobody would take in what it does then."""
    import multiprocessing

    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def ray_worker(job: Mapping[str, Any], prompts: Any) -> Callable[[tuple[int, Sequence[Response]]], int]:
    """What a Ray worker does with a (number, shard): it scores the shard and returns its number of responses."""
    settings = ScoringSettings.model_validate(dict(job["settings"]))
    cluster = RaySettings.model_validate(dict(job["ray"]))
    if settings.engine == "transformers":
        lean_imports.skip_unused()
    import torch

    from dt2it_pipeline.reward.training.distributed import flush_denormals

    torch.set_num_threads(threads_of(cluster))
    flush_denormals()
    scorer = _load(job, settings, "cuda" if cluster.gpus_per_worker else "cpu")

    def do(shard: tuple[int, Sequence[Response]]) -> int:
        _work(scorer, job, [shard], prompts, lambda count: None)
        return len(shard[1])

    return do


def _load(job: Mapping[str, Any], settings: ScoringSettings, device: str) -> Any:
    """The scorer of a job on a device."""
    if settings.engine == "vllm":
        return _load_vllm(job, settings, device)
    import torch

    from dt2it_pipeline.reward.scoring.scorer import Scorer

    return Scorer(
        job["checkpoint"],
        job["media_root"],
        max_tokens=settings.max_tokens,
        max_pixels=settings.max_pixels,
        tokens_per_batch=settings.tokens_per_batch,
        device=torch.device(device),
    )


def _load_vllm(job: Mapping[str, Any], settings: ScoringSettings, device: str) -> Any:
    """The vLLM scorer of a job; on a GPU it sees only the device that it is to use."""
    import pyarrow.compute as pc

    _, _, index = device.partition(":")
    if index:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[int(index)] if len(visible) > int(index) and visible[0] else index
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # a worker of ours may not have children
    from dt2it_pipeline.reward.scoring.vllm_scorer import VllmScorer

    media = atomic.read_parquet(job["prompts"], "prompts").column("media")
    return VllmScorer(
        job["checkpoint"],
        job["media_root"],
        max_tokens=settings.max_tokens,
        max_pixels=settings.max_pixels,
        tokens_per_batch=settings.tokens_per_batch,
        max_images=pc.max(pc.list_value_length(media)).as_py() or 0,
    )


def _work(
    scorer: Any,
    job: Mapping[str, Any],
    mine: Sequence[tuple[int, Sequence[Response]]],
    prompts: Any,
    finished: Callable[[int], None],
) -> None:
    """Score shards one after the other."""
    from dt2it_pipeline.reward.data.preparation import prompt_rows

    for number, shard in mine:
        rows = prompt_rows(prompts, {prompt_id for _, prompt_id, _ in shard})
        scores, faults = scorer.score(rows, shard)
        aside = [records.quarantine_row(name, "scoring", *fault) for name, fault in faults.items()]
        path = _shard_path(Path(job["work"]), number)
        atomic.write_parquet(schemas.table(aside, "quarantine"), path.with_suffix(".quarantine.parquet"))
        scored = [
            {"response_id": name, "voter": job["voter"], "score": scores[name]}
            for name, _, _ in shard
            if name in scores
        ]
        atomic.write_parquet(schemas.table(scored, "scores"), path)  # last: it says that the shard is finished
        finished(len(shard))


def _merge(job: Mapping[str, Any], responses: Any, work: Path, count: int) -> dict[str, Any]:
    """Put the shards together in the order of the responses table."""
    import pyarrow as pa

    shards = [_shard_path(work, number) for number in range(count)]
    empty = {kind: schemas.table([], kind) for kind in ("scores", "quarantine")}
    order = {name: place for place, name in reversed(list(enumerate(responses.column("response_id").to_pylist())))}
    scores = pa.concat_tables([empty["scores"], *(atomic.read_parquet(p, "scores") for p in shards)])
    files = [path.with_suffix(".quarantine.parquet") for path in shards]
    aside = pa.concat_tables([empty["quarantine"], *(atomic.read_parquet(p, "quarantine") for p in files)])
    scores = scores.take(_by_order(scores.column("response_id"), order))
    aside = aside.take(_by_order(aside.column("row_id"), order))
    output = Path(job["output"])
    atomic.write_parquet(aside, output.with_name(f"{output.stem}.quarantine.parquet"))
    atomic.write_parquet(schemas.validate(scores, "scores"), output)
    return {"responses": len(order), "scored": scores.num_rows, "quarantine": aside.num_rows}


def _by_order(names: Any, order: Mapping[str, int]) -> Any:
    import numpy as np

    return np.argsort(np.array([order[name] for name in names.to_pylist()], dtype=np.int64), kind="stable")


if __name__ == "__main__":
    from dt2it_pipeline.engines.jobs import main

    main(run)
