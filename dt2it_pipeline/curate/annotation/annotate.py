"""Step 3 of curation: judges vote on every contested pair (DT2IT-MRM, part 3).

Each judge gives one verdict per pair. The first judge sees pairs in the order `forward`, the next in `reversed`, in
turn. Judges that see each response alone (`pair_judges.py`) have the order `alone`.

Run as `python -m dt2it_pipeline.engines.jobs job.json`.
"""

from __future__ import annotations

import gc
import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from dt2it_pipeline.config.compute import VllmRunSettings
from dt2it_pipeline.config.sections.annotation import AnnotationSettings, AnnotatorChoice, PairJudgeSettings
from dt2it_pipeline.config.sections.judging import EndpointJudgeSettings
from dt2it_pipeline.engines.jobs import Reporter, Summary
from dt2it_pipeline.engines.launch.launcher import ShardLauncher, WorkerPlace
from dt2it_pipeline.engines.launch.local_shards import InThisProcess
from dt2it_pipeline.engines.launch.ray_shards import RayShards
from dt2it_pipeline.engines.vllm_engine import SamplingEngine, VllmEngine
from dt2it_pipeline.judges.ask import Tally, require_usable
from dt2it_pipeline.judges.factory import make_judge
from dt2it_pipeline.judges.likelihood.model import LikelihoodModel
from dt2it_pipeline.judges.pair_judges import AnswerJudge, LikelihoodJudge, PairJudge, Prompts, Weigher
from dt2it_pipeline.judges.pairwise_votes import ORDERS, NoVerdict, PairVerdict, PairwiseVotes
from dt2it_pipeline.judges.protocol import NoUsableReply, Reply
from dt2it_pipeline.judges.reply_cache import ReplyCache
from dt2it_pipeline.judges.shared import JudgingJob
from dt2it_pipeline.observe.progress import Progress
from dt2it_pipeline.storage import atomic, content_ids, records, schemas

STAGE = "annotate"
ALONE = "alone"  # in place of an order, where a judge sees each response by itself
_CALLS = "calls.json"  # of a shard, beside its votes
_FORM = 2  # of a shard's folder; one of an earlier form is not taken for done
_FEW = 3  # pairs; a judge that has no reply to fewer may be right about them, and the run goes on

Row = dict[str, Any]
_Shard = tuple[int, int]  # place of a judge, and of the first pair
MakeWeigher = Callable[[PairJudgeSettings], Weigher]
MakeEngine = Callable[[PairJudgeSettings, int], SamplingEngine]


class AnnotateJob(JudgingJob):
    """Have every judge vote on every pair.

    Attributes:
        pairs: Parquet of kind `pairs`.
        prompts: Parquet of kind `prompts`.
        media_root: folder that the prompts' media paths are relative to.
        output: Parquet of kind `votes` to write; `<stem>.quarantine.parquet` is written beside it.
        work: folder for finished shards, from which a killed run goes on.
        cache: SQLite file that keeps replies and answers across runs; None: in memory.
        settings: the recipe's section `annotation`.
        seed: of the images of other prompts that likelihood judges compare with.
    """

    entry_point: ClassVar[str] = "dt2it_pipeline.curate.annotation.annotate:run"
    shard_worker: ClassVar[str] = "dt2it_pipeline.curate.annotation.annotate:shard_worker"

    pairs: Path
    prompts: Path
    media_root: Path
    output: Path
    work: Path
    cache: Path | None = None
    settings: AnnotationSettings
    seed: int


@dataclass(frozen=True)
class _Done:
    """What a worker says of a shard: its pairs, seconds in which it loaded a model, and what asking came to.

    `tally` is that of a judge that writes, `questions` has the counts of one that answers; else they are empty.
    `replies` are those that are still to be kept.
    """

    pairs: int
    loading: float
    tally: Tally | None
    questions: dict[str, int]
    replies: dict[str, Reply]


