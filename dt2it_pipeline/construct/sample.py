"""Candidate responses: several answers per prompt from one model, so that all of them share one style.

DT2IT-MRM, part 1, step 1. Some answers are drawn over the picture of another prompt (step 4, diversity): they are
written in the same style and are more often wrong, so that a prompt that the model always answers well yields pairs
too. The generator column tells the two apart.

Run as `python -m dt2it_pipeline.construct.sample job.json`.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from dt2it_pipeline import records, store
from dt2it_pipeline.engines import jobs
from dt2it_pipeline.engines.chat import ChatError, ChatPrompt, chat_prompt
from dt2it_pipeline.engines.vllm_engine import Decoding, EngineError, Sample, SampleRequest, SamplingEngine, VllmEngine
from dt2it_pipeline.recipe import SamplingSettings

STAGE = "sample"
CORRUPTED = ("|mismatched_image", "|noised_image")  # how `generator` ends where the answer is to another picture
_DONOR_TRIES = 50  # random draws before giving up on finding another picture
_COUNTS = ("rows_in", "rows_out", "rows_set_aside", "sampled", "kept", "duplicates", "answers_set_aside", "tokens")

Row = dict[str, Any]
EngineFactory = Callable[[int], SamplingEngine]


@dataclass(frozen=True)
class _Drawn:
    """A request to the engine and where its answers belong."""

    row: Row
    generator: str
    request: SampleRequest


@dataclass
class _Shard:
    """What came of one shard of prompts."""

    responses: list[Row] = field(default_factory=list)
    set_aside: list[dict[str, str]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_COUNTS, 0))


def run(
    job: dict[str, Any], report: Callable[[Mapping[str, Any]], None], make_engine: EngineFactory | None = None
) -> dict[str, Any]:
    """Sample answers to every prompt and write a responses table and, beside it, `<stem>.set_aside.parquet`.

    Every answer that is sampled is kept, a duplicate (counted) or set aside: cut off at the length limit, or empty. A
    prompt is set aside, under its prompt_id, when its pictures cannot be read, when it is too long for the model, or
    when none of its answers could be kept.
    Finished shards in the job's work folder are not sampled again; the same job gives the same bytes.

    Args:
        job: model, prompts (Parquet), media_root, output (Parquet), work (folder), settings (SamplingSettings), seed.
        report: called after each shard with prompts, responses and samples_per_second.
        make_engine: builds the engine from the most pictures in one prompt; vLLM when None.

    Returns:
        Counts of prompts (rows_in = rows_out + rows_set_aside), of answers (sampled = kept + duplicates +
        answers_set_aside) and of tokens, and throughput: startup_seconds, seconds, samples_per_second.
    """
    settings = SamplingSettings.model_validate(job["settings"])
    prompts = store.read_parquet(job["prompts"], "prompts").to_pylist()
    media_root, work, output = Path(job["media_root"]), Path(job["work"]), Path(job["output"])
    shards = list(_shards(prompts, settings.shard_prompts))
    todo = [number for number in range(len(shards)) if not _folder(work, number).is_dir()]
    engine, startup = None, 0.0
    if todo:
        started = time.monotonic()
        engine = (make_engine or _vllm(str(job["model"]), settings, job["seed"]))(max(1, _most_pictures(prompts)))
        startup = time.monotonic() - started
    donors = _donors(prompts)
    seconds, sampled_now = 0.0, 0
    for number in todo:
        assert engine is not None
        started = time.monotonic()
        shard = _sample_shard(shards[number], donors, media_root, engine, settings, job["seed"], _name(job["model"]))
        seconds += time.monotonic() - started
        sampled_now += shard.counts["sampled"]
        with store.atomic_directory(_folder(work, number)) as folder:
            store.write_parquet(records.table(shard.responses, "responses"), folder / "responses.parquet")
            store.write_parquet(records.table(shard.set_aside, "set_aside"), folder / "set_aside.parquet")
            store.write_json_atomic(shard.counts, folder / "counts.json")
        done = min((number + 1) * settings.shard_prompts, len(prompts))
        report(
            {
                "prompts": done,
                "sampled": sampled_now,
                "startup_seconds": startup,
                "samples_per_second": sampled_now / max(seconds, 1e-9),
            }
        )
    return _finish(work, len(shards), output) | {
        "startup_seconds": round(startup, 2),
        "seconds": round(seconds, 2),
        "samples_per_second": round(sampled_now / seconds, 2) if seconds else 0.0,
    }


def _sample_shard(
    rows: Sequence[Row],
    donors: Mapping[int, Sequence[Row]],
    media_root: Path,
    engine: SamplingEngine,
    settings: SamplingSettings,
    seed: int,
    model: str,
) -> _Shard:
    shard = _Shard()
    drawn: list[_Drawn] = []
    for row in rows:
        try:
            drawn += _requests(row, chat_prompt(row, media_root), donors, media_root, settings, seed, model)
        except ChatError as error:
            shard.set_aside.append(_aside(row["prompt_id"], error.reason, error.detail, row))
    decoding = Decoding(settings.temperature, settings.top_p, settings.max_new_tokens)
    answers = engine.sample([item.request for item in drawn], decoding)
    seen: set[str] = set()
    answered: set[str] = set()
    refused = {row["row_id"] for row in shard.set_aside}
    for item, answer in zip(drawn, answers, strict=True):
        prompt_id = item.row["prompt_id"]
        if isinstance(answer, EngineError):
            if prompt_id not in refused:  # as a rule the words are too long whatever the picture: one row a prompt
                refused.add(prompt_id)
                shard.set_aside.append(_aside(prompt_id, "refused by the engine", str(answer), item.row))
            continue
        for index, sample in enumerate(answer):
            shard.counts["sampled"] += 1
            shard.counts["tokens"] += sample.tokens
            text = sample.text.strip()
            fault = _fault(sample, text, settings)
            response_id = records.response_id(prompt_id, text)
            if fault:
                shard.counts["answers_set_aside"] += 1
                row_id = records.content_hash(prompt_id, item.generator, item.request.seed, index)
                shard.set_aside.append(_aside(row_id, fault, f"prompt {prompt_id}: {text[:200]}", item.row))
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
            shard.set_aside.append(_aside(row["prompt_id"], "no usable answer", "", row))
    shard.counts["rows_in"] = len(rows)
    shard.counts["rows_out"] = sum(row["prompt_id"] in answered for row in rows)
    shard.counts["rows_set_aside"] = len(rows) - shard.counts["rows_out"]
    return shard


def _requests(
    row: Row,
    prompt: ChatPrompt,
    donors: Mapping[int, Sequence[Row]],
    media_root: Path,
    settings: SamplingSettings,
    seed: int,
    model: str,
) -> Iterator[_Drawn]:
    """The requests of one prompt: all answers to its own pictures in one, then one per mismatched picture."""
    generator = f"{model}|t={settings.temperature:g}"
    own_seed = _seed(seed, row["prompt_id"], "own")
    yield _Drawn(row, generator, SampleRequest(prompt, settings.samples, own_seed))
    if not prompt.images:
        return
    generator += "|mismatched_image"
    for index in range(settings.mismatched_samples):
        draw = _seed(seed, row["prompt_id"], index)
        donor = _mismatched(row, donors.get(len(row["media"]), ()), draw)
        if donor is None:
            return
        try:
            other = prompt.with_images(chat_prompt(donor, media_root).images)
        except ChatError:
            continue  # the donor is set aside under its own prompt_id
        yield _Drawn(row, generator, SampleRequest(other, 1, draw))


def _mismatched(row: Row, candidates: Sequence[Row], draw: int) -> Row | None:
    """Another prompt with as many pictures, none of them this prompt's; None when there seems to be none."""
    own = {medium["sha256"] for medium in row["media"]}
    rng = random.Random(draw)
    for _ in range(_DONOR_TRIES if candidates else 0):
        donor = candidates[rng.randrange(len(candidates))]
        if not own & {medium["sha256"] for medium in donor["media"]}:
            return donor
    return None


