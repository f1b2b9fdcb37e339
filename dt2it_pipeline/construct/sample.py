"""Candidate responses: several answers per prompt from one model, so that all of them share one style.

DT2IT-MRM, part 1, step 1. Some answers are drawn over the image of another prompt, or over the prompt's own under
noise (step 4, diversity): they are written in the same style and are more often wrong, so that a prompt that the model
always answers well yields pairs too. The generator column distinguishes them.

With a pool of several models the job is run once per model (`place` is its number, so that each draws its part), and
`join` makes one table of them.

Run as `python -m dt2it_pipeline.engines.jobs job.json`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from dt2it_pipeline.config.sections.ray import RaySettings
from dt2it_pipeline.config.sections.sampling import SamplingSettings
from dt2it_pipeline.construct.sampling_plan import Drawer, Drawn, donors_of
from dt2it_pipeline.engines.chat import ChatError, opened
from dt2it_pipeline.engines.jobs import Reporter, ShardedJob, Summary
from dt2it_pipeline.engines.launch import fork_server
from dt2it_pipeline.engines.launch.launcher import Resources, WorkerPlace
from dt2it_pipeline.engines.launch.local_shards import InThisProcess
from dt2it_pipeline.engines.launch.shards import shard_launcher
from dt2it_pipeline.engines.vllm_engine import Decoding, EngineError, Sample, SamplingEngine, VllmEngine
from dt2it_pipeline.observe.progress import Progress
from dt2it_pipeline.storage import atomic, content_ids, records, schemas

STAGE = "sample"
_COUNTS = ("rows_in", "rows_out", "rows_quarantined", "sampled", "kept", "duplicates", "answers_quarantined", "tokens")

Row = dict[str, Any]
EngineFactory = Callable[[int], SamplingEngine]


@dataclass
class _Shard:
    """What came of one shard of prompts."""

    responses: list[Row] = field(default_factory=list)
    quarantine: list[dict[str, str]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_COUNTS, 0))


class SampleJob(ShardedJob):
    """Sample answers to every prompt from one model of the pool.

    Attributes:
        model: model folder or Hub id; its last part is the answers' `generator`.
        place: the model's place in the pool, from 0.
        prompts: Parquet of kind `prompts`.
        media_root: folder that the prompts' media paths are relative to.
        output: Parquet of kind `responses` to write; `<stem>.quarantine.parquet` is written beside it.
        work: folder for finished shards, from which a killed run goes on.
        settings: the recipe's section `sampling`.
        seed: of the draws; each prompt's depend only on it and on the prompt.
        ray: the recipe's section `ray`; None: on this machine.
    """

    entry_point: ClassVar[str] = "dt2it_pipeline.construct.sample:run"
    shard_worker: ClassVar[str] = "dt2it_pipeline.construct.sample:shard_worker"

    model: str
    place: int = 0
    prompts: Path
    media_root: Path
    output: Path
    work: Path
    settings: SamplingSettings
    seed: int
    ray: RaySettings | None = None

    @property
    def preloaded(self) -> str | None:
        """See `ShardedJob`."""
        return fork_server.VLLM


def run(job: SampleJob, report: Reporter, make_engine: EngineFactory | None = None) -> Summary:
    """Sample answers to every prompt and write a responses table and, beside it, `<stem>.quarantine.parquet`.

    Every answer that is sampled is kept, a duplicate (counted) or quarantined: cut off at the length limit, or empty. A
    prompt is quarantined, under its prompt_id, when its images cannot be read, when it is too long for the model, or
    when none of its answers could be kept.
    Finished shards in the job's work folder are not sampled again; the same job gives the same bytes.

    Args:
        job: what to sample, with which model.
        report: called after each shard with how many of the shards are done, and sampled and startup_seconds.
        make_engine: builds the engine from the most images in one prompt; vLLM, where the job's launcher says, if None.

    Returns:
        Counts of prompts (rows_in = rows_out + rows_quarantined), of answers (sampled = kept + duplicates +
        answers_quarantined) and of tokens, and throughput: startup_seconds, seconds, gpu_seconds (GPUs times both),
        samples_per_second, tokens_per_second.

    Raises:
        EngineError: the model cannot be loaded.
        ShardsError: a copy of the model ended early or cannot be had, or a shard failed there.
    """
    settings = job.settings
    prompts = atomic.read_parquet(job.prompts, "prompts").to_pylist()
    shards = len(list(_shards(prompts, settings.shard_prompts)))
    todo = {number: number for number in range(shards) if not _folder(job.work, number).is_dir()}
    copies = Resources(
        settings.data_parallel, settings.tensor_parallel, settings="sampling.data_parallel, sampling.tensor_parallel"
    )
    launcher = shard_launcher(job.ray, copies)
    if make_engine is not None:
        launcher = InThisProcess(partial(shard_worker, make_engine=make_engine))
    started, startup, seconds = time.monotonic(), 0.0, 0.0
    progress = Progress(report, "shards", len(todo))
    made = dict.fromkeys(("sampled", "tokens"), 0)

    def finished(number: int, shard: Mapping[str, float]) -> None:
        nonlocal startup, seconds
        startup = max(startup, shard["startup_seconds"])
        seconds = max(0.0, time.monotonic() - started - startup)
        for key in made:
            made[key] += int(shard[key])
        progress.add(sampled=made["sampled"], startup_seconds=startup)

    gpus = launcher.run(job, todo, finished)
    return _finish(job.work, shards, job.output) | {
        "startup_seconds": round(startup, 2),
        "seconds": round(seconds, 2),
        "gpu_seconds": round(gpus * (startup + seconds), 1),
        "samples_per_second": round(made["sampled"] / seconds, 2) if seconds else 0.0,
        "tokens_per_second": round(made["tokens"] / seconds, 2) if seconds else 0.0,
    }


def join(parts: Sequence[tuple[pa.Table, pa.Table, Mapping[str, Any]]]) -> tuple[pa.Table, pa.Table, dict[str, Any]]:
    """One responses table, one quarantine table and one summary of what the models of a pool have drawn.

    An answer that several models gave is kept once, from the first. A prompt counts as quarantined where no model could
    answer it; where another could, the quarantine row of the one is left out.
    """
    if len(parts) == 1:
        return parts[0][0], parts[0][1], dict(parts[0][2])
    totals: dict[str, Any] = {
        key: sum(part[2][key] for part in parts) for key in (*_COUNTS, "seconds", "startup_seconds")
    }
    seen: set[str] = set()
    responses: list[Row] = []
    for table, _, _ in parts:
        for row in table.to_pylist():
            if row["response_id"] in seen:
                totals["duplicates"] += 1
                continue
            seen.add(row["response_id"])
            responses.append(row)
    answered = {row["prompt_id"] for row in responses}
    aside: dict[str, Row] = {}
    for _, table, _ in parts:
        for row in table.to_pylist():
            if row["row_id"] not in answered:
                aside.setdefault(row["row_id"], row)
    totals["kept"], totals["rows_in"], totals["rows_out"] = len(responses), parts[0][2]["rows_in"], len(answered)
    totals["rows_quarantined"] = totals["rows_in"] - totals["rows_out"]
    for unit, count in (("samples", "sampled"), ("tokens", "tokens")):
        totals[f"{unit}_per_second"] = round(totals[count] / totals["seconds"], 2) if totals["seconds"] else 0.0
    return schemas.table(responses, "responses"), schemas.table(aside.values(), "quarantine"), totals


def shard_worker(
    job: SampleJob, shared: None, place: WorkerPlace, make_engine: EngineFactory | None = None
) -> Callable[[int], dict[str, float]]:
    """A worker's function: loads a copy of the model; what it returns samples the shard of a number into its folder.

    That gives `sampled` and `tokens` of the shard, and the worker's `startup_seconds`.
    """
    prompts = atomic.read_parquet(job.prompts, "prompts").to_pylist()
    started = time.monotonic()
    engine = (make_engine or _vllm(job))(max(1, _most_images(prompts)))
    startup = time.monotonic() - started
    shards = list(_shards(prompts, job.settings.shard_prompts))
    drawer = Drawer(job.settings, job.seed, Path(job.model).name, job.place, job.media_root, donors_of(prompts))

    def do(number: int) -> dict[str, float]:
        shard = _sample_shard(shards[number], drawer, engine)
        with atomic.atomic_directory(_folder(job.work, number)) as folder:
            atomic.write_parquet(schemas.table(shard.responses, "responses"), folder / "responses.parquet")
            atomic.write_parquet(schemas.table(shard.quarantine, "quarantine"), folder / "quarantine.parquet")
            atomic.write_json_atomic(shard.counts, folder / "counts.json")
        return {"sampled": shard.counts["sampled"], "tokens": shard.counts["tokens"], "startup_seconds": startup}

    return do


def _sample_shard(rows: Sequence[Row], drawer: Drawer, engine: SamplingEngine) -> _Shard:
    settings = drawer.settings
    shard = _Shard()
    drawn: list[Drawn] = []
    for row, made in opened(rows, lambda row: list(drawer.requests(row))):
        if isinstance(made, ChatError):
            shard.quarantine.append(_aside(row["prompt_id"], made.reason, made.detail, row))
        else:
            drawn += made
    decoding = Decoding(settings.temperature, settings.top_p, settings.max_new_tokens)
    answers = engine.sample([item.request for item in drawn], decoding)
    seen: set[str] = set()
    answered: set[str] = set()
    refused = {row["row_id"] for row in shard.quarantine}
    for item, answer in zip(drawn, answers, strict=True):
        prompt_id = item.row["prompt_id"]
        if isinstance(answer, EngineError):
            if prompt_id not in refused:  # as a rule the words are too long whatever the image: one row a prompt
                refused.add(prompt_id)
                shard.quarantine.append(_aside(prompt_id, "refused by the engine", str(answer), item.row))
            continue
        for index, sample in enumerate(answer):
            shard.counts["sampled"] += 1
            shard.counts["tokens"] += sample.tokens
            text = sample.text.strip()
            fault = _fault(sample, text, settings)
            response_id = content_ids.response_id(prompt_id, text)
            if fault:
                shard.counts["answers_quarantined"] += 1
                row_id = content_ids.content_hash(prompt_id, item.generator, item.request.seed, index)
                shard.quarantine.append(_aside(row_id, fault, f"prompt {prompt_id}: {text[:200]}", item.row))
            elif response_id in seen:
                shard.counts["duplicates"] += 1
            else:
                seen.add(response_id)
                answered.add(prompt_id)
                shard.responses.append(
                    {"response_id": response_id, "prompt_id": prompt_id, "text": text, "generator": item.generator}
                )
    shard.counts["kept"] = len(shard.responses)
    for row in rows:
        if row["prompt_id"] not in answered | refused:
            shard.quarantine.append(_aside(row["prompt_id"], "no usable answer", "", row))
    shard.counts["rows_in"] = len(rows)
    shard.counts["rows_out"] = sum(row["prompt_id"] in answered for row in rows)
    shard.counts["rows_quarantined"] = len(rows) - shard.counts["rows_out"]
    return shard


def _fault(sample: Sample, text: str, settings: SamplingSettings) -> str:
    if not sample.finished:
        return f"longer than {settings.max_new_tokens} tokens"
    if not text:
        return "empty answer"
    return f"shorter than {settings.min_characters} characters" if len(text) < settings.min_characters else ""


def _finish(work: Path, count: int, output: Path) -> dict[str, Any]:
    """Join the shards in order into the two output tables; returns the summed counts."""
    folders = [_folder(work, number) for number in range(count)]
    responses = [atomic.read_parquet(folder / "responses.parquet", "responses") for folder in folders]
    quarantine = [atomic.read_parquet(folder / "quarantine.parquet", "quarantine") for folder in folders]
    counts = [json.loads((folder / "counts.json").read_text(encoding="utf-8")) for folder in folders]
    joined = pa.concat_tables([schemas.table([], "responses"), *responses]).combine_chunks()
    aside = pa.concat_tables([schemas.table([], "quarantine"), *quarantine]).combine_chunks()
    atomic.write_parquet(aside, output.with_name(f"{output.stem}.quarantine.parquet"))
    atomic.write_parquet(joined, output)
    return {key: sum(count[key] for count in counts) for key in _COUNTS}


def _vllm(job: SampleJob) -> EngineFactory:
    settings = job.settings
    return lambda most_images: VllmEngine(job.model, settings.max_model_len, most_images, job.seed, settings)


def _shards(prompts: Sequence[Row], size: int) -> Iterator[Sequence[Row]]:
    for start in range(0, len(prompts), size):
        yield prompts[start : start + size]


def _most_images(prompts: Sequence[Row]) -> int:
    return max((len(row["media"]) for row in prompts), default=0)


def _folder(work: Path, number: int) -> Path:
    return work / f"shard-{number:06d}"


def _aside(row_id: str, reason: str, detail: str, row: Row) -> dict[str, str]:
    return records.quarantine_row(row_id, STAGE, reason, detail, row["source"])
