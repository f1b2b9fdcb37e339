"""Both sides of every pair in one style: rewritten by one model, metadata unchanged.

Where pairs come from several models, selection (debias.py) may have to leave out too many of them. A rewriter puts
every response into the same style instead. A rewriter may also mend or spoil what it rewrites, and then the label is
wrong: a pair is quarantined where a number changed, where the answer changed (by comparison with the reference), or
where the recipe's check (the rewriter itself, asked again, where it names none) finds that the two do not mean the
same.

Run as `python -m dt2it_pipeline.engines.jobs job.json`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from dt2it_pipeline.config.models import EndpointSettings, VllmSettings
from dt2it_pipeline.config.sections.judging import (
    EndpointJudgeSettings,
    LikelihoodCheckSettings,
    VllmJudgeSettings,
    WordsCheckSettings,
)
from dt2it_pipeline.config.sections.pairing import RestyleSettings
from dt2it_pipeline.construct.pairs import bare_words, near_identical
from dt2it_pipeline.engines.jobs import Reporter, Summary
from dt2it_pipeline.engines.launch.launcher import WorkerPlace
from dt2it_pipeline.engines.vllm_engine import SamplingEngine
from dt2it_pipeline.judges.answer_matching import answers
from dt2it_pipeline.judges.ask import NO_REPLY, Tally, replies
from dt2it_pipeline.judges.factory import HeldElsewhere, MakeEngine, engine_of, likelihood_judge, model_key
from dt2it_pipeline.judges.llm import ModelJudge
from dt2it_pipeline.judges.protocol import Judge, JudgeError, JudgeRequest, Reply
from dt2it_pipeline.judges.reply_cache import ReplyCache
from dt2it_pipeline.judges.rubric import CUT_OFF, UNPARSABLE, only_object
from dt2it_pipeline.judges.shared import Answers, JudgeWorkers, JudgingJob, Shard, SharedJudge, answering
from dt2it_pipeline.observe.progress import Progress, silent
from dt2it_pipeline.storage import atomic, records, schemas

STAGE = "restyle"
RESTYLE, SAME = "restyle", "same_content"  # modes, and names of the templates
MARK = "|restyled"  # how `generator` of a rewritten response ends
FAILED, UNCHECKED, DRIFTED, NUMBERS, ANSWER, ALIKE, TWICE = (
    "could not be rewritten",
    "words cannot check the content",
    "rewriting changed the content",
    "rewriting changed a number",
    "rewriting changed the answer",
    "sides became near-identical",
    "became the same as another pair",
)
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_LISTED = re.compile(r"(?m)^\s*\d{1,2}[.)]\s")  # numbers of list items are layout

Row = dict[str, Any]


@dataclass(frozen=True)
class Restyled:
    """What rewriting came to.

    Attributes:
        pairs: with both sides rewritten (new texts, hence new ids; strength and label stay).
        responses: the texts of these pairs; `generator` is that of the original, with `|restyled` behind it.
        quarantine: one row per pair that is not in `pairs`; pairs given = pairs + quarantined.
        tallies: what asking came to, for rewriting and for comparing.
    """

    pairs: pa.Table
    responses: pa.Table
    quarantine: pa.Table
    tallies: dict[str, Tally]


class RestyleJob(JudgingJob):
    """Rewrite both sides of every pair into one style.

    Attributes:
        pairs: Parquet of kind `pairs`.
        prompts: Parquet of kind `prompts`.
        responses: Parquet of kind `responses`, which says who wrote the sides.
        media_root: folder that the prompts' media paths are relative to.
        output: folder for pairs.parquet, responses.parquet and quarantine.parquet.
        cache: SQLite file that keeps replies: a killed run goes on where it was.
        settings: the recipe's section `pairing.restyle`.
        near_identical: share of common words from which sides count as near-identical; see `pairs.near_identical`.
    """

    entry_point: ClassVar[str] = "dt2it_pipeline.construct.restyle:run"
    shard_worker: ClassVar[str] = "dt2it_pipeline.construct.restyle:shard_worker"

    pairs: Path
    prompts: Path
    responses: Path
    media_root: Path
    output: Path
    cache: Path
    settings: RestyleSettings
    near_identical: float


def run(job: RestyleJob, report: Reporter, make_engine: MakeEngine | None = None) -> Summary:
    """Rewrite both sides of every pair; writes pairs.parquet, responses.parquet and quarantine.parquet into a folder.

    Replies are kept in the job's cache file: a killed run goes on where it was. Models that are loaded here (kinds vllm
    and likelihood) lie in worker processes, which share the texts.

    Args:
        job: what to rewrite, and by whom.
        report: called with how many of the texts are rewritten, and then compared.
        make_engine: see `judges.factory.make_judge`.

    Returns:
        rows_in = rows_out + rows_quarantined (pairs), the counts and costs of `Tally` for rewriting and comparing, and
        gpu_seconds (GPUs times seconds).

    Raises:
        JudgeError: the rewriter or the check cannot be had.
        JudgeStopped: one of them cannot answer any more.
        CacheError: replies cannot be kept.
        ShardsError: a worker process died, or cannot load a model.
    """
    settings = job.settings
    pairs = atomic.read_parquet(job.pairs, "pairs")
    prompts = atomic.read_parquet(job.prompts, "prompts").to_pylist()
    written = atomic.read_parquet(job.responses, "responses").select(["response_id", "generator"]).to_pylist()
    generators = {row["response_id"]: row["generator"] for row in written}
    load = None if make_engine is None else partial(shard_worker, make_engine=make_engine)
    cache = ReplyCache(job.cache)
    try:
        with JudgeWorkers(job, settings.gpus_per_copy, 2 * pairs.num_rows, load) as workers:
            rewriter = _asker(job, 0, settings.rewriter, workers, make_engine)
            check: Judge | None = rewriter
            if isinstance(settings.check, WordsCheckSettings):
                check = None
            elif settings.check is not None:
                check = _asker(job, 1, settings.check, workers, make_engine)
            found = restyle(pairs, prompts, generators, rewriter, cache, report, job.near_identical, check)
            gpu_seconds = workers.gpu_seconds
    finally:
        cache.close()
    for name in ("pairs", "responses", "quarantine"):
        atomic.write_parquet(getattr(found, name), job.output / f"{name}.parquet")
    asked = {RESTYLE: settings.rewriter, SAME: settings.check or settings.rewriter}
    return {
        "rows_in": pairs.num_rows,
        "rows_out": found.pairs.num_rows,
        "rows_quarantined": found.quarantine.num_rows,
        "gpu_seconds": gpu_seconds,
    } | {mode: found.tallies[mode].metadata(*_prices(who)) for mode, who in asked.items()}


def shard_worker(
    job: RestyleJob, shared: None, place: WorkerPlace, make_engine: MakeEngine | None = None
) -> Callable[[Shard], Answers]:
    """A worker's function: what it returns puts requests to the rewriter (0) or the check (1), and loads its model."""
    engines: dict[int, SamplingEngine] = {}

    def make(number: int) -> Judge:
        chosen = (job.settings.rewriter, job.settings.check)[number]
        if isinstance(chosen, LikelihoodCheckSettings):
            return likelihood_judge(chosen, job.media_root)
        assert isinstance(chosen, VllmJudgeSettings)
        own = 0 if number and _same_engine(job.settings.rewriter, chosen) else number
        if own not in engines:
            engines[own] = engine_of(chosen, 0, make_engine)
        return _asked_in_words(chosen, job.settings.style, engines[own])

    return answering(make, place)


