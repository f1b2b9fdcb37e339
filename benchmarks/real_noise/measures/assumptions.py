"""Claims without an audit, measured against what they assume.

An estimate without an anchor assumes how often voters and judges prefer the better side, and how often a label is right
where they do not. Where either is otherwise, the claim may be wrong, and that is the assumption's fault. So a claim is
also measured where both hold, and as it would be if both were as they turn out to be.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.special import expit, logit

_SUREST = 1e-6  # probabilities nearer to 0 or 1 count as that
_FARTHEST = 60.0  # log-odds by which claims are moved at most


@dataclass(frozen=True)
class Assumed:
    """Assumptions of one claim, and the claim under others.

    Attributes:
        accuracy: assumed and observed share of the pairs in which annotators prefer the better side.
        beside: assumed and observed share of the labels that are right where annotators err; observed is NaN where
            they never err.
        first_holds: whether the first is within 95% of chance of the observed share.
        second_holds: the same of the second; it holds where annotators never err.
        nearest: claim of the row of the sensitivity table whose accuracy of annotators is nearest the observed one,
            minus the observed label accuracy of the pairs that stay.
        corrected: the same of the claim itself, if both shares had been assumed as they are observed.
    """

    accuracy: tuple[float, float]
    beside: tuple[float, float]
    first_holds: bool
    second_holds: bool
    nearest: float
    corrected: float


def under_assumptions(
    shares: tuple[float, float],
    sides: np.ndarray,
    table: pd.DataFrame,
    probability: np.ndarray,
    label_right: np.ndarray,
    stays: np.ndarray,
) -> Assumed | None:
    """Measure what a claim about n pairs assumes; None where no pair stays, or annotators prefer no side.

    Args:
        shares: assumed accuracy of annotators, and share of labels that are right where they err.
        sides: int [n], 1 where annotators are for the given label, -1 against it, 0 neither.
        table: of sensitivity: `annotator_accuracy` and `accuracy_after`.
        probability: float [n], claimed of the given labels.
        label_right: bool [n].
        stays: bool [n]; without an anchor no label is flipped.
    """
    heard = sides != 0
    if not stays.any() or not heard.any():
        return None
    err = heard & (label_right != (sides > 0))
    observed = float(1 - err[heard].mean()), float(label_right[err].mean()) if err.any() else math.nan
    true = float(label_right[stays].mean())
    row = (table["annotator_accuracy"] - observed[0]).abs().to_numpy().argmin()
    # Both shares, with how often annotators agree with labels, say how many labels are right where they agree and
    # where not: the claims there are moved to that.
    moved = probability.astype(np.float64)
    for part in (sides > 0, sides < 0):
        if part.any():
            moved[part] = _moved(moved[part], float(label_right[part].mean()))
    return Assumed(
        (shares[0], observed[0]),
        (shares[1], observed[1]),
        _within_chance(shares[0], observed[0], int(heard.sum())),
        not err.any() or _within_chance(shares[1], observed[1], int(err.sum())),
        float(table["accuracy_after"].iloc[row]) - true,
        float(moved[stays].mean()) - true,
    )


def _within_chance(share: float, observed: float, count: int) -> bool:
    """Whether an observed share of `count` is within 1.96 standard errors of the assumed one."""
    return abs(observed - share) <= 1.96 * math.sqrt(share * (1 - share) / count)


def _moved(probability: np.ndarray, mean: float) -> np.ndarray:
    """The same probabilities, all log-odds moved by one number, so that they have this mean."""
    odds, target = logit(np.clip(probability, _SUREST, 1 - _SUREST)), min(max(mean, _SUREST), 1 - _SUREST)
    by = brentq(lambda move: float(expit(odds + move).mean()) - target, -_FARTHEST, _FARTHEST)
    return np.asarray(expit(odds + by))
