"""What is measured of a method's answer: label accuracy, harm, honesty, cost, the same share kept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

RESAMPLES = 1000
BINS = 10


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


@dataclass(frozen=True)
class Measured:
    """One method on one draw of one scenario. Shares are of 1, not percent.

    Attributes:
        kept: share of the pairs that are kept or flipped.
        accuracy: label accuracy of the kept pairs.
        harm: `accuracy` minus the label accuracy of all pairs before; positive is gain.
        overclaim: mean claimed probability of the kept pairs minus their accuracy.
        calibration_error: expected calibration error of the kept pairs.
        calls: judge calls per pair.
        utility: mean over all pairs of 1 for a kept right label, -c for a kept wrong one, 0 for a dropped pair.
        rival: name of the simple baseline that is best at the same share kept; "" where there is none.
        advantage: `accuracy` minus the rival's at the same share kept.
    """

    kept: float
    accuracy: float
    harm: Interval
    overclaim: float
    calibration_error: float
    calls: float
    utility: float
    rival: str
    advantage: Interval


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


def expected_calibration_error(probability: np.ndarray, right: np.ndarray, bins: int = BINS) -> float:
    """Mean over bins of |mean claimed probability - share right|, weighted by their pairs; NaN without pairs.

    Bins hold equally many pairs, give or take one, in the order of the claim; there are no more bins than pairs. With
    few pairs per bin chance alone makes it greater than 0.
    """
    if not len(probability):
        return math.nan
    order = np.argsort(probability, kind="stable")
    parts = np.array_split(order, min(bins, len(order)))
    gaps = [abs(probability[part].mean() - right[part].mean()) * len(part) for part in parts]
    return float(sum(gaps) / len(order))


def utility(right: np.ndarray, keep: np.ndarray, cost: float) -> float:
    """Mean over all pairs: 1 for a kept right label, -`cost` for a kept wrong one, 0 for a dropped pair."""
    return float(np.mean(np.where(keep, np.where(right, 1.0, -cost), 0.0)))


def measure(
    answer: pd.DataFrame,
    label_right: np.ndarray,
    simple: Mapping[str, pd.DataFrame],
    counts: np.ndarray,
    cost: float = 3.0,
) -> Measured:
    """Measure an answer against the truth.

    Args:
        answer: of `evidence.answer`, restricted to the n pairs that are measured (those without an audit).
        label_right: bool [n], the noisy label is right.
        simple: answers of the simple baselines on the same pairs, by name. The best of them at the same share kept is
            chosen with the truth in view, so that the comparison favours it.
        counts: of `resample_counts` for n pairs.
        cost: of a wrong label that is kept, in right labels kept.
    """
    keep, flip = answer["keep"].to_numpy(dtype=bool), answer["flip"].to_numpy(dtype=bool)
    right = label_right ^ flip
    kept = keep.astype(float)
    accuracy = float(right[keep].mean()) if keep.any() else math.nan
    claimed = answer["probability"].to_numpy(dtype=np.float64)
    claims = keep & np.isfinite(claimed)
    rival, best = "", (-math.inf, right, kept)
    for name, other in simple.items() if keep.any() else ():
        weight = same_share(other["score"].to_numpy(dtype=np.float64), keep.sum())
        theirs = label_right ^ other["flip"].to_numpy(dtype=bool)
        found = float(np.average(theirs, weights=weight))
        if found > best[0]:
            rival, best = name, (found, theirs, weight)
    return Measured(
        kept=float(keep.mean()),
        accuracy=accuracy,
        harm=difference(right, kept, label_right, np.ones(len(keep)), counts),
        overclaim=float(claimed[claims].mean() - right[claims].mean()) if claims.any() else math.nan,
        calibration_error=expected_calibration_error(claimed[claims], right[claims]),
        calls=float(answer["calls"].mean()),
        utility=utility(right, keep, cost),
        rival=rival,
        advantage=difference(right, kept, best[1], best[2], counts) if rival else NO_INTERVAL,
    )