def run(
    job: AnnotateJob,
    report: Reporter,
    make_weigher: MakeWeigher | None = None,
    make_engine: MakeEngine | None = None,
) -> Summary:
    """Let every judge vote on every pair; writes a votes table and, beside it, `<stem>.quarantine.parquet`.

    A pair that a judge cannot judge (no prompt, an unreadable image, a likelihood that is not a number) gets the
    verdict null from that judge, and a quarantine row `<pair_id>/<judge>` with the reason. Finished shards in the work
    folder are not judged again; the same job gives the same bytes. Worker processes share the shards of judges whose
    models are loaded here.

    Args:
        job: what to vote on, and by whom.
        report: called after each shard with how many of the pairs a judge has seen.
        make_weigher: builds a likelihood judge's model from its settings; transformers when None.
        make_engine: builds an answering judge's engine from its settings and the most images in one prompt; vLLM
            when None.

    Returns:
        pairs, votes, calls (what judges were asked), cached (replies from the cache, which are free), unusable
        (verdicts that are null), seconds, pairs_per_second, gpu_seconds, per judge a count of verdicts, and in
        `asked` what asking came to in this run, per judge that writes: the questions `asked` and those `looked_up`
        among kept replies, and of one asked about responses calls, tokens and cost.

    Raises:
        LikelihoodError, EngineError, JudgeError: a judge's model cannot be loaded, or its key is not set.
        JudgeStopped: an endpoint gives no answers any more; what it has answered is kept.
        NoUsableReply: a judge that writes voted on no pair of three or more.
        ShardsError: a worker process died, or a judge's model cannot be loaded in one.
    """
    settings, work, output = job.settings, job.work, job.output
    pairs = atomic.read_parquet(job.pairs, "pairs").num_rows
    starts = range(0, pairs, settings.batch_pairs)
    voting = _Voting(job, report, pairs)
    places = range(len(settings.judges))
    endpoints = [place for place in places if isinstance(settings.judges[place], EndpointJudgeSettings)]
    here = InThisProcess(partial(shard_worker, make_weigher=make_weigher, make_engine=make_engine))
    workers: Callable[[], ShardLauncher] = partial(job.launcher, settings.gpus_per_copy)
    if make_weigher is not None or make_engine is not None:
        workers = partial(InThisProcess, here.load)
    voting.share(endpoints, lambda: here)
    voting.share([place for place in places if place not in endpoints], workers)
    folders = [_folder(work, judge, start) for judge in settings.judges for start in starts]
    votes_table = _joined(folders, "votes")
    atomic.write_parquet(_joined(folders, "quarantine"), output.with_name(f"{output.stem}.quarantine.parquet"))
    atomic.write_parquet(votes_table, output)
    counts = votes_table.group_by(["judge", "verdict"]).aggregate([([], "count_all")]).to_pylist()
    calls = [json.loads((folder / _CALLS).read_text()) for folder in folders]
    verdicts = {f"{row['judge']}: {row['verdict'] or 'unusable'}": row["count_all"] for row in counts}
    return {
        "pairs": pairs,
        "votes": votes_table.num_rows,
        "calls": sum(each["calls"] for each in calls),
        "cached": sum(each["cached"] for each in calls),
        "unusable": votes_table.column("verdict").null_count,
        "verdicts": dict(sorted(verdicts.items())),
        "asked": voting.asked(),
        "seconds": round(voting.seconds, 2),
        "pairs_per_second": round(voting.judged / voting.seconds, 2) if voting.seconds else 0.0,
        "gpu_seconds": round(voting.gpu_seconds, 1),
    }


