"""Benchmark figures from scores, as the benchmarks' authors compute them (DT2IT-MRM, arXiv 2604.19544).

A model answers a pair when it scores the chosen side above the rejected one. A tie is wrong. So is a pair that could
not be scored: a model must not gain by failing on what is hard for it. Both are counted beside the accuracy.

`score_benchmark` takes the published rows of a benchmark that configs/benchmarks describes; `score_items` takes the
pipeline's own tables, of any benchmark. Both judge a pair in `outcomes_of`, and both compute in measure.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd

from dt2it_pipeline.evaluate.benchmarks.bootstrap import REPEATS, Figure, Measured, combine, measure
from dt2it_pipeline.evaluate.benchmarks.spec import RESERVED, SAME, BenchmarkError, Entry, find_entry, get_entry, plain
from dt2it_pipeline.storage import content_ids, schemas

OVERALL = "overall"  # group: all items of a benchmark, pooled
MACRO = "macro mean"  # group: mean of the benchmark's group accuracies
ALL = "all benchmarks"  # benchmark: OVERALL pools all items, MACRO is the mean of the benchmarks' overall accuracies

COLUMNS = ["model", "benchmark", "group", "pairs", "correct", "ties", "unscored", "accuracy"]
_COUNTS = ["pairs", "correct", "ties", "unscored"]
CORRECT, WRONG, TIE, UNSCORED = "correct", "wrong", "tie", "unscored"


class BenchmarkResult(Mapping[str, float]):
    """What one model scores on one benchmark: a mapping from a figure's name to its share (0 to 1).

    Names are `overall` (also `acc`), `macro`, `acc_plus`, the groups, their parts and unions, and
    `overall_without_...`, as the benchmark's entry has them; case and punctuation do not matter (`Acc+`).

    Attributes:
        name, version, entry_hash: the benchmark's entry.
        figures: value, interval and count of each figure by name.
        pairs, correct, ties, unscored: counts over all pairs.
        results: one row per pair, in the order given: item_id, item_key, group, chosen_score, rejected_score, outcome.
        measured: what `combine` needs to pool several benchmarks.
    """

    def __init__(self, entry: Entry, measured: Measured, results: pd.DataFrame) -> None:
        self.name, self.version, self.entry_hash = entry.name, entry.version, entry.hash
        self.figures: Mapping[str, Figure] = measured.figures
        self.measured, self.results = measured, results
        self.group_names = sorted(set(results["group"]))
        counts = results["outcome"].value_counts()
        self.pairs = len(results)
        self.correct, self.ties, self.unscored = (int(counts.get(name, 0)) for name in (CORRECT, TIE, UNSCORED))

    def __getitem__(self, name: str) -> float:
        if name in self.figures:
            return self.figures[name].value
        return self.figures[SAME.get(plain(name), plain(name))].value

    def __iter__(self) -> Iterator[str]:
        return iter(self.figures)

    def __len__(self) -> int:
        return len(self.figures)

    def __repr__(self) -> str:
        figures = ", ".join(f"{name}={figure.value:.4f}" for name, figure in self.figures.items())
        return f"BenchmarkResult({self.name} v{self.version}: {figures}; {self.ties} ties, {self.unscored} unscored)"

    @property
    def overall(self) -> float:
        """Right pairs / pairs."""
        return self[OVERALL]

    @property
    def macro(self) -> float:
        """Mean of the groups' accuracies; NaN where there is one group alone."""
        return self["macro"] if "macro" in self.figures else math.nan

    @property
    def acc(self) -> float:
        """The same as `overall`, by the name that goes with Acc+."""
        return self.overall

    @property
    def acc_plus(self) -> float:
        """Ids all of whose pairs are right / ids; NaN where the benchmark has no Acc+."""
        return self["acc_plus"] if "acc_plus" in self.figures else math.nan

    @property
    def groups(self) -> dict[str, float]:
        """Accuracy by group."""
        return {name: self[name] for name in self.group_names}

    @property
    def table(self) -> pd.DataFrame:
        """The figures as rows: figure, value, low, high, count."""
        return pd.DataFrame(
            [(f.name, f.value, f.low, f.high, f.count) for f in self.figures.values()],
            columns=["figure", "value", "low", "high", "count"],
        )


