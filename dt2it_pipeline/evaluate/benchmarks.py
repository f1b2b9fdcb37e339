"""Benchmark accuracy from a table of items and a table of scores (DT2IT-MRM, arXiv:2604.19544).

A model answers an item when it scores the chosen side above the rejected one. A tie is wrong. So is an item that could
not be scored: a model must not gain by failing on what is hard for it. Both are counted beside the accuracy.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

OVERALL = "overall"  # group: all items of a benchmark, pooled
MACRO = "macro mean"  # group: mean of the benchmark's group accuracies
ALL = "all benchmarks"  # benchmark: OVERALL pools all items, MACRO is the mean of the benchmarks' overall accuracies

COLUMNS = ["model", "benchmark", "group", "pairs", "correct", "ties", "unscored", "accuracy"]
_COUNTS = ["pairs", "correct", "ties", "unscored"]


class EvaluationError(ValueError):
    """An evaluation table is malformed."""


def score_benchmark(items: pd.DataFrame, scores: pd.DataFrame, model: str | None = None) -> pd.DataFrame:
    """Accuracy per group, pooled and macro mean, of every voter in `scores`.

    Args:
        items: item_id, benchmark, group, chosen_id, rejected_id (table kind `benchmark_items`). One item_id may cover
            several pairs; every row is one pair.
        scores: response_id, voter, score (table kind `scores`).
        model: name for the result when `scores` holds one voter (or none, when every item failed); by default the
            voter's own name.

    Returns:
        Rows of table kind `benchmark_scores`, sorted by model and benchmark: its groups in name order, then `overall`
        and, where there is more than one group, `macro mean`; with several benchmarks also `all benchmarks`. `accuracy`
        is correct / pairs as a share, NaN where there are no pairs.

    Raises:
        EvaluationError: a column is missing, a group has a reserved name, or one response has two scores by one voter.
    """
    _check(items, ("item_id", "benchmark", "group", "chosen_id", "rejected_id"), "benchmark items")
    _check(scores, ("response_id", "voter", "score"), "scores")
    reserved = sorted({OVERALL, MACRO} & set(items["group"])) + sorted({ALL} & set(items["benchmark"]))
    if reserved:
        raise EvaluationError(f"benchmark items use the reserved names {reserved}")
    voters = sorted(scores["voter"].unique())
    if model is not None and len(voters) > 1:
        raise EvaluationError(f"scores hold {len(voters)} voters {voters}, so one model name {model!r} cannot fit")
    parts = []
    for voter in voters or ([] if model is None else [model]):
        own = scores[scores["voter"] == voter]
        parts.append(_score_one(items, own, str(voter) if model is None else model))
    rows = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=COLUMNS)
    return rows[COLUMNS].astype({name: "int64" for name in _COUNTS} | {"accuracy": "float64"})


def _score_one(items: pd.DataFrame, scores: pd.DataFrame, model: str) -> pd.DataFrame:
    unique = scores.drop_duplicates(["response_id", "score"])
    if unique["response_id"].duplicated().any():
        example = unique.loc[unique["response_id"].duplicated(), "response_id"].iloc[0]
        raise EvaluationError(f"model {model!r} gives response {example!r} two different scores")
    lookup = unique.set_index("response_id")["score"].astype("float64")
    chosen = lookup.reindex(items["chosen_id"]).to_numpy()
    rejected = lookup.reindex(items["rejected_id"]).to_numpy()
    scored = np.isfinite(chosen) & np.isfinite(rejected)
    outcome = pd.DataFrame(
        {
            "benchmark": items["benchmark"].to_numpy(),
            "group": items["group"].to_numpy(),
            "pairs": 1,
            "correct": (scored & (chosen > rejected)).astype(int),
            "ties": (scored & (chosen == rejected)).astype(int),
            "unscored": (~scored).astype(int),
        }
    )
    groups = outcome.groupby(["benchmark", "group"], sort=True)[_COUNTS].sum().reset_index()
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
    if not parts:
        return pd.DataFrame(columns=COLUMNS)
    return pd.concat(parts, ignore_index=True).assign(model=model)


def _summary(rows: pd.DataFrame, benchmark: str, group: str) -> pd.DataFrame:
    counts = rows[_COUNTS].sum()
    accuracy = rows["accuracy"].mean() if group == MACRO else counts["correct"] / counts["pairs"]
    return pd.DataFrame([{"benchmark": benchmark, "group": group, **counts.to_dict(), "accuracy": accuracy}])


def wilson_interval(correct: int, pairs: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of an accuracy as two shares; (nan, nan) without pairs. 95% at the default z."""
    if pairs <= 0:
        return math.nan, math.nan
    share = correct / pairs
    spread = z * math.sqrt(share * (1 - share) / pairs + z * z / (4 * pairs * pairs))
    scale = 1 + z * z / pairs
    centre = share + z * z / (2 * pairs)
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def _check(frame: pd.DataFrame, columns: tuple[str, ...], name: str) -> None:
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise EvaluationError(f"{name}: missing columns {missing}; it has {list(frame.columns)}")
