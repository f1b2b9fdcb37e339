"""Two methods on the same pairs: the difference and its interval, and a test against several simple ones at once.

The best of several baselines is best in part by luck, and of a hundred draws some are significant by chance. So the
test of one draw allows for the number of baselines, and `holm` and `benjamini_hochberg` for the number of draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

RESAMPLES = 1000
TEST_RESAMPLES = 10_000  # so that a probability is small enough to stand beside a hundred others


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95% interval; NaN where nothing is kept."""

    estimate: float
    low: float
    high: float

    @property
    def below(self) -> bool:
        """The interval lies wholly below 0."""
        return self.high < 0

    @property
    def above(self) -> bool:
        """The interval lies wholly above 0."""
        return self.low > 0


NO_INTERVAL = Interval(math.nan, math.nan, math.nan)


@lru_cache(maxsize=3)
def resample_counts(count: int, seed: int, resamples: int = RESAMPLES) -> np.ndarray:
    """How often each of `count` pairs is drawn in each bootstrap resample: float64 [resamples, count]."""
    drawn = np.random.default_rng([seed, 2]).multinomial(count, np.full(count, 1 / count), size=resamples)
    return np.asarray(drawn, dtype=np.float64)


def difference(
    first: np.ndarray, first_weight: np.ndarray, second: np.ndarray, second_weight: np.ndarray, counts: np.ndarray
) -> Interval:
    """Difference of two weighted shares of right labels over the same n pairs, with its paired bootstrap interval.

    Args:
        first: bool [n], the first method's labels are right.
        first_weight: float [n] in [0, 1], how much of each pair it keeps.
        second: as `first`, of the second.
        second_weight: as `first_weight`, of the second.
        counts: float [resamples, n] of `resample_counts`.

    Returns:
        First minus second, and the 2.5% and 97.5% quantiles over the resamples in which both keep something.
    """
    if not first_weight.sum() or not second_weight.sum():
        return NO_INTERVAL
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn = counts @ (first * first_weight) / (counts @ first_weight)
        drawn -= counts @ (second * second_weight) / (counts @ second_weight)
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    estimate = np.average(first, weights=first_weight) - np.average(second, weights=second_weight)
    return Interval(float(estimate), float(low), float(high))


def same_share(score: np.ndarray, share_of: float) -> np.ndarray:
    """Weights in [0, 1] that keep the `share_of` pairs (a number, not a share) with the greatest scores: float64 [n].

    Pairs that tie at the cut share what is left, which is what a cut at random among them keeps on average.
    """
    if share_of <= 0:
        return np.zeros(len(score))
    count = min(math.ceil(share_of), len(score))
    cut = np.sort(score)[::-1][count - 1]
    weight: np.ndarray = (score > cut).astype(float)
    ties = score == cut
    weight[ties] = (share_of - weight.sum()) / ties.sum()
    return weight


def better_than(
    ours: tuple[np.ndarray, np.ndarray], others: Mapping[str, tuple[np.ndarray, np.ndarray]], counts: np.ndarray
) -> dict[str, float]:
    """Of each other method, the probability that one is that much better by chance, allowing for their number.

    The hypothesis is that none is better. Each difference is divided by its standard error, and compared with the
    greatest of these that resamples give around their own mean: single-step max-T of
    [Westfall and Young (1993)](https://doi.org/10.2307/2532216), the studentized Reality Check of
    [White (2000)](https://doi.org/10.1111/1468-0262.00152). Methods that err alike cost little in it.

    Args:
        ours: bool [n] labels are right, and float [n] how much of each pair is kept.
        others: the same of other methods, by name.
        counts: float [resamples, n] of `resample_counts`.

    Returns:
        By name, one-sided; at least 1 / (resamples + 1).
    """
    if not others or not ours[1].sum():
        return {}
    columns = [part for right, weight in (ours, *others.values()) for part in (right * weight, weight)]
    totals, own = counts @ np.column_stack(columns), np.array([part.sum() for part in columns])
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = totals[:, ::2] / totals[:, 1::2]
        shares = shares[np.isfinite(shares).all(axis=1)]
        ahead = own[2::2] / own[3::2] - own[0] / own[1]
        drawn = shares[:, 1:] - shares[:, :1]
        error = drawn.std(axis=0)
        # Two methods that agree on every pair do not differ, and rounding is no difference.
        varies = error > 1e-12
        around = np.where(varies, (drawn - drawn.mean(axis=0)) / error, -math.inf).max(axis=1)
        size = np.where(varies, ahead / error, np.where(ahead > 1e-9, math.inf, -math.inf))
    beyond = (around[:, None] >= size).sum(axis=0)
    found = np.where(np.isneginf(size), 1.0, (1 + beyond) / (1 + len(around)))
    return dict(zip(others, found.tolist(), strict=True))


def holm(probabilities: Sequence[float]) -> np.ndarray:
    """Probabilities adjusted so that one below 5% by chance has a probability of 5% in all, whatever their dependence.

    [Holm (1979)](https://www.jstor.org/stable/4615733). float64, in the order given.
    """
    given = np.asarray(probabilities, dtype=np.float64)
    order = np.argsort(given, kind="stable")
    adjusted = np.empty(len(given))
    adjusted[order] = np.minimum(np.maximum.accumulate(given[order] * np.arange(len(given), 0, -1)), 1.0)
    return adjusted


def benjamini_hochberg(probabilities: Sequence[float]) -> np.ndarray:
    """Probabilities adjusted so that of those below 5%, 5% are expected to be there by chance.

    [Benjamini and Hochberg (1995)](https://doi.org/10.1111/j.2517-6161.1995.tb02031.x); for independent or positively
    dependent ones. float64, in the order given.
    """
    given = np.asarray(probabilities, dtype=np.float64)
    order = np.argsort(-given, kind="stable")
    adjusted = np.empty(len(given))
    scaled = given[order] * len(given) / np.arange(len(given), 0, -1)
    adjusted[order] = np.minimum(np.minimum.accumulate(scaled), 1.0)
    return adjusted