@dataclass(frozen=True)
class ItemScores:
    """Results of models on the pipeline's benchmark items, as tables of the kinds of their names."""

    benchmark_scores: pd.DataFrame
    benchmark_figures: pd.DataFrame
    benchmark_results: pd.DataFrame


def score_benchmark(
    name: str,
    rows: Sequence[Mapping[str, Any]] | pd.DataFrame,
    chosen_scores: Sequence[float | None] | np.ndarray,
    rejected_scores: Sequence[float | None] | np.ndarray,
    *,
    columns: Mapping[str, str] | None = None,
    repeats: int = REPEATS,
    seed: int = 0,
) -> BenchmarkResult:
    """The authors' figures of a benchmark from a model's scores. Pure: nothing is read but the benchmark's entry.

    A pair is right when its chosen side scores higher; ties and pairs without a score count as wrong. Intervals are 95%
    bootstrap intervals over pairs, or over ids where the benchmark has Acc+ (arXiv 2604.19544).

    Examples:
        >>> from dt2it_pipeline import score_benchmark
        >>> rows = [
        ...     {"id": "mathverse_1", "query": "2 + 2?", "response": ["4", "5"], "human_ranking": [0, 1]},
        ...     {"id": "RLAIF-V-2", "query": "Who is it?", "response": ["A cat.", "A dog."], "human_ranking": [0, 1]},
        ... ]
        >>> found = score_benchmark("vl_rewardbench", rows, [1.5, -0.5], [0.5, 0.25])
        >>> found.overall, found.groups
        (0.5, {'hallucination': 0.0, 'reasoning': 1.0})

    Args:
        name: name or alias of an entry in configs/benchmarks, in any spelling (VL-RewardBench, vl_reward_bench).
        rows: the published rows, in their published columns.
        chosen_scores: [rows], score of the side that the row says is better; None or NaN where there is none.
        rejected_scores: [rows], of the other side.
        columns: field of the entry -> column, where the rows call it otherwise.
        repeats: bootstrap resamples for the intervals; 0 for none.
        seed: of the bootstrap.

    Returns:
        Every figure of the benchmark as a share, 0 to 1, by name, with its interval; and one row per pair.

    Raises:
        BenchmarkError: no such benchmark, the numbers of rows and scores differ, a row fits no group, or has no
            usable id by which Acc+ goes.
    """
    entry = get_entry(name).with_columns(columns or {})
    listed: list[Any] = rows.to_dict("records") if isinstance(rows, pd.DataFrame) else list(rows)
    chosen, rejected = _floats(chosen_scores, "chosen_scores"), _floats(rejected_scores, "rejected_scores")
    if not len(listed) == len(chosen) == len(rejected):
        raise BenchmarkError(
            f"{entry.name}: {len(listed)} rows, {len(chosen)} chosen and {len(rejected)} rejected scores; give one of "
            "each per row"
        )
    fields = [entry.read(row) for row in listed]
    group = [entry.group_of(row, place) for place, row in enumerate(listed)]
    part = [next(iter(entry.parts_of(row, own)), "") for row, own in zip(listed, group, strict=True)]
    unit: list[object] = list(range(len(listed)))
    if entry.all_right_by is not None:
        unit = [field[entry.all_right_by] for field in fields]
        wrong = next((place for place, value in enumerate(unit) if not isinstance(value, str | Real)), None)
        if wrong is not None:
            named = "/".join(entry.fields[entry.all_right_by])
            found = "no" if unit[wrong] is None else f"{str(unit[wrong])[:80]!r} is no usable"
            raise BenchmarkError(f"{entry.name}, row {wrong}: {found} {named}, by which Acc+ goes")
    outcome = outcomes_of(chosen, rejected)
    items = pd.DataFrame(
        {
            "item_id": [_written(field.get("id", "")) for field in fields],
            "item_key": [item_key(field) for field in fields],
            "group": group,
            "chosen_score": chosen,
            "rejected_score": rejected,
            "outcome": outcome,
        }
    )
    return BenchmarkResult(
        entry, measure(entry, outcome == CORRECT, group, part, unit, repeats=repeats, seed=seed), items
    )


