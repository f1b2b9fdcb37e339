"""Is one model better than another on the same benchmark items, or is the difference chance?

Both models answer the same pairs, so the test is paired: pairs that both get right or both get wrong do not count, and
only the others count. Pairs of one prompt share an image and often a response and stand or fall together, so a prompt,
not a pair, is the unit of the test and of the interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
import pandas as pd

from dt2it_pipeline.evaluate.benchmarks.metrics import ALL, OVERALL, BenchmarkError

SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Change:
    """How accuracy on one benchmark group changes from one model to another.

    Attributes:
        benchmark, group: the group; `OVERALL` of `ALL` (or of the only benchmark) is everything pooled.
        pairs: pairs that both models were put to.
        gained, lost: pairs that only the second, or only the first, gets right.
        difference: (gained - lost) / pairs, as a share.
        low, high: its 95% interval; those of all groups of a comparison hold together (Bonferroni).
        p: two-sided p-value of the paired test, before any correction.
        beyond_chance: p survives Holm's correction over the groups of this comparison at 0.05.
    """

    benchmark: str
    group: str
    pairs: int
    gained: int
    lost: int
    difference: float
    low: float
    high: float
    p: float
    beyond_chance: bool


@dataclass(frozen=True)
class Comparison:
    """Two models on the same items: their names as in the headline table, and a change per group, pooled one last."""

    before: str
    after: str
    changes: Sequence[Change]


def outcomes(items: pd.DataFrame, scores: pd.DataFrame) -> np.ndarray:
    """Bool [items]: whether one voter's scores answer each item; a tie or a missing score is wrong.

    Args:
        items: chosen_id, rejected_id (table kind `benchmark_items`).
        scores: response_id, score of one voter.

    Raises:
        BenchmarkError: a response has two different scores.
    """
    unique = scores.drop_duplicates(["response_id", "score"])
    if unique["response_id"].duplicated().any():
        example = unique.loc[unique["response_id"].duplicated(), "response_id"].iloc[0]
        raise BenchmarkError(f"response {example!r} has two different scores")
    lookup = unique.set_index("response_id")["score"].astype("float64")
    chosen = lookup.reindex(items["chosen_id"]).to_numpy()
    rejected = lookup.reindex(items["rejected_id"]).to_numpy()
    right: np.ndarray = np.isfinite(chosen) & np.isfinite(rejected) & (chosen > rejected)
    return right


def compare(items: pd.DataFrame, before: pd.DataFrame, after: pd.DataFrame, names: tuple[str, str]) -> Comparison:
    """Compare two models group by group.

    Args:
        items: benchmark, group, prompt_id, chosen_id, rejected_id (table kind `benchmark_items`); one row per pair.
        before: response_id and score of the first model (table kind `scores`).
        after: the same of the second model.
        names: of the two models.

    Raises:
        BenchmarkError: a response has two different scores by one model.
    """
    signs = outcomes(items, after).astype(int) - outcomes(items, before).astype(int)
    prompts = items["prompt_id"].to_numpy(dtype=object)
    several = items["benchmark"].nunique() > 1
    groups = items[["benchmark", "group"]].drop_duplicates().sort_values(["benchmark", "group"])
    parts = [
        (str(b), str(g), np.flatnonzero((items["benchmark"] == b) & (items["group"] == g)))
        for b, g in groups.itertuples(index=False)
    ]
    level = SIGNIFICANCE / max(1, len(parts))
    found = [_change(benchmark, group, signs[rows], prompts[rows], level) for benchmark, group, rows in parts]
    decided = holm([change.p for change in found])
    found = [replace(change, beyond_chance=flag) for change, flag in zip(found, decided, strict=True)]
    if len(items) and len(parts) > 1:
        name = ALL if several else parts[0][0]
        whole = _change(name, OVERALL, signs, prompts, SIGNIFICANCE)
        found.append(replace(whole, beyond_chance=whole.p < SIGNIFICANCE))
    return Comparison(*names, found)


def holm(p_values: Sequence[float], level: float = SIGNIFICANCE) -> list[bool]:
    """Which of several tests are significant together (Holm 1979): the chance of any false one is at most `level`."""
    order = np.argsort(np.asarray(p_values, dtype=float), kind="stable")
    passed = [False] * len(p_values)
    for place, which in enumerate(order.tolist()):
        if p_values[which] * (len(p_values) - place) >= level:
            break
        passed[which] = True
    return passed


def paired_test(sums: np.ndarray) -> float:
    """Two-sided p-value of the exact sign-flip test that the models do not differ.

    `sums` [prompts] holds, per prompt, pairs gained less pairs lost. Were the models alike, each sum might as well have
    the other sign; p is the share of all sign patterns whose total is at least as far from zero. With one pair per
    prompt this is the exact McNemar test.
    """
    sizes = np.abs(sums[sums != 0]).astype(int)
    reach = int(sizes.sum())
    chances = np.ones(1)
    for size in sizes.tolist():  # distribution of the total, by convolution; place i is the total i - reach so far
        longer = np.zeros(len(chances) + 2 * size)
        longer[: len(chances)] += chances / 2
        longer[2 * size :] += chances / 2
        chances = longer
    totals = np.abs(np.arange(-reach, reach + 1))
    return min(1.0, float(chances[totals >= abs(int(sums.sum()))].sum()))


def paired_interval(sums: np.ndarray, pairs: np.ndarray, level: float = SIGNIFICANCE) -> tuple[float, float]:
    """Interval of the difference of two accuracies, as shares, from gained less lost and pairs, both [prompts].

    It misses the true difference with probability `level`.

    Half a pair is added to each cell of the two-by-two table (Agresti and Min 2005), without which two models that
    never differ would have an interval of no width. The variance is that between prompts.
    """
    total = float(pairs.sum()) + 2
    centre = float(sums.sum()) / total
    squares = float(((sums - centre * pairs) ** 2).sum())
    squares += 0.5 * (1 - centre) ** 2 + 0.5 * (1 + centre) ** 2 + centre**2
    half = NormalDist().inv_cdf(1 - level / 2) * math.sqrt(squares) / total
    return max(-1.0, centre - half), min(1.0, centre + half)


def _change(benchmark: str, group: str, signs: np.ndarray, prompts: np.ndarray, level: float) -> Change:
    codes, _ = pd.factorize(prompts)
    sums = np.bincount(codes, weights=signs)
    low, high = paired_interval(sums, np.bincount(codes).astype(float), level)
    gained, lost = int((signs > 0).sum()), int((signs < 0).sum())
    return Change(
        benchmark, group, len(signs), gained, lost, (gained - lost) / len(signs), low, high, paired_test(sums), False
    )
