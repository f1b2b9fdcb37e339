"""Whether claimed probabilities are right: the calibration error, and how much of it is chance.

With few pairs in a bin even a perfect claim misses the share that is right there. So beside the calibration error
stand the errors of outcomes that are drawn from the claims, and an estimate of the squared error without chance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit

BINS = 10
_DRAWS = 1000
_SUREST = 1e-6  # probabilities beyond count as this, so that their log-odds are finite
_AT_ONCE = 1 << 22  # outcomes that are drawn at a time


@dataclass(frozen=True)
class Drawn:
    """Calibration errors of outcomes that are drawn from the claims; NaN without claims.

    Attributes:
        mean, median, high: of the errors; `high` is their 95% quantile.
        share: of the draws, those whose error is as great as the observed one. Where that is below 5%, the observed
            error is greater than the draws explain.
    """

    mean: float
    median: float
    high: float
    share: float


@dataclass(frozen=True)
class Calibration:
    """What is observed of claims about n labels.

    Attributes:
        error: expected calibration error, ten bins.
        squared: squared calibration error without what chance adds (`squared_calibration_error`); may be negative.
        chance: errors where every label is right with just the probability that is claimed of it.
        stated: errors where also the level of all claims is as uncertain as the method states; NaN where it states no
            range.
    """

    error: float
    squared: float
    chance: Drawn
    stated: Drawn


def calibration(probability: np.ndarray, right: np.ndarray, seed: int, level: float = math.nan) -> Calibration:
    """Measure claims.

    Args:
        probability: float [n] in [0, 1], claimed of each label.
        right: bool [n].
        seed: of the draws.
        level: standard deviation of the mean of all n true probabilities, as the method states it
            (`stated_level_spread`); NaN where it states none.
    """
    error = expected_calibration_error(probability, right)
    return Calibration(
        error,
        squared_calibration_error(probability, right),
        _drawn(probability, 0.0, seed, error),
        _drawn(probability, level, seed, error),
    )


def expected_calibration_error(probability: np.ndarray, right: np.ndarray, bins: int = BINS) -> float:
    """Mean over bins of |mean claimed probability - share right|, weighted by their pairs; NaN without pairs.

    Bins hold equally many pairs, give or take one, in the order of the claim; there are no more bins than pairs. With
    few pairs per bin chance alone makes it greater than 0.
    """
    if not len(probability):
        return math.nan
    gaps = [abs(probability[part].mean() - right[part].mean()) * len(part) for part in _bins(probability, bins)]
    return float(sum(gaps) / len(probability))


def squared_calibration_error(probability: np.ndarray, right: np.ndarray, bins: int = BINS) -> float:
    """Mean over bins of (mean claimed probability - share right)², weighted by their pairs, less what chance adds.

    The estimator of [Kumar, Liang and Ma (2019)](https://arxiv.org/abs/1909.10155), section 5: the variance of the
    share r of n right labels is estimated as r (1 - r) / (n - 1) and subtracted. So its mean is that of perfectly known
    shares, 0 for right claims, and single values may be negative. Bins are as in `expected_calibration_error`, with two
    pairs at least; NaN without two pairs.
    """
    count = len(probability)
    if count < 2:
        return math.nan
    total = 0.0
    for part in _bins(probability, min(bins, count // 2)):
        share = float(right[part].mean())
        gap = (float(probability[part].mean()) - share) ** 2 - share * (1 - share) / (len(part) - 1)
        total += gap * len(part)
    return total / count


def stated_level_spread(claimed: np.ndarray, others: int, low: float, high: float) -> float:
    """Standard deviation of the mean true probability of n labels that follows from a stated range.

    Args:
        claimed: float [n], probabilities of n labels.
        others: further labels that are known, and which the range is about, too.
        low: of the range of 95% for the accuracy of all n + `others` labels.
        high: of that range.

    Returns:
        The spread that the range leaves when the chance of n single outcomes is taken out; 0 where nothing is left.
    """
    count = len(claimed)
    if not count or not math.isfinite(high - low):
        return math.nan
    variance = ((high - low) / (2 * 1.96) * (count + others)) ** 2 - float((claimed * (1 - claimed)).sum())
    return math.sqrt(max(variance, 0.0)) / count


def _bins(probability: np.ndarray, bins: int) -> list[np.ndarray]:
    order = np.argsort(probability, kind="stable")
    return np.array_split(order, min(bins, len(order)))


def _drawn(probability: np.ndarray, level: float, seed: int, observed: float) -> Drawn:
    """Errors of outcomes that are drawn from claims, all log-odds moved by one normal number with this spread in p."""
    if not len(probability) or math.isnan(level):
        return Drawn(math.nan, math.nan, math.nan, math.nan)
    errors = np.concatenate(list(_errors(probability, level, np.random.default_rng([seed, 3]))))
    share = (1 + int((errors >= observed).sum())) / (1 + len(errors))
    return Drawn(float(errors.mean()), float(np.median(errors)), float(np.quantile(errors, 0.95)), share)


def _errors(probability: np.ndarray, level: float, rng: np.random.Generator) -> Iterator[np.ndarray]:
    claimed = np.sort(probability)
    parts = np.array_split(np.arange(len(claimed)), min(BINS, len(claimed)))
    edges, sizes = [part[0] for part in parts], np.array([len(part) for part in parts])
    means = np.add.reduceat(claimed, edges) / sizes
    odds = logit(np.clip(claimed, _SUREST, 1 - _SUREST))
    slope = max(float((claimed * (1 - claimed)).mean()), _SUREST)  # of the mean probability by a move of all log-odds
    left = _DRAWS
    while left:
        count = min(left, max(_AT_ONCE // len(claimed), 1))
        left -= count
        true = expit(odds + rng.normal(0.0, level / slope, (count, 1))) if level else claimed
        outcomes = rng.random((count, len(claimed))) < true
        shares = np.add.reduceat(outcomes.astype(np.float64), edges, axis=1) / sizes
        yield np.abs(shares - means) @ sizes / len(claimed)