def score_items(
    items: pd.DataFrame,
    scores: pd.DataFrame,
    model: str | None = None,
    *,
    repeats: int = REPEATS,
    seed: int = 0,
) -> ItemScores:
    """Figures of every voter in `scores` on the pipeline's own benchmark items.

    Args:
        items: item_id, benchmark, group, chosen_id, rejected_id, and pair_id and prompt_id where there are some (table
            kind `benchmark_items`). One item_id may cover several pairs; every row is one pair.
        scores: response_id, voter, score (table kind `scores`).
        model: name for the result when `scores` holds one voter (or none, when every item failed); by default the
            voter's own name.
        repeats: bootstrap resamples for the intervals of `benchmark_figures`; 0 for none.
        seed: of the bootstrap.

    Returns:
        `benchmark_scores`, sorted by model and benchmark: its groups in name order, then `overall` and, where there is
        more than one group, `macro mean`; with several benchmarks also `all benchmarks`. `accuracy` is correct / pairs
        as a share, NaN where there are no pairs. `benchmark_figures` has every figure of the benchmark's entry (groups,
        overall and macro where there is no entry) with its interval, and both overalls of several benchmarks.
        `benchmark_results` has one row per pair.

    Raises:
        BenchmarkError: a column is missing, a group has a reserved name, or one response has two scores by one voter.
    """
    _check(items, ("item_id", "benchmark", "group", "chosen_id", "rejected_id"), "benchmark items")
    _check(scores, ("response_id", "voter", "score"), "scores")
    reserved = sorted({MACRO, *RESERVED} & set(items["group"])) + sorted({ALL} & set(items["benchmark"]))
    if reserved:
        raise BenchmarkError(f"benchmark items use the reserved names {reserved}")
    voters = sorted(scores["voter"].unique())
    if model is not None and len(voters) > 1:
        raise BenchmarkError(f"scores hold {len(voters)} voters {voters}, so one model name {model!r} cannot fit")
    results, figures = [], []
    for voter in voters or ([] if model is None else [model]):
        name = str(voter) if model is None else model
        own = _results(items, scores[scores["voter"] == voter], name)
        results.append(own)
        figures += _figures(own, name, repeats, seed)
    table = pd.concat(results, ignore_index=True) if results else pd.DataFrame(columns=[*_names("benchmark_results")])
    parts = [_summaries(own) for own in results if len(own)]
    rows = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=COLUMNS)
    return ItemScores(
        rows[COLUMNS].astype({name: "int64" for name in _COUNTS} | {"accuracy": "float64"}),
        pd.DataFrame(figures, columns=_names("benchmark_figures")),
        table[_names("benchmark_results")],
    )


def outcomes_of(chosen: np.ndarray, rejected: np.ndarray) -> np.ndarray:
    """What became of each pair: correct, wrong, tie, or unscored where a score is missing or no finite number."""
    scored = np.isfinite(chosen) & np.isfinite(rejected)
    with np.errstate(invalid="ignore"):
        right, tie = scored & (chosen > rejected), scored & (chosen == rejected)
    return np.select([right, tie, scored], [CORRECT, TIE, WRONG], UNSCORED).astype(object)


def item_key(fields: Mapping[str, Any]) -> str:
    """Content hash of a published row's texts and ids: some benchmarks use an id twice."""
    kept = {
        name: value if isinstance(value, str | int | float | bool | None) else str(value)
        for name, value in fields.items()
        if isinstance(value, str) or name not in ("image", "video")
    }
    return content_ids.content_hash("item", kept)


def combined(results: Iterable[BenchmarkResult]) -> dict[str, Figure]:
    """Both overalls of several benchmarks: `pooled` over all pairs, `mean` of the benchmarks' accuracies."""
    return combine([result.measured for result in results])


