"""Candidate responses: several answers per prompt from one model, so that all of them share one style.

DT2IT-MRM, part 1, step 1. Some answers are drawn over the image of another prompt, or over the prompt's own under
noise (step 4, diversity): they are written in the same style and are more often wrong, so that a prompt that the model
always answers well yields pairs too. The generator column distinguishes them.

With a pool of several models the job is run once per model (`place` is its number, so that each draws its part), and
`join` makes one table of them.

Run as `python -m dt2it_pipeline.construct.sample job.json`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from dt2it_pipeline.config.ray import RaySettings
from dt2it_pipeline.config.sampling import SamplingSettings
from dt2it_pipeline.construct.sampling_plan import Drawer, Drawn, donors_of
from dt2it_pipeline.engines import jobs
from dt2it_pipeline.engines.chat import ChatError
from dt2it_pipeline.engines.ray_shards import run_shards
from dt2it_pipeline.engines.vllm_engine import Decoding, EngineError, Sample, SamplingEngine, VllmEngine
from dt2it_pipeline.storage import atomic, content_ids, records, schemas

STAGE = "sample"
_COUNTS = ("rows_in", "rows_out", "rows_quarantined", "sampled", "kept", "duplicates", "answers_quarantine", "tokens")

Row = dict[str, Any]
EngineFactory = Callable[[int], SamplingEngine]


@dataclass
class _Shard:
    """What came of one shard of prompts."""

    responses: list[Row] = field(default_factory=list)
    quarantine: list[dict[str, str]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_COUNTS, 0))


def run(
    job: dict[str, Any], report: Callable[[Mapping[str, Any]], None], make_engine: EngineFactory | None = None
) -> dict[str, Any]:
    """Sample answers to every prompt and write a responses table and, beside it, `<stem>.quarantine.parquet`.

    Every answer that is sampled is kept, a duplicate (counted) or quarantined: cut off at the length limit, or empty. A
    prompt is quarantined, under its prompt_id, when its images cannot be read, when it is too long for the model, or
    when none of its answers could be kept.
    Finished shards in the job's work folder are not sampled again; the same job gives the same bytes.

    Args:
        job: model, prompts (Parquet), media_root, output (Parquet), work (folder), settings (SamplingSettings), seed;
            optionally place: the model's place in the pool (0), and ray (RaySettings): shards are then sampled by its
            workers.
        report: called after each shard with prompts, responses and samples_per_second.
        make_engine: builds the engine from the most images in one prompt; vLLM when None.

    Returns:
        Counts of prompts (rows_in = rows_out + rows_quarantined), of answers (sampled = kept + duplicates +
        answers_quarantine) and of tokens, and throughput: startup_seconds, seconds, samples_per_second,
        tokens_per_second.

    Raises:
        EngineError: the model cannot be loaded, or a copy of it ended early.
        RayShardsError: Ray, where it is asked for, is missing or out of reach, or a shard failed there.
    """
    settings = SamplingSettings.model_validate(job["settings"])
    prompts = atomic.read_parquet(job["prompts"], "prompts").to_pylist()
    work, output = Path(job["work"]), Path(job["output"])
    shards = list(_shards(prompts, settings.shard_prompts))
    todo = [number for number in range(len(shards)) if not _folder(work, number).is_dir()]
    copies = min(settings.data_parallel, len(todo))
    if job.get("ray") is not None and make_engine is None:
        timing = _on_ray(job, todo, report)
    elif copies > 1 and make_engine is None:
        timing = _in_copies(job, copies, report)
    else:
        timing = _work(job, prompts, todo, report, make_engine)
    counts = _finish(work, len(shards), output)
    seconds, sampled = timing["seconds"], timing["sampled"]
    return counts | {
        "startup_seconds": round(timing["startup_seconds"], 2),
        "seconds": round(seconds, 2),
        "samples_per_second": round(sampled / seconds, 2) if seconds else 0.0,
        "tokens_per_second": round(timing["tokens"] / seconds, 2) if seconds else 0.0,
    }


def join(parts: Sequence[tuple[pa.Table, pa.Table, Mapping[str, Any]]]) -> tuple[pa.Table, pa.Table, dict[str, Any]]:
    """One responses table, one quarantine table and one summary of what the models of a pool have drawn.

    An answer that several models gave is kept once, from the first. A prompt counts as quarantined where no model could
    answer it; where another could, its quarantine row from the one is left out.
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


