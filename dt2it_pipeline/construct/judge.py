"""Listwise, pointwise and pairwise judgements of candidate responses (DT2IT-MRM, part 1, steps 2 to 5).

Run as `python -m dt2it_pipeline.engines.jobs job.json`.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

import pyarrow as pa

from dt2it_pipeline.config.models import EndpointSettings
from dt2it_pipeline.config.sections.judging import JudgingSettings, LikelihoodJudgeSettings, VllmJudgeSettings
from dt2it_pipeline.construct.sampling_plan import CORRUPTED
from dt2it_pipeline.engines.jobs import Reporter, Summary
from dt2it_pipeline.engines.launch.launcher import WorkerPlace
from dt2it_pipeline.judges.ask import Tally, ask, require_usable
from dt2it_pipeline.judges.factory import MakeEngine, make_judge, without_model
from dt2it_pipeline.judges.protocol import LISTWISE, PAIRWISE, POINTWISE, Judge, JudgeRequest
from dt2it_pipeline.judges.quality import AGAINST, OVERALL, judge_quality
from dt2it_pipeline.judges.reply_cache import ReplyCache
from dt2it_pipeline.judges.rubric import OK, Verdict
from dt2it_pipeline.judges.shared import Answers, JudgeWorkers, JudgingJob, Shard, SharedJudge, answering
from dt2it_pipeline.observe.progress import Progress, silent
from dt2it_pipeline.storage import atomic, content_ids, records, schemas

STAGE = "judge"
REFERENCE = "reference"  # generator of a reference answer that was added as a response
SPARE = "kept in reserve and not needed"
_BATCH = 512  # requests handed to a judge at once
_ALL_ORDERS = 4  # lists up to this long have few enough orders (24) to draw from without repetition

Row = dict[str, Any]


@dataclass(frozen=True)
class _Call:
    """One request, and which responses it presents in which order."""

    request: JudgeRequest
    response_ids: tuple[str, ...]
    order: tuple[int, ...]


@dataclass
class Judged:
    """What judging came to.

    Attributes:
        judgements: one row per response and presentation, faulty ones included with their status and no score.
        responses: the responses that were judged, with the reference answers that were added to them.
        quarantine: one row per response that cannot be used (response_id, reason, detail with the judge's raw text).
            Every response, added ones included, either has an `ok` listwise and pointwise judgement for each
            presentation or is quarantined.
        tallies: what asking came to, by judge.
        enhanced: prompts whose answers were all alike, by what was added: `corrupted`, `reference` or `nothing`.
    """

    judgements: pa.Table
    responses: pa.Table
    quarantine: pa.Table
    tallies: dict[str, Tally]
    enhanced: dict[str, int] = field(default_factory=dict)


class JudgeJob(JudgingJob):
    """Judge a responses table.

    Attributes:
        prompts: Parquet of kind `prompts`.
        responses: Parquet of kind `responses`.
        media_root: folder that the prompts' media paths are relative to.
        output: folder for judgements.parquet, responses.parquet and quarantine.parquet.
        cache: SQLite file that keeps replies: a killed run goes on where it was.
        settings: the recipe's section `judging`.
        seed: of the orders in which responses are presented.
    """

    entry_point: ClassVar[str] = "dt2it_pipeline.construct.judge:run"
    shard_worker: ClassVar[str] = "dt2it_pipeline.construct.judge:shard_worker"

    prompts: Path
    responses: Path
    media_root: Path
    output: Path
    cache: Path
    settings: JudgingSettings
    seed: int


def run(job: JudgeJob, report: Reporter, make_engine: MakeEngine | None = None) -> Summary:
    """Judge a responses table; writes judgements, responses and quarantine as Parquet into the output folder.

    Replies are kept in the job's cache file: a killed run goes on where it was, and the same calls cost nothing again.
    Models that are loaded here (kinds likelihood and vllm) lie in worker processes, which share the calls.

    Args:
        job: what to judge, and by whom.
        report: called after each batch with how many of a judge's calls are answered, and how many of them on disk.
        make_engine: see `make_judge`.

    Returns:
        rows_in = rows_out + rows_quarantined (responses, added references included), `judges`: per judge its kind,
        counts of `Tally` with costs and the figures of `judge_quality`, `enhanced`, and gpu_seconds (GPUs x seconds).

    Raises:
        JudgeError: a judge cannot be built.
        JudgeStopped: a judge cannot answer any more; run again when it can.
        NoUsableReply: not one of a judge's replies can be used.
        ShardsError: a worker process died, or cannot load a judge's model.
    """
    settings = job.settings
    prompts = atomic.read_parquet(job.prompts, "prompts")
    responses = atomic.read_parquet(job.responses, "responses")
    rows = prompts.to_pylist()
    load = None if make_engine is None else partial(shard_worker, make_engine=make_engine)
    cache = ReplyCache(job.cache)
    try:
        with JudgeWorkers(job, settings.gpus_per_copy, responses.num_rows * len(settings.modes), load) as workers:
            judges = [
                SharedJudge(without_model(chosen, job.media_root), place, workers)
                if isinstance(chosen, VllmJudgeSettings | LikelihoodJudgeSettings)
                else make_judge(chosen, rows, job.media_root, make_engine)
                for place, chosen in enumerate(settings.judges)
            ]
            judged = judge_responses(prompts, responses, judges, settings, job.seed, cache, report)
            gpu_seconds = workers.gpu_seconds
    finally:
        cache.close()
    for name in ("judgements", "responses", "quarantine"):
        atomic.write_parquet(getattr(judged, name), job.output / f"{name}.parquet")
    quality = judge_quality(judged.judgements)
    metadata: dict[str, Any] = {}
    for chosen, judge in zip(settings.judges, judges, strict=True):
        prices = (chosen.input_price, chosen.output_price) if isinstance(chosen, EndpointSettings) else (0.0, 0.0)
        counts = judged.tallies[judge.name].metadata(*prices) | quality.get(judge.name, {})
        metadata[judge.name] = {"kind": chosen.kind} | counts
        faults = getattr(getattr(judge, "engine", None), "counts", None)
        if faults is not None:
            metadata[judge.name]["line"] = dict(sorted(faults.items()))
    added = sum(row["generator"] == REFERENCE for row in judged.responses.to_pylist())
    rows_in = responses.num_rows + added
    return {
        "rows_in": rows_in,
        "rows_out": rows_in - judged.quarantine.num_rows,
        "rows_quarantined": judged.quarantine.num_rows,
        "added_references": added,
        "enhanced": judged.enhanced,
        "judges": metadata,
        "cost": round(sum(item["cost"] for item in metadata.values()), 6),
        "gpu_seconds": gpu_seconds,
    }


def shard_worker(
    job: JudgeJob, shared: None, place: WorkerPlace, make_engine: MakeEngine | None = None
) -> Callable[[Shard], Answers]:
    """A worker's function: what it returns puts requests to one of the job's judges, whose model it loads and keeps."""
    prompts = atomic.read_parquet(job.prompts, "prompts").to_pylist()
    judges = job.settings.judges
    return answering(lambda number: make_judge(judges[number], prompts, job.media_root, make_engine), place)


def judge_responses(
    prompts: pa.Table,
    responses: pa.Table,
    judges: Sequence[Judge],
    settings: JudgingSettings,
    seed: int,
    cache: ReplyCache | None = None,
    report: Reporter = silent,
) -> Judged:
    """Have every judge judge every response in the recipe's modes, lists in `settings.orders` shuffled orders.

    A judge that fails or answers nonsense costs what it was asked about and no more: a faulty listwise reply sets all
    responses of its prompt aside (scores in a list are relative to each other), a faulty pointwise reply its response,
    a faulty pairwise reply its pair.

    Args:
        prompts: prompts table.
        responses: responses table.
        judges: who judges.
        settings: modes, orders, and when corrupted answers and references are judged, too.
        seed: of the orders; each prompt's orders depend only on it and on the prompt.
        cache: where replies are kept; in memory when None.
        report: called after each batch.

    Raises:
        JudgeStopped: a judge cannot answer any more.
        NoUsableReply: not one of a judge's replies can be used.
    """
    by_id = {row["prompt_id"]: row for row in prompts.to_pylist()}
    grouped: dict[str, list[Row]] = {}
    aside: dict[str, dict[str, str]] = {}
    for row in responses.to_pylist():
        if row["prompt_id"] in by_id:
            grouped.setdefault(row["prompt_id"], []).append(row)
        else:
            aside[row["response_id"]] = _aside(row["response_id"], "unknown prompt", row["prompt_id"], "")
    bench = _Bench(by_id, judges, settings, seed, cache or ReplyCache(None), report)
    if settings.diversity == "always":
        judgements, faults = bench.judge(grouped)
        enhanced: dict[str, int] = {}
    else:
        judgements, faults, grouped, enhanced = bench.judge_with_reserve(grouped)
    for response_id, fault in faults.items():
        aside.setdefault(response_id, fault)
    used = [row for group in grouped.values() for row in group]
    return Judged(
        schemas.table(judgements, "judgements"),
        schemas.table(used, "responses"),
        schemas.table(aside.values(), "quarantine"),
        bench.tallies,
        enhanced,
    )


@dataclass
class _Bench:
    """The judges of one run, and what they share."""

    prompts: Mapping[str, Row]
    judges: Sequence[Judge]
    settings: JudgingSettings
    seed: int
    cache: ReplyCache
    report: Reporter

    def __post_init__(self) -> None:
        self.tallies = {judge.name: Tally() for judge in self.judges}

    def judge(self, grouped: Mapping[str, Sequence[Row]]) -> tuple[list[Row], dict[str, dict[str, str]]]:
        """Judgements of the responses of several prompts, and why some responses cannot be used."""
        judgements: list[Row] = []
        faults: dict[str, dict[str, str]] = {}
        for judge in self.judges:
            tally = self.tallies[judge.name]
            calls = [call for key, group in grouped.items() for call in self._calls(judge, key, group)]
            progress = Progress(self.report, "calls", len(calls))
            most = max(_BATCH, getattr(judge, "at_once", 0))
            for start in range(0, len(calls), most):
                batch = calls[start : start + most]
                found = ask(judge, [call.request for call in batch], self.cache, tally)
                for call, verdicts in zip(batch, found, strict=True):
                    judgements += _rows(call, verdicts, judge)
                    for response_id, reason, detail in _faults(call, verdicts):
                        source = call.request.prompt["source"]
                        detail = f"{judge.name}, {call.request.mode}: {detail}"
                        faults.setdefault(response_id, _aside(response_id, reason, detail, source))
                progress.add(len(batch), judge=judge.name, found_on_disk=tally.looked_up)
                if tally.unusable:
                    require_usable(judge, tally)  # now, so that a judge of no use is not paid for to the end
            require_usable(judge, tally)
        return judgements, faults

    def judge_with_reserve(
        self, grouped: Mapping[str, Sequence[Row]]
    ) -> tuple[list[Row], dict[str, dict[str, str]], dict[str, list[Row]], dict[str, int]]:
        """Judge the answers to the true image; where they are all alike, add something that differs and judge again.

        Where all are good, answers to a corrupted image are added; where all are bad, the reference answer is.
        """
        own = {key: [row for row in group if not _corrupted(row)] for key, group in grouped.items()}
        own = {key: answers or list(grouped[key]) for key, answers in own.items()}
        judgements, faults = self.judge(own)
        scores: dict[str, dict[str, list[float]]] = {}
        for row in judgements:
            if row["status"] == OK and row["mode"] != PAIRWISE:
                scores.setdefault(row["prompt_id"], {}).setdefault(row["response_id"], []).append(row["score"])
        fuller: dict[str, list[Row]] = {}
        enhanced = {"corrupted": 0, REFERENCE: 0, "nothing": 0}
        for key, answers in own.items():
            means = [fmean(values) for values in scores.get(key, {}).values()]
            faulty = any(row["response_id"] in faults for row in answers)
            if faulty or not means or max(means) - min(means) > self.settings.uniform_spread:
                continue
            if fmean(means) >= self.settings.uniform_high:
                kind = "corrupted"
                added = [row for row in grouped[key] if _corrupted(row) and row not in answers]
            else:
                kind = REFERENCE
                added = self._reference(key, grouped[key])
            enhanced[kind if added else "nothing"] += 1
            if added:
                fuller[key] = [*answers, *added]
        again, more_faults = self.judge(fuller)
        judgements = [row for row in judgements if row["prompt_id"] not in fuller] + again
        faults |= more_faults
        final = {key: fuller.get(key, answers) for key, answers in own.items()}
        for key, group in grouped.items():
            judged = {row["response_id"] for row in final[key]}
            for row in group:
                if row["response_id"] not in judged:
                    faults[row["response_id"]] = _aside(row["response_id"], SPARE, "", self.prompts[key]["source"])
        return judgements, faults, final, enhanced

    def _reference(self, key: str, group: Sequence[Row]) -> list[Row]:
        text = (self.prompts[key]["reference"] or "").strip()
        if not text or any(row["text"].strip() == text for row in group):
            return []
        response_id = content_ids.response_id(key, text)
        return [{"response_id": response_id, "prompt_id": key, "text": text, "generator": REFERENCE}]

    def _calls(self, judge: Judge, key: str, group: Sequence[Row]) -> Iterable[_Call]:
        prompt, wanted = self.prompts[key], [mode for mode in self.settings.modes if mode in judge.modes]
        orders, seed = self.settings.orders, f"{self.seed}:{key}"
        if LISTWISE in wanted:
            for order in presentation_orders(len(group), orders, seed):
                yield _call(prompt, [group[i] for i in order], LISTWISE, order)
        if POINTWISE in wanted:
            for row in group:
                yield _call(prompt, [row], POINTWISE, ())
        if PAIRWISE in wanted:
            for first, second in itertools.combinations(group, 2):
                both = [(0, 1), (1, 0)]
                random.Random(f"{seed}:{first['response_id']}:{second['response_id']}").shuffle(both)
                for order in both[: min(orders, 2)]:
                    yield _call(prompt, [(first, second)[i] for i in order], PAIRWISE, order)


def presentation_orders(count: int, orders: int, seed: object) -> list[tuple[int, ...]]:
    """Different permutations of range(count), `orders` of them or as many as there are, never the identity.

    The one permutation of a single response is the identity; it is given once. Item i of a permutation is the index of
    the response that stands in place i.
    """
    identity = tuple(range(count))
    if count < 2:
        return [identity]
    rng = random.Random(str(seed))
    if count <= _ALL_ORDERS:
        every = [order for order in itertools.permutations(identity) if order != identity]
        return rng.sample(every, min(orders, len(every)))
    found: list[tuple[int, ...]] = []
    while len(found) < min(orders, math.factorial(count) - 1):
        order = tuple(rng.sample(identity, count))
        if order != identity and order not in found:
            found.append(order)
    return found


def _corrupted(row: Row) -> bool:
    return any(row["generator"].endswith(mark) for mark in CORRUPTED)


def _call(prompt: Row, presented: Sequence[Row], mode: str, order: tuple[int, ...]) -> _Call:
    request = JudgeRequest(prompt, tuple(row["text"] for row in presented), mode)
    return _Call(request, tuple(row["response_id"] for row in presented), order)


def _rows(call: _Call, verdicts: Sequence[Verdict], judge: Judge) -> list[Row]:
    prompt, mode = call.request.prompt, call.request.mode
    shared = {
        "prompt_id": prompt["prompt_id"],
        "judge": judge.name,
        "mode": mode,
        "order": list(call.order),
        "template_hash": judge.template_hash(mode, prompt["language"]),
    }
    rows: list[Row] = []
    for place, verdict in enumerate(verdicts):
        criteria: dict[str, Any] = dict(verdict.criteria)
        if verdict.stated is not None and verdict.score is not None:
            difference = round(verdict.stated - verdict.score, 6)
            criteria[OVERALL] = {"stated": verdict.stated, "difference": difference}
        if mode == PAIRWISE:
            criteria[AGAINST] = call.response_ids[1 - place]
            if verdict.status != OK:
                criteria["raw"] = records.writable(verdict.detail)
        rows.append(
            shared
            | {
                "response_id": call.response_ids[place],
                "score": verdict.score,
                "criteria": json.dumps(criteria, sort_keys=True, ensure_ascii=False),
                "status": verdict.status,
            }
        )
    return rows


def _faults(call: _Call, verdicts: Sequence[Verdict]) -> list[tuple[str, str, str]]:
    """(response_id, reason, detail) of every response that this call's faults make unusable."""
    faulty = next((verdict for verdict in verdicts if verdict.status != OK), None)
    if faulty is None or call.request.mode == PAIRWISE:
        return []
    return [(response_id, faulty.status, faulty.detail) for response_id in call.response_ids]


def _aside(row_id: str, reason: str, detail: str, source: str) -> dict[str, str]:
    return records.quarantine_row(row_id, STAGE, reason, detail, source)