def wilson_interval(correct: int, pairs: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of an accuracy as two shares; (nan, nan) without pairs. 95% at the default z."""
    if pairs <= 0:
        return math.nan, math.nan
    share = correct / pairs
    spread = z * math.sqrt(share * (1 - share) / pairs + z * z / (4 * pairs * pairs))
    scale = 1 + z * z / pairs
    centre = share + z * z / (2 * pairs)
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def _results(items: pd.DataFrame, scores: pd.DataFrame, model: str) -> pd.DataFrame:
    """One row per pair, with both scores of one voter and the outcome."""
    unique = scores.drop_duplicates(["response_id", "score"])
    if unique["response_id"].duplicated().any():
        example = unique.loc[unique["response_id"].duplicated(), "response_id"].iloc[0]
        raise BenchmarkError(f"model {model!r} gives response {example!r} two different scores")
    lookup = unique.set_index("response_id")["score"].astype("float64")
    made = items[["item_id", "benchmark", "group"]].reset_index(drop=True).assign(model=model)
    for name in ("pair_id", "prompt_id"):
        made[name] = items[name].to_numpy() if name in items else ""
    for side in ("chosen", "rejected"):
        made[f"{side}_score"] = lookup.reindex(items[f"{side}_id"]).to_numpy()
    made["outcome"] = outcomes_of(made["chosen_score"].to_numpy(), made["rejected_score"].to_numpy())
    return made


def _figures(results: pd.DataFrame, model: str, repeats: int, seed: int) -> list[tuple[Any, ...]]:
    """Rows of `benchmark_figures` of one model."""
    rows: list[tuple[Any, ...]] = []
    measured = []
    for benchmark, own in results.groupby("benchmark", sort=True):
        entry = find_entry(str(benchmark)) or Entry(name="unregistered")
        identified = [{column: item for column in entry.fields.get("id", ())} for item in own["item_id"]]
        part = [next(iter(entry.parts_of(row, g)), "") for row, g in zip(identified, own["group"], strict=True)]
        prompts = own["prompt_id"] if (own["prompt_id"] != "").all() else own.index
        cluster = own["item_id"] if entry.all_right_by is not None else prompts
        right = (own["outcome"] == CORRECT).to_numpy()
        found = measure(entry, right, list(own["group"]), part, list(cluster), repeats=repeats, seed=seed)
        measured.append(found)
        rows += [(model, str(benchmark), f.name, f.value, f.low, f.high, f.count) for f in found.figures.values()]
    if len(measured) > 1:
        rows += [(model, ALL, f.name, f.value, f.low, f.high, f.count) for f in combine(measured).values()]
    return rows


def _summaries(results: pd.DataFrame) -> pd.DataFrame:
    """Rows of `benchmark_scores` of one model."""
    outcome = results["outcome"]
    flags = {"pairs": 1, "correct": outcome == CORRECT, "ties": outcome == TIE, "unscored": outcome == UNSCORED}
    counted = results[["benchmark", "group"]].assign(**{k: np.asarray(v, dtype=int) * 1 for k, v in flags.items()})
    groups = counted.groupby(["benchmark", "group"], sort=True)[_COUNTS].sum().reset_index()
    groups["accuracy"] = groups["correct"] / groups["pairs"]
    parts = []
    overall = []
    for benchmark, own in groups.groupby("benchmark", sort=True):
        pooled = _summary(own, str(benchmark), OVERALL)
        overall.append(pooled)
        parts += [own, pooled]
        if len(own) > 1:
            parts.append(_summary(own, str(benchmark), MACRO))
    if len(overall) > 1:
        everything = pd.concat(overall, ignore_index=True)
        parts += [_summary(everything, ALL, OVERALL), _summary(everything, ALL, MACRO)]
    return pd.concat(parts, ignore_index=True).assign(model=results["model"].iloc[0])


def _summary(rows: pd.DataFrame, benchmark: str, group: str) -> pd.DataFrame:
    counts = rows[_COUNTS].sum()
    accuracy = rows["accuracy"].mean() if group == MACRO else counts["correct"] / counts["pairs"]
    return pd.DataFrame([{"benchmark": benchmark, "group": group, **counts.to_dict(), "accuracy": accuracy}])


def _names(kind: str) -> list[str]:
    return list(schemas.SCHEMAS[kind].names)


def _written(value: Any) -> str:
    """A published id as text that can be written; half of a character is spelled out."""
    return str(value).encode("utf-8", "backslashreplace").decode()


def _floats(values: Sequence[float | None] | np.ndarray, name: str) -> np.ndarray:
    try:
        found = np.asarray([math.nan if value is None else float(value) for value in values], dtype=float)
    except (TypeError, ValueError, OverflowError) as error:
        raise BenchmarkError(f"{name}: {error}; give one number per row") from None
    return found


def _check(frame: pd.DataFrame, columns: tuple[str, ...], name: str) -> None:
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise BenchmarkError(f"{name}: missing columns {missing}; it has {list(frame.columns)}")
