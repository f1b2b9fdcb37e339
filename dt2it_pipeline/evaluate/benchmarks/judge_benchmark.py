"""Benchmarks a judge of pairs on published rows: a model that writes its verdict, or whose likelihoods are read.

A judge that is asked in words sees every pair in both orders of presentation. A pair is right where both verdicts name
the better side; verdicts that differ are a tie, which counts as wrong, as it does for a reward model. A pair that lacks
a usable verdict in one order is unscored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from dt2it_pipeline.config.base import fault_message
from dt2it_pipeline.config.paths import model_path
from dt2it_pipeline.config.sections.annotation import AnnotationSettings, AnnotatorChoice, PairJudgeSettings
from dt2it_pipeline.config.strict_yaml import load_yaml
from dt2it_pipeline.curate.annotation import annotate
from dt2it_pipeline.engines.jobs import Reporter, print_progress
from dt2it_pipeline.evaluate.benchmarks.metrics import BenchmarkResult, score_benchmark
from dt2it_pipeline.evaluate.benchmarks.rows import BenchmarkRows, published_rows
from dt2it_pipeline.evaluate.benchmarks.spec import BenchmarkError, get_entry
from dt2it_pipeline.judges.pairwise_votes import CHOSEN, ORDERS, REJECTED, TIE
from dt2it_pipeline.storage import atomic, content_ids, records, schemas

_BATCH = 16  # pairs per shard: what a killed run asks again at most, where replies are not kept


@dataclass(frozen=True)
class JudgeBenchmark:
    """What a judge reaches on a benchmark.

    Attributes:
        result: the benchmark's figures, from both orders.
        quarantine: rows that could not be used, and verdicts that could not.
        orders: accuracy by order of presentation, over the pairs with a verdict in it; a judge that sees each answer
            alone has `alone` only.
        consistency: share of the pairs with two verdicts on which both agree; None for such a judge.
        compared: pairs with two verdicts.
    """

    result: BenchmarkResult
    quarantine: pa.Table
    orders: Mapping[str, float]
    consistency: float | None
    compared: int


def load_judge(path: Path) -> AnnotatorChoice:
    """A judge from a YAML file that holds what an entry of `annotation.judges` does in a recipe.

    Raises BenchmarkError naming the file and what is wrong in it.
    """
    try:
        settings = AnnotationSettings.model_validate({"judges": [load_yaml(path.read_text(encoding="utf-8"))]})
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BenchmarkError(f"cannot read the judge {path}: {error}") from error
    except ValidationError as error:
        faults = "; ".join(filter(None, map(_fault, error.errors())))
        raise BenchmarkError(f"{path} describes no judge: {faults}") from None
    judge = settings.judges[0]
    if isinstance(judge, PairJudgeSettings):
        return judge.model_copy(update={"model": str(model_path(judge.model))})
    return judge


def _fault(found: ErrorDetails) -> str:
    """What is wrong in the file of a judge; empty for what follows from another fault."""
    if found["type"] == "union_tag_invalid" and not isinstance(found["input"], dict):
        return "the file holds no settings (kind, name and those of the kind)"
    if found["type"] == "union_tag_invalid":
        return f"kind: {found['ctx']['tag']!r} is none of {found['ctx']['expected_tags']}"
    place = found["loc"][3:] or found["loc"][2:]
    return f"{'.'.join(map(str, place))}: {fault_message(found)}" if place else ""


def benchmark_judge(
    judge: AnnotatorChoice,
    name: str,
    rows: Path,
    media: Path,
    output: Path,
    *,
    columns: Mapping[str, str] | None = None,
    seed: int = 0,
    processes: int = 1,
    report: Reporter = print_progress,
) -> JudgeBenchmark:
    """Ask a judge about a benchmark's published pairs and compute the authors' figures.

    Args:
        judge: as in `annotation.judges`; see `load_judge`.
        name: of an entry in configs/benchmarks.
        rows: file of published rows.
        media: folder that no media path may leave.
        output: folder for replies and verdicts, from which a killed run goes on.
        columns: field of the entry -> column, where the rows call it otherwise.
        seed: of the images that likelihood judges compare with.
        processes: how many hold a model that is loaded here, and share the pairs.
        report: is called with how many of the pairs the judge has seen.

    Raises:
        BenchmarkError: the rows are not those of the benchmark.
        JudgeError, JudgeStopped, LikelihoodError, EngineError: the judge cannot be asked, or no more.
        NoUsableReply: none of its replies could be used.
    """
    entry = get_entry(name).with_columns(columns or {})
    published, loaded = published_rows(entry, rows, media, output / "media")
    pairs, keys = _pairs(loaded, entry.name)
    judges = (judge, judge.model_copy(update={"name": f"{judge.name} (reversed)"}))[: 1 + _sees_both(judge)]
    described = [one.model_dump(mode="json") for one in judges]
    folder = output / f"{entry.name}-{content_ids.content_hash(described, seed, sorted(pairs))[:12]}"
    atomic.write_parquet(schemas.table(list(pairs.values()), "pairs"), folder / "pairs.parquet")
    atomic.write_parquet(loaded.prompts, folder / "prompts.parquet")
    annotate.run(
        annotate.AnnotateJob(
            pairs=folder / "pairs.parquet",
            prompts=folder / "prompts.parquet",
            media_root=output / "media",
            output=folder / "votes.parquet",
            work=folder / "work",
            cache=folder / "replies.sqlite",
            settings=AnnotationSettings(judges=judges, batch_pairs=_BATCH),
            seed=seed,
            processes=processes,
        ),
        report,
    )
    votes = atomic.read_parquet(folder / "votes.parquet", "votes").to_pylist()
    aside = atomic.read_parquet(folder / "votes.quarantine.parquet", "quarantine")
    given: dict[str, dict[str, str]] = {}
    for vote in votes:
        if vote["verdict"] is not None:
            given.setdefault(vote["pair_id"], {})[vote["order"]] = vote["verdict"]
    found = [_turned(given.get(key, {}), turned) for key, turned in keys]
    scores = ([_score(verdicts, side, len(judges)) for verdicts in found] for side in (CHOSEN, REJECTED))
    twice = [verdicts for verdicts in found if len(verdicts) == len(ORDERS)]
    return JudgeBenchmark(
        score_benchmark(entry.name, published, *scores, columns=columns),
        pa.concat_tables([loaded.quarantine, aside]),
        {order: _accuracy(found, order) for order in (ORDERS if len(judges) > 1 else (annotate.ALONE,))},
        sum(len({*v.values()}) == 1 for v in twice) / len(twice) if twice else None,
        len(twice),
    )


def _sees_both(judge: AnnotatorChoice) -> bool:
    """Whether a judge sees both answers at once, so that their order may matter."""
    return not isinstance(judge, PairJudgeSettings)


def _pairs(loaded: BenchmarkRows, source: str) -> tuple[dict[str, dict[str, Any]], list[tuple[str, bool]]]:
    """Pairs by id, each once; for every row its pair ("" for none), and whether the row prefers the other side."""
    responses = {row["response_id"]: row for row in loaded.responses.to_pylist()}
    pairs: dict[str, dict[str, Any]] = {}
    keys: list[tuple[str, bool]] = []
    for chosen, rejected in zip(loaded.chosen, loaded.rejected, strict=True):
        if chosen is None or rejected is None or chosen == rejected:
            keys.append(("", False))
            continue
        one, other = responses[chosen], responses[rejected]
        pair = records.make_pair(one["prompt_id"], one["text"], other["text"], source=source)
        known = pairs.setdefault(pair["pair_id"], pair)
        keys.append((pair["pair_id"], known["chosen_id"] != pair["chosen_id"]))
    return pairs, keys


def _turned(verdicts: Mapping[str, str], turned: bool) -> Mapping[str, str]:
    """Verdicts on a pair as one of its rows has it: two rows may prefer its sides both ways."""
    other = {CHOSEN: REJECTED, REJECTED: CHOSEN}
    return {order: other.get(verdict, verdict) for order, verdict in verdicts.items()} if turned else verdicts


def _score(verdicts: Mapping[str, str], side: str, orders: int) -> float | None:
    """1 for the side that every verdict prefers, 0 for the other; 0.5 for both where they differ or are ties.

    None where there is not a usable verdict in every order.
    """
    if len(verdicts) < orders:
        return None
    named = set(verdicts.values())
    return 0.5 if len(named) > 1 or TIE in named else float(side in named)


def _accuracy(found: Sequence[Mapping[str, str]], order: str) -> float:
    given = [verdicts[order] for verdicts in found if order in verdicts]
    return sum(verdict == CHOSEN for verdict in given) / len(given) if given else 0.0