def _asker(
    job: RestyleJob,
    number: int,
    chosen: EndpointJudgeSettings | VllmJudgeSettings | LikelihoodCheckSettings,
    workers: JudgeWorkers,
    make_engine: MakeEngine | None,
) -> Judge:
    """Who is asked: an endpoint by this process, a model that is loaded here by the workers."""
    if isinstance(chosen, EndpointJudgeSettings):
        return _asked_in_words(chosen, job.settings.style, engine_of(chosen, 0, make_engine))
    if isinstance(chosen, LikelihoodCheckSettings):
        return SharedJudge(likelihood_judge(chosen, job.media_root, HeldElsewhere()), number, workers)
    return SharedJudge(_asked_in_words(chosen, job.settings.style, HeldElsewhere()), number, workers)


def _prices(who: object) -> tuple[float, float]:
    return (who.input_price, who.output_price) if isinstance(who, EndpointSettings) else (0.0, 0.0)


def _same_engine(rewriter: VllmSettings | EndpointSettings, check: VllmSettings | EndpointSettings) -> bool:
    """Whether one engine can serve both: a model is not loaded twice."""
    if not isinstance(rewriter, VllmSettings) or not isinstance(check, VllmSettings):
        return False
    return all(getattr(rewriter, name) == getattr(check, name) for name in VllmSettings.model_fields)


