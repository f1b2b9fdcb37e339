"""One method's answer on one draw against the truth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from benchmarks.real_noise.measures.claims import Calibration, calibration, stated_level_spread
from benchmarks.real_noise.measures.comparison import (
    NO_INTERVAL,
    TEST_RESAMPLES,
    Interval,
    better_than,
    difference,
    resample_counts,
    same_share,
)


@dataclass(frozen=True)
class Stated:
    """The label accuracy of kept pairs as a method states it.

    Attributes:
        estimate, low, high: of the accuracy, the bounds for 95%.
        known: 1 or 0 for each kept pair that it is about beside the measured ones, since it was audited: whether its
            label is right after the decision.
    """

    estimate: float
    low: float
    high: float
    known: np.ndarray


@dataclass(frozen=True)
class Measured:
    """One method on one draw of one scenario. Shares are of 1, not percent.

    Attributes:
        kept: share of the pairs that are kept or flipped.
        accuracy: label accuracy of the kept pairs.
        harm: `accuracy` minus the label accuracy of all pairs before; positive is gain.
        overclaim: mean claimed probability of the kept pairs minus their accuracy.
        calibration: of the claims about the kept pairs.
        held: whether the stated range holds the label accuracy of the pairs that it is about; None: no range is stated.
        calls: judge calls per pair.
        utility: mean over all pairs of 1 for a kept right label, -c for a kept wrong one, 0 for a dropped pair.
        rival: name of the simple baseline that is best at the same share kept; "" where there is none.
        advantage: `accuracy` minus the rival's at the same share kept, as if the rival had been named before.
        beaten_by: of each simple baseline, the probability that chance alone makes one of them that much better at the
            same share kept (`better_than`).
    """

    kept: float
    accuracy: float
    harm: Interval
    overclaim: float
    calibration: Calibration
    held: bool | None
    calls: float
    utility: float
    rival: str
    advantage: Interval
    beaten_by: dict[str, float]


def utility(right: np.ndarray, keep: np.ndarray, cost: float) -> float:
    """Mean over all pairs: 1 for a kept right label, -`cost` for a kept wrong one, 0 for a dropped pair."""
    return float(np.mean(np.where(keep, np.where(right, 1.0, -cost), 0.0)))


def at_same_share(
    simple: Mapping[str, pd.DataFrame], label_right: np.ndarray, kept: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Of each method, bool [n] its labels are right, and float [n] how much of each pair it keeps if `kept` in all.

    Empty where nothing is kept.
    """
    made = {}
    for name, answer in simple.items() if kept else ():
        right = label_right ^ answer["flip"].to_numpy(dtype=bool)
        made[name] = (right, same_share(answer["score"].to_numpy(dtype=np.float64), kept))
    return made


def best_of(others: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """The name of the method of `at_same_share` with the greatest share of right labels; "" where there is none."""
    return max(others, key=lambda name: np.average(others[name][0], weights=others[name][1]), default="")


def measure(
    answer: pd.DataFrame,
    label_right: np.ndarray,
    simple: Mapping[str, pd.DataFrame],
    seed: int,
    cost: float = 3.0,
    stated: Stated | None = None,
) -> Measured:
    """Measure an answer against the truth.

    Args:
        answer: of `evidence.answer`, restricted to the n pairs that are measured (those without an audit).
        label_right: bool [n], the noisy label is right.
        simple: answers of the simple baselines on the same pairs, by name. The best of them at the same share kept is
            chosen with the truth in view, so that the comparison favours it.
        seed: of resamples and draws.
        cost: of a wrong label that is kept, in right labels kept.
        stated: what the method states; None: nothing.
    """
    keep, flip = answer["keep"].to_numpy(dtype=bool), answer["flip"].to_numpy(dtype=bool)
    right, counts = label_right ^ flip, resample_counts(len(label_right), seed)
    kept = keep.astype(float)
    accuracy = float(right[keep].mean()) if keep.any() else math.nan
    claimed = answer["probability"].to_numpy(dtype=np.float64)
    claims = keep & np.isfinite(claimed)
    held, spread = None, math.nan
    if stated is not None and math.isfinite(stated.high - stated.low) and keep.any():
        held = bool(stated.low <= np.append(right[keep], stated.known).mean() <= stated.high)
        spread = stated_level_spread(claimed[claims], len(stated.known), stated.low, stated.high)
    others = at_same_share(simple, label_right, int(keep.sum()))
    rival = best_of(others)
    return Measured(
        kept=float(keep.mean()),
        accuracy=accuracy,
        harm=difference(right, kept, label_right, np.ones(len(keep)), counts),
        overclaim=float(claimed[claims].mean() - right[claims].mean()) if claims.any() else math.nan,
        calibration=calibration(claimed[claims], right[claims], seed, spread),
        held=held,
        calls=float(answer["calls"].mean()),
        utility=utility(right, keep, cost),
        rival=rival,
        advantage=difference(right, kept, *others[rival], counts) if rival else NO_INTERVAL,
        beaten_by=better_than((right, kept), others, resample_counts(len(keep), seed, TEST_RESAMPLES)),
    )