class _Sampler:
    """One copy of the model, which samples one shard after the other."""

    def __init__(self, job: Mapping[str, Any], prompts: Sequence[Row], make_engine: EngineFactory | None) -> None:
        self.settings, self.work = SamplingSettings.model_validate(job["settings"]), Path(job["work"])
        started = time.monotonic()
        self.engine = (make_engine or _vllm(str(job["model"]), self.settings, job["seed"]))(
            max(1, _most_images(prompts))
        )
        self.startup_seconds = time.monotonic() - started
        self.shards = list(_shards(prompts, self.settings.shard_prompts))
        place, media_root = int(job.get("place", 0)), Path(job["media_root"])
        self.drawer = Drawer(self.settings, job["seed"], _name(job["model"]), place, media_root, donors_of(prompts))

    def do(self, number: int) -> dict[str, float]:
        """Sample one shard into its folder; returns what that took."""
        started = time.monotonic()
        shard = _sample_shard(self.shards[number], self.drawer, self.engine)
        seconds = time.monotonic() - started
        with atomic.atomic_directory(_folder(self.work, number)) as folder:
            atomic.write_parquet(schemas.table(shard.responses, "responses"), folder / "responses.parquet")
            atomic.write_parquet(schemas.table(shard.quarantine, "quarantine"), folder / "quarantine.parquet")
            atomic.write_json_atomic(shard.counts, folder / "counts.json")
        return {"seconds": seconds, "sampled": shard.counts["sampled"], "tokens": shard.counts["tokens"]}


def _work(
    job: Mapping[str, Any],
    prompts: Sequence[Row],
    todo: Sequence[int],
    report: Callable[[Mapping[str, Any]], None],
    make_engine: EngineFactory | None,
) -> dict[str, float]:
    """Sample the shards in `todo` with one engine; returns what that took."""
    timing = {"startup_seconds": 0.0, "seconds": 0.0, "sampled": 0.0, "tokens": 0.0}
    if not todo:
        return timing
    sampler = _Sampler(job, prompts, make_engine)
    timing["startup_seconds"] = sampler.startup_seconds
    for number in todo:
        for key, value in sampler.do(number).items():
            timing[key] += value
        report(
            {
                "prompts": min((number + 1) * sampler.settings.shard_prompts, len(prompts)),
                "sampled": int(timing["sampled"]),
                "startup_seconds": timing["startup_seconds"],
                "samples_per_second": timing["sampled"] / max(timing["seconds"], 1e-9),
            }
        )
    return timing


def ray_worker(job: Mapping[str, Any], shared: None) -> Callable[[int], dict[str, float]]:
    """What a Ray worker does with the number of a shard: it samples it and returns what that took."""
    sampler = _Sampler(job, atomic.read_parquet(job["prompts"], "prompts").to_pylist(), None)
    return lambda number: sampler.do(number) | {"startup_seconds": sampler.startup_seconds}


def _on_ray(
    job: Mapping[str, Any], todo: Sequence[int], report: Callable[[Mapping[str, Any]], None]
) -> dict[str, float]:
    """Sample the shards in `todo` on Ray workers, a copy of the model in each; returns what that took."""
    timing = {"startup_seconds": 0.0, "seconds": 0.0, "sampled": 0.0, "tokens": 0.0}
    started, done = time.monotonic(), 0

    def finished(number: int, took: Mapping[str, float]) -> None:
        nonlocal done
        done += 1
        timing["startup_seconds"] = max(timing["startup_seconds"], took["startup_seconds"])
        timing["sampled"] += took["sampled"]
        timing["tokens"] += took["tokens"]
        timing["seconds"] = max(0.0, time.monotonic() - started - timing["startup_seconds"])
        report({"shards": done, "shards_total": len(todo), "sampled": int(timing["sampled"])})

    target = "dt2it_pipeline.construct.sample:ray_worker"
    run_shards(RaySettings.model_validate(job["ray"]), target, job, {number: number for number in todo}, finished)
    return timing


