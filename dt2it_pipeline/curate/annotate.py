"""Step 3 of curation: judges vote on every contested pair (DT2IT-MRM, part 3; `steps.resolve_annotations` counts).

Each judge gives one verdict per pair. The judges here weigh likelihoods (`likelihood.py`): they see both responses
alone, so the order of presentation is nominal; it is recorded as forward for the first judge, reversed for the next, in
turn, which is the order that a pairwise judge in that place would be shown.

Run as `python -m dt2it_pipeline.curate.annotate job.json`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
from PIL import Image

from dt2it_pipeline import records, store
from dt2it_pipeline.curate.likelihood import LikelihoodModel, Question
from dt2it_pipeline.engines import jobs
from dt2it_pipeline.engines.chat import ChatError, ChatPrompt, chat_prompt
from dt2it_pipeline.recipe import AnnotationSettings, JudgeSettings

STAGE = "annotate"
ORDERS = ("forward", "reversed")
_GREY = (128, 128, 128)

Row = dict[str, Any]
_Lent = tuple[frozenset[str], tuple[Image.Image, ...]]  # content hashes of pictures, and the pictures
Report = Callable[[Mapping[str, Any]], None]


class Weigher(Protocol):
    """What a likelihood judge asks of its model."""

    def evidence(self, questions: Sequence[Question]) -> list[list[float]]:
        """Evidence in nats of each response of each question."""
        ...


MakeWeigher = Callable[[JudgeSettings, int], Weigher]


def run(job: dict[str, Any], report: Report, make_weigher: MakeWeigher | None = None) -> dict[str, Any]:
    """Let every judge vote on every pair; writes a votes table and, beside it, `<stem>.set_aside.parquet`.

    A pair that a judge cannot weigh (no prompt, an unreadable picture, a likelihood that is not a number) gets the
    verdict null from that judge, and a set_aside row `<pair_id>/<judge>` with the reason. Finished shards in the work
    folder are not judged again; the same job gives the same bytes.

    Args:
        job: pairs, prompts (Parquet), media_root, output (Parquet), work (folder), settings (AnnotationSettings), seed.
        report: called after each shard with judge, pairs and pairs_per_second.
        make_weigher: builds a judge's model from its settings and the batch size; transformers when None.

    Returns:
        pairs, votes, unusable (verdicts that are null), seconds, pairs_per_second, and per judge a count of verdicts.

    Raises:
        LikelihoodError: a judge's model cannot be loaded.
    """
    settings = AnnotationSettings.model_validate(job["settings"])
    pairs = store.read_parquet(job["pairs"], "pairs").to_pylist()
    prompts = {row["prompt_id"]: row for row in store.read_parquet(job["prompts"], "prompts").to_pylist()}
    work, output, media_root = Path(job["work"]), Path(job["output"]), Path(job["media_root"])
    starts = range(0, len(pairs), settings.batch_pairs)
    judged, seconds = 0, 0.0
    for place, judge in enumerate(settings.judges):
        todo = [start for start in starts if not _folder(work, judge, start).is_dir()]
        if not todo:
            continue
        weigher = (make_weigher or _transformers)(judge, 2 * settings.batch_pairs)
        pool = _pool(prompts, media_root, judge, job["seed"])
        for start in todo:
            started = time.monotonic()
            shard = pairs[start : start + settings.batch_pairs]
            votes, aside = _judge(shard, prompts, media_root, judge, ORDERS[place % 2], weigher, pool)
            with store.atomic_directory(_folder(work, judge, start)) as folder:
                store.write_parquet(records.table(votes, "votes"), folder / "votes.parquet")
                store.write_parquet(records.table(aside, "set_aside"), folder / "set_aside.parquet")
            judged, seconds = judged + len(shard), seconds + time.monotonic() - started
            report({"judge": judge.name, "pairs": start + len(shard), "pairs_per_second": judged / max(seconds, 1e-9)})
    folders = [_folder(work, judge, start) for judge in settings.judges for start in starts]
    votes_table = _joined(folders, "votes")
    store.write_parquet(_joined(folders, "set_aside"), output.with_name(f"{output.stem}.set_aside.parquet"))
    store.write_parquet(votes_table, output)
    counts = votes_table.group_by(["judge", "verdict"]).aggregate([([], "count_all")]).to_pylist()
    verdicts = {f"{row['judge']}: {row['verdict'] or 'unusable'}": row["count_all"] for row in counts}
    return {
        "pairs": len(pairs),
        "votes": votes_table.num_rows,
        "unusable": votes_table.column("verdict").null_count,
        "verdicts": dict(sorted(verdicts.items())),
        "seconds": round(seconds, 2),
        "pairs_per_second": round(judged / seconds, 2) if seconds else 0.0,
    }


def _judge(
    shard: Sequence[Row],
    prompts: Mapping[str, Row],
    media_root: Path,
    judge: JudgeSettings,
    order: str,
    weigher: Weigher,
    pool: Mapping[int, Sequence[_Lent]],
) -> tuple[list[Row], list[dict[str, str]]]:
    """One judge's votes on one shard, a row per pair, and why some of them are null."""
    questions: dict[str, Question] = {}
    faults: dict[str, tuple[str, str]] = {}
    for pair in shard:
        row = prompts.get(pair["prompt_id"])
        if row is None:
            faults[pair["pair_id"]] = ("unknown prompt", pair["prompt_id"])
            continue
        try:
            prompt = chat_prompt(row, media_root, suffix=judge.prompt)
            baselines = _baselines(prompt, row, pool, judge)
            questions[pair["pair_id"]] = Question(prompt, baselines, (pair["chosen"], pair["rejected"]))
        except ChatError as error:
            faults[pair["pair_id"]] = (error.reason, error.detail)
    evidence = dict(zip(questions, weigher.evidence(list(questions.values())), strict=True))
    votes: list[Row] = []
    aside: list[dict[str, str]] = []
    for pair in shard:
        key = pair["pair_id"]
        verdict = _verdict(evidence[key], judge.tie_margin) if key in evidence else None
        if verdict is None:
            reason, detail = faults.get(key, ("likelihood is not a number", str(evidence.get(key))))
            aside.append(records.set_aside_row(f"{key}/{judge.name}", STAGE, reason, detail, pair["source"]))
        votes.append({"pair_id": key, "judge": judge.name, "order": order, "verdict": verdict})
    return votes, aside