class _Voting:
    """The shards of one run of a job, and what came of them.

    Attributes:
        judged: verdicts of this run.
        seconds: of its shards, without the longest time in which a worker loaded a model.
        gpu_seconds: GPUs of its workers times seconds.
    """

    def __init__(self, job: AnnotateJob, report: Reporter, pairs: int) -> None:
        self._job, self._report, self._pairs = job, report, pairs
        self._starts = range(0, pairs, job.settings.batch_pairs)
        self._tallies: dict[int, Tally] = {}
        self._questions: dict[int, Counter[str]] = {}
        self.judged, self.seconds, self.gpu_seconds = 0, 0.0, 0.0

    def share(self, places: Sequence[int], launcher: Callable[[], ShardLauncher]) -> None:
        """Have workers do the shards of the judges in some places that are not done."""
        job, size = self._job, self._job.settings.batch_pairs
        judges = job.settings.judges
        todo = [
            (p, start) for p in places for start in self._starts if not _folder(job.work, judges[p], start).is_dir()
        ]
        if not todo:
            return
        total, left = self._pairs * len(places), sum(min(size, self._pairs - start) for _, start in todo)
        progress = Progress(self._report, "pairs", total, first=total - left)
        loading, started = 0.0, time.monotonic()
        kept: ReplyCache | None = None
        known: list[tuple[str, str]] | None = None

        def finished(number: int, done: _Done) -> None:
            nonlocal loading
            loading = max(loading, done.loading)
            if kept is not None:
                for key, reply in done.replies.items():
                    kept.put(key, reply)
            self._count(todo[number][0], done)
            progress.add(done.pairs, judge=judges[todo[number][0]].name)

        chosen = launcher()
        if isinstance(chosen, RayShards):
            # One machine may open the file: its rows go to the workers of the cluster, and from them come new ones.
            kept = ReplyCache(job.cache)
            known = kept.rows()
        gpus = chosen.run(job, dict(enumerate(todo)), finished, known)
        if kept is not None:
            kept.close()
        seconds = time.monotonic() - started
        self.seconds += max(0.0, seconds - loading)
        self.gpu_seconds += gpus * seconds

    def _count(self, place: int, done: _Done) -> None:
        self.judged += done.pairs
        if done.tally is not None:
            tally = self._tallies.setdefault(place, Tally())
            tally.add(done.tally)
            _require_votes(self._job.settings.judges[place], tally, self._job.work, self._starts)
        if done.questions:
            self._questions.setdefault(place, Counter()).update(done.questions)

    def asked(self) -> dict[str, dict[str, Any]]:
        """What asking came to, of judges that write."""
        found: dict[str, dict[str, Any]] = {}
        for place, judge in enumerate(self._job.settings.judges):
            if place in self._tallies:
                prices = (judge.input_price, judge.output_price) if isinstance(judge, EndpointJudgeSettings) else ()
                found[judge.name] = self._tallies[place].metadata(*prices)
            elif place in self._questions:
                found[judge.name] = dict(self._questions[place])
        return found


def shard_worker(
    job: AnnotateJob,
    known: Sequence[tuple[str, str]] | None,
    place: WorkerPlace,
    make_weigher: MakeWeigher | None = None,
    make_engine: MakeEngine | None = None,
) -> Callable[[_Shard], _Done]:
    """A worker's function: what it returns has a judge vote on the pairs of a shard, whose folder it writes.

    A judge's model is loaded with its first shard. `known` are the rows of the reply cache where this process cannot
    open its file.
    """
    settings = job.settings
    pairs = atomic.read_parquet(job.pairs, "pairs").to_pylist()
    rows = {row["prompt_id"]: row for row in atomic.read_parquet(job.prompts, "prompts").to_pylist()}
    prompts = Prompts(rows, job.media_root, job.seed)
    replies = ReplyCache(job.cache) if known is None else ReplyCache.holding(known)
    judges: dict[int, PairJudge] = {}
    _HELD.let_go()  # another engine of vLLM that ended meanwhile took the held one's process groups with it
    if place.threads is not None:  # a process of the worker's own, whose state is nobody else's
        import torch

        torch.set_num_threads(place.threads)

    def do(shard: _Shard) -> _Done:
        number, start = shard
        judge = settings.judges[number]
        order = ALONE if isinstance(judge, PairJudgeSettings) else ORDERS[number % 2]
        started = time.monotonic()
        if number not in judges:
            judges.clear()
            if not isinstance(judge, PairJudgeSettings):
                _HELD.let_go()
            judges[number] = _built(judge, prompts, order, replies, make_weigher, make_engine)
        built, loading = judges[number], time.monotonic() - started
        if isinstance(built, PairwiseVotes):
            built.tally = Tally()
        some, questions = pairs[start : start + settings.batch_pairs], _questions(built)
        calls, cached = built.calls, built.cached
        votes, aside = _votes(some, built.verdicts(some), judge.name, order)
        with atomic.atomic_directory(_folder(job.work, judge, start)) as folder:
            atomic.write_parquet(schemas.table(votes, "votes"), folder / "votes.parquet")
            atomic.write_parquet(schemas.table(aside, "quarantine"), folder / "quarantine.parquet")
            counted = {"calls": built.calls - calls, "cached": built.cached - cached}
            atomic.write_json_atomic(counted, folder / _CALLS)
        tally = built.tally if isinstance(built, PairwiseVotes) else None
        found = _questions(built)
        counts = {key: found[key] - questions[key] for key in found}
        return _Done(len(some), loading, tally, counts, {} if known is None else replies.new())

    return do


