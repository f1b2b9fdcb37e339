"""Step 3 of curation: judges vote on every contested pair (DT2IT-MRM, part 3).

Each judge gives one verdict per pair. The first judge sees pairs in the order `forward`, the next in `reversed`, in
turn. Judges that see each response alone (`pair_judges.py`) have the order `alone`.

Run as `python -m dt2it_pipeline.engines.jobs job.json`.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from dt2it_pipeline.config.sections.annotation import AnnotationSettings, AnnotatorChoice, PairJudgeSettings
from dt2it_pipeline.config.sections.judging import EndpointJudgeSettings
from dt2it_pipeline.engines.jobs import Job, Reporter, Summary
from dt2it_pipeline.engines.vllm_engine import SamplingEngine, VllmEngine
from dt2it_pipeline.judges.ask import require_usable
from dt2it_pipeline.judges.factory import make_judge
from dt2it_pipeline.judges.likelihood.model import LikelihoodModel
from dt2it_pipeline.judges.pair_judges import AnswerJudge, LikelihoodJudge, PairJudge, Prompts, Weigher
from dt2it_pipeline.judges.pairwise_votes import NoVerdict, PairVerdict, PairwiseVotes
from dt2it_pipeline.judges.protocol import NoUsableReply
from dt2it_pipeline.judges.reply_cache import ReplyCache
from dt2it_pipeline.observe.progress import Progress
from dt2it_pipeline.storage import atomic, content_ids, records, schemas

STAGE = "annotate"
ORDERS = ("forward", "reversed")
ALONE = "alone"  # in place of an order, where a judge sees each response by itself
_CALLS = "calls.json"  # of a shard, beside its votes
_FEW = 3  # pairs; a judge that has no reply to fewer may be right about them, and the run goes on

Row = dict[str, Any]
MakeWeigher = Callable[[PairJudgeSettings, int], Weigher]
MakeEngine = Callable[[PairJudgeSettings, int], SamplingEngine]


class AnnotateJob(Job):
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

    pairs: Path
    prompts: Path
    media_root: Path
    output: Path
    work: Path
    cache: Path | None = None
    settings: AnnotationSettings
    seed: int


def run(
    job: AnnotateJob,
    report: Reporter,
    make_weigher: MakeWeigher | None = None,
    make_engine: MakeEngine | None = None,
) -> Summary:
    """Let every judge vote on every pair; writes a votes table and, beside it, `<stem>.quarantine.parquet`.

    A pair that a judge cannot judge (no prompt, an unreadable image, a likelihood that is not a number) gets the
    verdict null from that judge, and a quarantine row `<pair_id>/<judge>` with the reason. Finished shards in the work
    folder are not judged again; the same job gives the same bytes.

    Args:
        job: what to vote on, and by whom.
        report: called after each shard with how many of the pairs a judge has seen.
        make_weigher: builds a likelihood judge's model from its settings and the batch size; transformers when None.
        make_engine: builds an answering judge's engine from its settings and the most images in one prompt; vLLM
            when None.

    Returns:
        pairs, votes, calls (what judges were asked: verdicts from kept answers are free), unusable (verdicts that are
        null), seconds, pairs_per_second, per judge a count of verdicts, and
        in `asked` what asking came to in this run, per judge that writes: the questions `asked` and those `looked_up`
        among kept replies, and of one asked about responses calls, tokens and cost.

    Raises:
        LikelihoodError, EngineError, JudgeError: a judge's model cannot be loaded, or its key is not set.
        JudgeStopped: an endpoint gives no answers any more; what it has answered is kept.
        NoUsableReply: a judge that writes voted on no pair of three or more.
    """
    settings, work, output = job.settings, job.work, job.output
    pairs = atomic.read_parquet(job.pairs, "pairs").to_pylist()
    rows = {row["prompt_id"]: row for row in atomic.read_parquet(job.prompts, "prompts").to_pylist()}
    prompts = Prompts(rows, job.media_root, job.seed)
    starts = range(0, len(pairs), settings.batch_pairs)
    replies = ReplyCache(job.cache)
    asked: dict[str, dict[str, Any]] = {}
    judged, seconds = 0, 0.0
    for place, judge in enumerate(settings.judges):
        todo = [start for start in starts if not _folder(work, judge, start).is_dir()]
        if not todo:
            continue
        order = ALONE if isinstance(judge, PairJudgeSettings) else ORDERS[place % 2]
        left = sum(len(pairs[start : start + settings.batch_pairs]) for start in todo)
        progress = Progress(report, "pairs", len(pairs), first=len(pairs) - left)
        built = _built(judge, prompts, order, replies, 2 * settings.batch_pairs, make_weigher, make_engine)
        for start in todo:
            started = time.monotonic()
            shard, before = pairs[start : start + settings.batch_pairs], built.calls
            votes, aside = _votes(shard, built.verdicts(shard), judge.name, order)
            with atomic.atomic_directory(_folder(work, judge, start)) as folder:
                atomic.write_parquet(schemas.table(votes, "votes"), folder / "votes.parquet")
                atomic.write_parquet(schemas.table(aside, "quarantine"), folder / "quarantine.parquet")
                atomic.write_json_atomic(built.calls - before, folder / _CALLS)
            judged, seconds = judged + len(shard), seconds + time.monotonic() - started
            if isinstance(built, PairwiseVotes):
                _require_votes(built, work, judge, starts)
            progress.add(len(shard), judge=judge.name)
        if isinstance(built, PairwiseVotes):
            prices = (judge.input_price, judge.output_price) if isinstance(judge, EndpointJudgeSettings) else ()
            asked[judge.name] = built.tally.metadata(*prices)
        elif isinstance(built, AnswerJudge):
            asked[judge.name] = {"asked": built.asked, "looked_up": built.looked_up}
    folders = [_folder(work, judge, start) for judge in settings.judges for start in starts]
    votes_table = _joined(folders, "votes")
    atomic.write_parquet(_joined(folders, "quarantine"), output.with_name(f"{output.stem}.quarantine.parquet"))
    atomic.write_parquet(votes_table, output)
    counts = votes_table.group_by(["judge", "verdict"]).aggregate([([], "count_all")]).to_pylist()
    verdicts = {f"{row['judge']}: {row['verdict'] or 'unusable'}": row["count_all"] for row in counts}
    return {
        "pairs": len(pairs),
        "votes": votes_table.num_rows,
        "calls": sum(json.loads((folder / _CALLS).read_text()) for folder in folders),
        "unusable": votes_table.column("verdict").null_count,
        "verdicts": dict(sorted(verdicts.items())),
        "asked": asked,
        "seconds": round(seconds, 2),
        "pairs_per_second": round(judged / seconds, 2) if seconds else 0.0,
    }


def _require_votes(built: PairwiseVotes, work: Path, judge: AnnotatorChoice, starts: Sequence[int]) -> None:
    """Raise NoUsableReply where a judge voted on none of its pairs so far. The next run asks about them again."""
    if built.tally.judged:
        return
    folders = [_folder(work, judge, start) for start in starts]
    verdicts = _joined([folder for folder in folders if folder.is_dir()], "votes").column("verdict")
    if len(verdicts) < _FEW or verdicts.null_count < len(verdicts):
        return
    try:
        require_usable(built.judge, built.tally)
    except NoUsableReply:
        shutil.rmtree(folders[0].parent)
        raise


def _built(
    judge: AnnotatorChoice,
    prompts: Prompts,
    order: str,
    replies: ReplyCache,
    batch: int,
    make_weigher: MakeWeigher | None,
    make_engine: MakeEngine | None,
) -> PairJudge:
    """The judge that settings describe, its model loaded."""
    if not isinstance(judge, PairJudgeSettings):
        return PairwiseVotes(make_judge(judge, prompts.rows.values(), prompts.media_root), prompts.rows, order, replies)
    if judge.kind == "likelihood":
        return LikelihoodJudge(judge, (make_weigher or _transformers)(judge, batch), prompts)
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


def _transformers(judge: PairJudgeSettings, batch: int) -> Weigher:
    return _loaded(judge.model, batch)


@lru_cache(maxsize=1)  # judges that differ in their words alone share a model, and what its vision encoder has seen
def _loaded(model: str, batch: int) -> LikelihoodModel:
    return LikelihoodModel(model, batch)


def _vllm(judge: PairJudgeSettings, most_images: int) -> SamplingEngine:
    return _started(judge.model, judge.max_model_len, most_images)


@lru_cache(maxsize=1)  # as above
def _started(model: str, max_model_len: int, most_images: int) -> VllmEngine:
    return VllmEngine(model, max_model_len, max_images=max(most_images, 1))


def _joined(folders: Sequence[Path], kind: str) -> pa.Table:
    tables = [atomic.read_parquet(folder / f"{kind}.parquet", kind) for folder in folders]
    return pa.concat_tables([schemas.table([], kind), *tables]).combine_chunks()


def _folder(work: Path, judge: AnnotatorChoice, start: int) -> Path:
    return work / content_ids.content_hash(judge.model_dump(mode="json"))[:12] / f"{start:09d}"