def _verdict(evidence: Sequence[float], tie_margin: float) -> str | None:
    difference = evidence[0] - evidence[1]
    if not math.isfinite(difference):
        return None
    if abs(difference) <= tie_margin:
        return "tie"
    return "chosen" if difference > 0 else "rejected"


def _pool(prompts: Mapping[str, Row], media_root: Path, judge: JudgeSettings, seed: int) -> dict[int, list[_Lent]]:
    """Pictures to measure against, by the number of pictures in a prompt: readable ones, all different, drawn by seed.

    The same few serve every prompt, so that the model encodes them once; one more than asked for, because a prompt is
    never measured against its own picture.
    """
    pool: dict[int, list[_Lent]] = {}
    if judge.baseline == "blank":
        return pool
    for key in sorted(prompts, key=lambda key: records.content_hash(seed, judge.name, key)):
        row = prompts[key]
        hashes = frozenset(medium["sha256"] for medium in row["media"])
        lent = pool.setdefault(len(row["media"]), [])
        if not hashes or len(lent) > judge.baselines or any(hashes & other for other, _ in lent):
            continue
        try:
            lent.append((hashes, chat_prompt(row, media_root).images))
        except ChatError:
            continue  # it is reported under its own pairs
    return pool


def _baselines(
    prompt: ChatPrompt, row: Row, pool: Mapping[int, Sequence[_Lent]], judge: JudgeSettings
) -> tuple[tuple[Image.Image, ...], ...]:
    """The pictures to measure one prompt against: a grey set, or sets of other prompts.

    Raises:
        ChatError: the prompt has no picture, so there is nothing to measure; or no other picture can be found.
    """
    if not prompt.images:
        raise ChatError("prompt without a picture", "a likelihood judge measures what the picture adds")
    if judge.baseline == "blank":
        return (tuple(Image.new("RGB", image.size, _GREY) for image in prompt.images),)
    own = {medium["sha256"] for medium in row["media"]}
    found = [images for hashes, images in pool.get(len(prompt.images), ()) if not hashes & own]
    if not found:
        raise ChatError("no other picture to measure against", f"{len(prompt.images)} pictures in the prompt")
    return tuple(found[: judge.baselines])


def _transformers(judge: JudgeSettings, batch: int) -> Weigher:
    return _loaded(judge.model, batch)


@lru_cache(maxsize=1)  # judges that differ in their words alone share a model, and what its tower has seen
def _loaded(model: str, batch: int) -> LikelihoodModel:
    return LikelihoodModel(model, batch)


def _joined(folders: Sequence[Path], kind: str) -> pa.Table:
    tables = [store.read_parquet(folder / f"{kind}.parquet", kind) for folder in folders]
    return pa.concat_tables([records.table([], kind), *tables]).combine_chunks()


def _folder(work: Path, judge: JudgeSettings, start: int) -> Path:
    return work / records.content_hash(judge.model_dump(mode="json"))[:12] / f"{start:09d}"


if __name__ == "__main__":
    jobs.main(run)