def _asked_in_words(
    chosen: EndpointJudgeSettings | VllmJudgeSettings, style: str, engine: SamplingEngine
) -> ModelJudge:
    """A model that rewrites and compares; it sees no image, which would tempt it to answer the question."""
    return ModelJudge(
        chosen.name,
        engine,
        Path(),
        chosen.max_new_tokens,
        model=model_key(chosen),
        temperature=chosen.temperature,
        attempts=chosen.attempts,
        max_runs=chosen.max_runs,
        values={"style": style},
        schemas={
            RESTYLE: _schema({"text": {"type": "string"}}),
            SAME: _schema({"difference": {"type": "string", "maxLength": 400}, "same": {"type": "boolean"}}),
        },
        with_images=False,
    )


def restyle(
    pairs: pa.Table,
    prompts: Sequence[Row],
    generators: Mapping[str, str],
    rewriter: Judge,
    cache: ReplyCache,
    report: Reporter = silent,
    bound: float = 1.0,
    check: Judge | None = None,
) -> Restyled:
    """Rewrite both sides of every pair; a pair whose content changed on the way is quarantined.

    Args:
        pairs: pairs table.
        prompts: their prompts rows.
        generators: who wrote a response, by its id; empty words where it is not there.
        rewriter: answers the mode `restyle`.
        cache: where replies are kept.
        report: called with what is done.
        bound: share of common words from which the two sides of a pair count as near-identical; see `pairs`.
        check: answers the mode `same_content`, may be the rewriter; None: by words alone, see `WordsCheckSettings`.
    """
    by_id = {row["prompt_id"]: row for row in prompts}
    rivals = answers.rivals_by_reference(prompts)
    rows = pairs.to_pylist()
    sides: dict[str, tuple[Row, str]] = {}  # response id -> its prompt and text; a response in two pairs is asked once
    for pair in rows:
        for side in ("chosen", "rejected"):
            if pair["prompt_id"] in by_id:
                sides[pair[f"{side}_id"]] = (by_id[pair["prompt_id"]], pair[side])
    tallies = {RESTYLE: Tally(), SAME: Tally()}
    requests = {key: JudgeRequest(prompt, (text,), RESTYLE) for key, (prompt, text) in sides.items()}
    rewritten = Progress(report, "texts rewritten", len(requests))
    texts, faults = _answers(rewriter, requests, cache, tallies[RESTYLE], _text, rewritten)
    drifted: dict[str, tuple[str, str]] = {key: (FAILED, detail) for key, detail in faults.items()}
    for key, text in texts.items():
        prompt, original = sides[key]
        reason = _lexical_drift(original, text, prompt, rivals)
        if not reason and check is None and text != original and not _has_short_reference(prompt):
            reason = UNCHECKED
        if reason:
            drifted[key] = (reason, f"{original} -> {text}")
    comparisons = {
        key: JudgeRequest(sides[key][0], (sides[key][1], text), SAME)
        for key, text in texts.items()
        if check is not None and key not in drifted and text != sides[key][1]
    }
    compared = Progress(report, "texts compared", len(comparisons))
    same, faults = _answers(check or rewriter, comparisons, cache, tallies[SAME], _is_same, compared)
    drifted |= {key: (FAILED, detail) for key, detail in faults.items()}
    drifted |= {key: (DRIFTED, f"{sides[key][1]} -> {texts[key]}") for key, is_same in same.items() if not is_same}
    kept: list[Row] = []
    responses: dict[str, Row] = {}
    aside: list[dict[str, Any]] = []
    seen: set[str] = set()
    for pair in rows:
        reason, detail = _fault(pair, by_id, drifted)
        if not reason:
            better, worse = texts[pair["chosen_id"]], texts[pair["rejected_id"]]
            fields = {key: pair[key] for key in ("strength", "label", "round", "source", "votes", "row_id")}
            made = records.make_pair(pair["prompt_id"], better, worse, **fields)
            detail = f"{better} / {worse}"
            if near_identical(bare_words(better), bare_words(worse), bound):
                reason = ALIKE
            elif made["pair_id"] in seen:
                reason = TWICE
            else:
                seen.add(made["pair_id"])
                kept.append(made)
                for side in ("chosen", "rejected"):
                    generator = f"{generators.get(pair[f'{side}_id'], '')}{MARK}"
                    row = {"prompt_id": pair["prompt_id"], "text": made[side], "generator": generator}
                    responses.setdefault(made[f"{side}_id"], {"response_id": made[f"{side}_id"], **row})
                continue
        aside.append(records.quarantine_pair(pair, STAGE, reason, detail))
    return Restyled(
        schemas.table(kept, "pairs"),
        schemas.table(responses.values(), "responses"),
        schemas.table(aside, "quarantine"),
        tallies,
    )