def _questions(judge: PairJudge) -> dict[str, int]:
    """Of a judge that answers questions, how many it has asked its model, and found among kept answers."""
    return {"asked": judge.asked, "looked_up": judge.looked_up} if isinstance(judge, AnswerJudge) else {}


def _require_votes(judge: AnnotatorChoice, tally: Tally, work: Path, starts: Sequence[int]) -> None:
    """Raise NoUsableReply where a judge voted on none of its pairs so far. The next run asks about them again."""
    if tally.judged or isinstance(judge, PairJudgeSettings):
        return
    folders = [_folder(work, judge, start) for start in starts]
    verdicts = _joined([folder for folder in folders if folder.is_dir()], "votes").column("verdict")
    if len(verdicts) < _FEW or verdicts.null_count < len(verdicts):
        return
    try:
        require_usable(judge, tally)
    except NoUsableReply:
        shutil.rmtree(folders[0].parent)
        raise


def _built(
    judge: AnnotatorChoice,
    prompts: Prompts,
    order: str,
    replies: ReplyCache,
    make_weigher: MakeWeigher | None,
    make_engine: MakeEngine | None,
) -> PairJudge:
    """The judge that settings describe, its model loaded."""
    if not isinstance(judge, PairJudgeSettings):
        return PairwiseVotes(make_judge(judge, prompts.rows.values(), prompts.media_root), prompts.rows, order, replies)
    if judge.kind == "likelihood":
        return LikelihoodJudge(judge, (make_weigher or _transformers)(judge), prompts)
    most = max((len(row["media"]) for row in prompts.rows.values()), default=1)
    return AnswerJudge(judge, partial((make_engine or _vllm), judge, most), prompts, replies)


def _votes(
    shard: Sequence[Row], verdicts: Sequence[PairVerdict | NoVerdict], judge: str, order: str
) -> tuple[list[Row], list[dict[str, str]]]:
    """One judge's votes on one shard, a row per pair, and why some of them are null."""
    votes: list[Row] = []
    aside: list[dict[str, str]] = []
    for pair, verdict in zip(shard, verdicts, strict=True):
        key = pair["pair_id"]
        vote = {"pair_id": key, "judge": judge, "order": order, "words": verdict.words}
        if isinstance(verdict, NoVerdict):
            aside.append(
                records.quarantine_row(f"{key}/{judge}", STAGE, verdict.reason, verdict.detail, pair["source"])
            )
            votes.append(vote | {"verdict": None, "fault": records.writable(verdict.reason)})
        else:
            votes.append(vote | {"verdict": verdict.side, "fault": None})
    return votes, aside


class _Held:
    """The one model that this process holds for judges: those that differ in their words alone share it.

    Two large models may not fit on a GPU beside each other.
    """

    key: Any = None
    model: Any = None

    def get(self, key: Any, load: Callable[[], Any]) -> Any:
        """The model of a key; another one is let go before it is loaded."""
        if key != self.key:
            self.let_go()
            self.model = load()
            self.key = key
        return self.model

    def let_go(self) -> None:
        """Give the memory of the model, and of what else nobody refers to any more, to the next one."""
        self.key = self.model = None
        gc.collect()  # an engine of vLLM refers to itself
        if "torch" in sys.modules:
            import torch

            torch.cuda.empty_cache()  # nothing where CUDA has not been started


_HELD = _Held()


def _transformers(judge: PairJudgeSettings) -> Weigher:
    how = (judge.model, judge.tokens_per_batch, judge.precision, judge.max_pixels)
    weigher: Weigher = _HELD.get(how, lambda: LikelihoodModel(*how))
    return weigher


def _vllm(judge: PairJudgeSettings, most_images: int) -> SamplingEngine:
    how = (judge.model, judge.max_model_len, max(most_images, 1))
    run = VllmRunSettings(**{name: getattr(judge, name) for name in VllmRunSettings.model_fields})
    engine: SamplingEngine = _HELD.get(("vllm", *how, run), lambda: VllmEngine(*how, run=run))
    return engine


def _joined(folders: Sequence[Path], kind: str) -> pa.Table:
    tables = [atomic.read_parquet(folder / f"{kind}.parquet", kind) for folder in folders]
    return pa.concat_tables([schemas.table([], kind), *tables]).combine_chunks()


def _folder(work: Path, judge: AnnotatorChoice, start: int) -> Path:
    return work / content_ids.content_hash(_FORM, judge.model_dump(mode="json"))[:12] / f"{start:09d}"