def _in_copies(job: Mapping[str, Any], copies: int, report: Callable[[Mapping[str, Any]], None]) -> dict[str, float]:
    """Sample with several copies of the model, each in a process of its own with its share of the shards and GPUs."""
    started = time.monotonic()
    work = Path(job["work"])
    settings = SamplingSettings.model_validate(job["settings"])
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = [name for name in visible.split(",") if name] if visible else [str(n) for n in range(_gpus())]
    width = settings.tensor_parallel
    if devices and len(devices) < copies * width:
        raise EngineError(
            f"sampling.data_parallel ({copies}) x tensor_parallel ({width}) asks for more GPUs than {len(devices)}"
        )
    processes = []
    for copy in range(copies):
        path = work / f"copy-{copy}.json"
        atomic.write_json_atomic({**job, "copy": copy, "copies": copies}, path)
        environment = dict(os.environ)
        if devices:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices[copy * width : (copy + 1) * width])
        command = [sys.executable, "-c", "from dt2it_pipeline.construct.sample import run_copy; run_copy()", str(path)]
        processes.append(subprocess.Popen(command, env=environment))
    try:
        codes = [process.wait() for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()
    if any(codes):
        raise EngineError(f"copies of the model ended with codes {codes}; the error stands above")
    timings = [json.loads((work / f"copy-{copy}.timing.json").read_text(encoding="utf-8")) for copy in range(copies)]
    total = {key: sum(timing[key] for timing in timings) for key in ("sampled", "tokens")}
    startup = max(timing["startup_seconds"] for timing in timings)
    seconds = max(0.0, time.monotonic() - started - startup)
    report(
        {
            "copies": copies,
            "sampled": int(total["sampled"]),
            "samples_per_second": total["sampled"] / max(seconds, 1e-9),
        }
    )
    return total | {"startup_seconds": startup, "seconds": seconds}


def run_copy() -> None:
    """The process of one copy of the model: samples every `copies`-th of the shards that are left."""
    path = Path(sys.argv[1])
    job = jobs.read_job(path)
    settings = SamplingSettings.model_validate(job["settings"])
    prompts = atomic.read_parquet(job["prompts"], "prompts").to_pylist()
    shards = list(_shards(prompts, settings.shard_prompts))
    work = Path(job["work"])
    mine = [number for number in range(job["copy"], len(shards), job["copies"]) if not _folder(work, number).is_dir()]
    timing = _work(job, prompts, mine, jobs.print_progress, None)
    atomic.write_json_atomic(timing, path.with_suffix(".timing.json"))


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _sample_shard(rows: Sequence[Row], drawer: Drawer, engine: SamplingEngine) -> _Shard:
    settings = drawer.settings
    shard = _Shard()
    drawn: list[Drawn] = []
    for row in rows:
        try:
            drawn += drawer.requests(row)
        except ChatError as error:
            shard.quarantine.append(_aside(row["prompt_id"], error.reason, error.detail, row))
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
                shard.counts["answers_quarantine"] += 1
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


def _vllm(model: str, settings: SamplingSettings, seed: int) -> EngineFactory:
    return lambda most_images: VllmEngine(model, settings.max_model_len, most_images, seed, settings.tensor_parallel)


def _shards(prompts: Sequence[Row], size: int) -> Iterator[Sequence[Row]]:
    for start in range(0, len(prompts), size):
        yield prompts[start : start + size]


def _most_images(prompts: Sequence[Row]) -> int:
    return max((len(row["media"]) for row in prompts), default=0)


def _folder(work: Path, number: int) -> Path:
    return work / f"shard-{number:06d}"


def _name(model: object) -> str:
    return Path(str(model)).name


def _aside(row_id: str, reason: str, detail: str, row: Row) -> dict[str, str]:
    return records.quarantine_row(row_id, STAGE, reason, detail, row["source"])


if __name__ == "__main__":
    jobs.main(run)