def _fault(pair: Row, prompts: Mapping[str, Row], drifted: Mapping[str, tuple[str, str]]) -> tuple[str, str]:
    if pair["prompt_id"] not in prompts:
        return "unknown prompt", pair["prompt_id"]
    return next((drifted[pair[f"{s}_id"]] for s in ("chosen", "rejected") if pair[f"{s}_id"] in drifted), ("", ""))


def _answers(
    judge: Judge,
    requests: Mapping[str, JudgeRequest],
    cache: ReplyCache,
    tally: Tally,
    read: Callable[[str, Sequence[str]], Any],
    progress: Progress,
) -> tuple[dict[str, Any], dict[str, str]]:
    """What a judge answered, read by `read` (None: of no use, ask again), and why there is no answer.

    `read` is given the reply's words and the texts that the judge could quote.
    """
    keys = list(requests)
    writes = getattr(judge, "writes", False)
    found: dict[str, Any] = {}
    faults: dict[str, str] = {}

    def fault(place: int, reply: Reply | JudgeError) -> str:
        why = taken(place, reply)
        progress.at(
            len(found.keys() | faults.keys()), failed=len(faults)
        )  # a text counts once, however often it is asked for
        return why

    def taken(place: int, reply: Reply | JudgeError) -> str:
        if isinstance(reply, JudgeError):
            faults[keys[place]] = str(reply)
            return NO_REPLY
        material = requests[keys[place]].texts() if writes else ()
        value = read(reply.text, material) if reply.finished else None
        if value is None:
            faults[keys[place]] = reply.text
            return UNPARSABLE if reply.finished else CUT_OFF
        faults.pop(keys[place], None)
        found[keys[place]] = value
        return ""

    replies(judge, list(requests.values()), cache, tally, fault)
    return found, faults


def _text(reply: str, material: Sequence[str]) -> str | None:
    value = (only_object(reply, "text", material)[0] or {}).get("text")
    return value.strip() if isinstance(value, str) and value.strip() else None


def _is_same(reply: str, material: Sequence[str]) -> bool | None:
    value = (only_object(reply, "same", material)[0] or {}).get("same")
    return value if isinstance(value, bool) else None


def _lexical_drift(original: str, text: str, prompt: Row, rivals: Mapping[str, frozenset[str]]) -> str:
    """Why a rewritten text cannot mean the same, from its words alone; empty where they do not show it."""
    if _numbers(original) != _numbers(text):
        return NUMBERS
    if _has_short_reference(prompt):
        gold = answers.words(prompt["reference"])
        question, others = answers.question_text(prompt), rivals.get(" ".join(gold), frozenset())
        before, after = (answers.assess(each, prompt["reference"], question, others) for each in (original, text))
        if before != after:
            return ANSWER
    return ""


def _has_short_reference(prompt: Row) -> bool:
    return 0 < len(answers.words(prompt["reference"] or "")) <= answers.MAX_PHRASE_WORDS


def _numbers(text: str) -> Counter[str]:
    """Numbers of a text, spelled-out ones as digits; not those of list items, nor "one", a pronoun as a rule."""
    plain = _LISTED.sub("", re.sub(r"(?i)\bone\b", " ", text))
    return Counter(_NUMBER.findall(" ".join(answers.words(plain)) if plain.isascii() else plain))


def _schema(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