def _fault(sample: Sample, text: str, settings: SamplingSettings) -> str:
    if not sample.finished:
        return f"longer than {settings.max_new_tokens} tokens"
    return "" if text else "empty answer"


def _finish(work: Path, count: int, output: Path) -> dict[str, Any]:
    """Join the shards in order into the two output tables; returns the summed counts."""
    folders = [_folder(work, number) for number in range(count)]
    responses = [store.read_parquet(folder / "responses.parquet", "responses") for folder in folders]
    set_aside = [store.read_parquet(folder / "set_aside.parquet", "set_aside") for folder in folders]
    counts = [json.loads((folder / "counts.json").read_text(encoding="utf-8")) for folder in folders]
    joined = pa.concat_tables([records.table([], "responses"), *responses]).combine_chunks()
    aside = pa.concat_tables([records.table([], "set_aside"), *set_aside]).combine_chunks()
    store.write_parquet(aside, output.with_name(f"{output.stem}.set_aside.parquet"))
    store.write_parquet(joined, output)
    return {key: sum(count[key] for count in counts) for key in _COUNTS}


def _vllm(model: str, settings: SamplingSettings, seed: int) -> EngineFactory:
    return lambda most_pictures: VllmEngine(model, settings.max_model_len, most_pictures, seed)


def _donors(prompts: Sequence[Row]) -> dict[int, list[Row]]:
    """Prompts that could lend their pictures, by the number of pictures."""
    by_count: dict[int, list[Row]] = {}
    for row in prompts:
        if row["media"] and all(medium["kind"] == "image" for medium in row["media"]):
            by_count.setdefault(len(row["media"]), []).append(row)
    return by_count


def _shards(prompts: Sequence[Row], size: int) -> Iterator[Sequence[Row]]:
    for start in range(0, len(prompts), size):
        yield prompts[start : start + size]


def _most_pictures(prompts: Sequence[Row]) -> int:
    return max((len(row["media"]) for row in prompts), default=0)


def _folder(work: Path, number: int) -> Path:
    return work / f"shard-{number:06d}"


def _seed(*parts: object) -> int:
    return int(records.content_hash(*parts)[:7], 16)  # 28 bits: vLLM adds the sample's index to it


def _name(model: object) -> str:
    return Path(str(model)).name


def _aside(row_id: str, reason: str, detail: str, row: Row) -> dict[str, str]:
    return records.set_aside_row(row_id, STAGE, reason, detail, row["source"])


if __name__ == "__main__":
    jobs.main(run)
