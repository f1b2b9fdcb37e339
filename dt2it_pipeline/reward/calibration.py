"""Scores with a meaning: the temperature T with which sigmoid(margin / T) is the probability that an answer is better.

A margin is the score of one answer minus that of another to the same prompt. A reward model is trained to put the
better answer first; how large its margins are depends on the length of the training as well, and they are as a rule too
large (overconfident) or too small. T is fitted by maximum likelihood on pairs that the model was not trained on (Platt
1999; temperature scaling of Guo et al. 2017, arXiv 1706.04599).

Why T is the only parameter. P(first is better) and P(second is better) add up to 1 for every pair, so the function of
the margin must be odd around 1/2. A constant added to the margin breaks that: which answer stands first is arbitrary,
and both share their prompt, source and domain, so an offset per source moves both sides alike and cancels. A T per
source would be possible, but whoever compares two new answers has no source to look it up by; pairs of different
sources are better calibrated apart, on checkpoints of their own.

What T says is how often the labels of the given pairs agree with the model. Where a share of them is wrong, T is too
large for the truth: pairs that people have checked (`dt2it review sample`) are better than many noisy ones.

What belongs here: fitting, judging the fit, and its form in reward_model.json. What does not: scoring the pairs.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import numpy as np

from dt2it_pipeline.errors import UserError

CARD_KEY = "calibration"
LEAST_PAIRS = 100
FOLDS = 5
_BINS = 10
_NORMAL = 1.959964  # quantile of 97.5%
_WIDEST = 50.0  # log(1 / T) is looked for between minus this and this, around the scale of the margins


class CalibrationError(UserError, ValueError):
    """A temperature cannot be fitted; the message says why and what would help."""

    help_page: ClassVar[str] = "troubleshooting#calibration"


@dataclass(frozen=True)
class Calibration:
    """A temperature, and how well it does on pairs that it was not fitted on.

    Attributes:
        temperature: T; 1 where none is better than 1.
        low: lower end of T's 95% interval; None where T was not fitted.
        high: upper end.
        pairs: that were used, each with one margin.
        prompts: of these pairs.
        accuracy: share of the pairs whose better answer has the higher score; ties count half.
        log_loss_before: mean negative log-likelihood (nats) with T = 1.
        log_loss_after: the same, cross-validated: each pair with the T of the other folds; that of T = 1 where T is 1.
        error_before: expected calibration error with T = 1.
        error_after: the same, cross-validated.
        fallback: why T is 1 although pairs were given; empty where T was fitted.
        source: where the pairs come from, in words.
    """

    temperature: float
    low: float | None
    high: float | None
    pairs: int
    prompts: int
    accuracy: float
    log_loss_before: float
    log_loss_after: float
    error_before: float
    error_after: float
    fallback: str = ""
    source: str = ""

    def probability(self, margin: np.ndarray | float) -> np.ndarray:
        """P(the first answer is better) of margins, first minus second, float64 of the same shape.

        >>> fitted = Calibration(2.0, 1.5, 2.7, 400, 400, 0.8, 0.6, 0.5, 0.1, 0.02)
        >>> fitted.probability(np.array([0.0, 2.0, -2.0])).round(3).tolist()
        [0.5, 0.731, 0.269]
        """
        return probability_better(margin, self.temperature)

    def in_words(self) -> str:
        """One line for a person."""
        if self.fallback:
            return f"temperature 1 (not fitted: {self.fallback}); {self.pairs:,} pairs of {self.prompts:,} prompts"
        return (
            f"temperature {self.temperature:.3g} (95%: {self.low:.3g} to {self.high:.3g}), from {self.pairs:,} pairs "
            f"of {self.prompts:,} prompts"
        )


def probability_better(margin: np.ndarray | float, temperature: float = 1.0) -> np.ndarray:
    """sigmoid(margin / temperature), float64, without overflow."""
    scaled = np.asarray(margin, dtype=np.float64) / temperature
    return np.exp(-np.logaddexp(0.0, -scaled))


def calibration_of(card: Mapping[str, Any]) -> Calibration | None:
    """The calibration in a checkpoint's card (reward_model.json); None where it has none.

    Raises:
        CalibrationError: the entry is damaged.

    >>> calibration_of({"name": "reward_model"}) is None
    True
    """
    found = card.get(CARD_KEY)
    if found is None:
        return None
    known = {field.name for field in fields(Calibration)}
    try:
        made = Calibration(**{key: value for key, value in found.items() if key in known})
        usable = math.isfinite(made.temperature) and made.temperature > 0
    except (TypeError, AttributeError) as error:
        raise CalibrationError(f"`{CARD_KEY}` in reward_model.json is damaged ({error}); calibrate again") from error
    if not usable:
        raise CalibrationError(
            f"`{CARD_KEY}` in reward_model.json has the temperature {made.temperature}, which is no number above 0; "
            "calibrate again"
        )
    return made


def card_entry(calibration: Calibration) -> dict[str, Any]:
    """What reward_model.json holds of a calibration, under `calibration`."""
    return asdict(calibration)


def fit_calibration(
    margins: Sequence[float] | np.ndarray,
    prompts: Sequence[str],
    *,
    weights: Sequence[float] | np.ndarray | None = None,
    source: str = "",
    least_pairs: int = LEAST_PAIRS,
) -> Calibration:
    """Fit T, and compare it with T = 1 on held-out folds; T = 1 is kept where it does no worse there.

    >>> rng = np.random.default_rng(0)
    >>> truth = rng.normal(size=4000)                                # log-odds that the first answer is better
    >>> sign = np.where(rng.random(4000) < 1 / (1 + np.exp(-truth)), 1, -1)
    >>> fitted = fit_calibration(3 * truth * sign, [str(n) for n in range(4000)])  # margins three times too large
    >>> 2.6 < fitted.low < 3 < fitted.high < 3.5, fitted.log_loss_after < fitted.log_loss_before
    (True, True)

    Args:
        margins: [pairs], score of the better answer minus that of the other.
        prompts: [pairs], whose pairs stand together: they go into the same fold, and count as one in the interval.
        weights: [pairs], how many pairs each stands for, above 0; all the same where None.
        source: where the pairs come from, for the card.
        least_pairs: fewer are refused.

    Returns:
        The calibration. Its interval is that of a maximum-likelihood estimate with standard errors that allow for
        pairs of one prompt (a cluster sandwich), on the scale of log T.

    Raises:
        CalibrationError: there are too few pairs or prompts.
        ValueError: a margin is not finite, a weight is none, or the lengths differ.
    """
    m = np.asarray(margins, dtype=np.float64)
    w = np.ones(len(m)) if weights is None else np.asarray(weights, dtype=np.float64)
    if not len(m) == len(prompts) == len(w):
        raise ValueError(f"{len(m)} margins, {len(prompts)} prompts and {len(w)} weights; give one each per pair")
    if not np.isfinite(m).all() or not (np.isfinite(w) & (w > 0)).all():
        raise ValueError("margins must be finite, and weights finite and above 0")
    names, cluster = np.unique(np.asarray(prompts, dtype=str), return_inverse=True)
    if len(m) < least_pairs or len(names) < least_pairs / 2:
        raise CalibrationError(
            f"{len(m)} pairs of {len(names)} prompts are too few to fit a temperature: at least {least_pairs} pairs of "
            f"{math.ceil(least_pairs / 2)} prompts are needed"
        )
    w = w * (len(m) / w.sum())
    before = _loss(m, np.ones(len(m)), w)
    error_before = _calibration_error(m, np.ones(len(m)), w)
    accuracy = float((((m > 0) + 0.5 * (m == 0)) * w).sum() / len(m))
    slope, fallback = _slope(m, w), ""
    fold = np.array([int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) % FOLDS for name in names])[cluster]
    slopes = np.ones(len(m))
    if slope is None:
        fallback = _no_maximum(m)
    else:
        for number in range(FOLDS):
            rest = fold != number
            found = _slope(m[rest], w[rest]) if rest.any() else None
            slopes[~rest] = 1.0 if found is None else found
        after = _loss(m, slopes, w)
        if not after < before:
            fallback = f"the fitted temperature of {1 / slope:.3g} does no better on held-out pairs"
    if fallback or slope is None:
        return Calibration(
            1.0, None, None, len(m), len(names), accuracy, before, before, error_before, error_before, fallback, source
        )
    low, high = _interval(m, w, slope, cluster)
    error_after = _calibration_error(m, slopes, w)
    return Calibration(
        1 / slope, low, high, len(m), len(names), accuracy, before, after, error_before, error_after, "", source
    )


def _slope(margins: np.ndarray, weights: np.ndarray) -> float | None:
    """The 1 / T of highest likelihood; None where the likelihood has no maximum above 0.

    The log-likelihood is concave in 1 / T, so its derivative has one root, which is bracketed and bisected.
    """
    scale = float(np.abs(margins).max(initial=0.0))
    if scale == 0 or (margins >= 0).all() or float((weights * margins).sum()) <= 0:
        return None

    def derivative(slope: float) -> float:
        return float((weights * margins * probability_better(-slope * margins)).sum())

    low, high = 0.0, 1 / scale
    while derivative(high) > 0:
        low, high = high, 2 * high
        if high > math.exp(_WIDEST) / scale:
            return None
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if derivative(middle) > 0 else (low, middle)
    return high if high > 0 else None


def _no_maximum(margins: np.ndarray) -> str:
    if (margins >= 0).all():
        return "the model is right about every pair, which leaves open how sure it may be"
    return "the model does no better than chance on these pairs"


def _interval(margins: np.ndarray, weights: np.ndarray, slope: float, cluster: np.ndarray) -> tuple[float, float]:
    """95% interval of T = 1 / slope."""
    wrong = probability_better(-slope * margins)
    information = float((weights * margins**2 * wrong * (1 - wrong)).sum())
    scores = np.bincount(cluster, weights=weights * margins * wrong)
    clusters = len(scores)
    variance = float((scores**2).sum()) * clusters / max(1, clusters - 1) / information**2
    width = _NORMAL * math.sqrt(variance) / slope  # of log T, by the delta method
    return math.exp(-width) / slope, math.exp(width) / slope


def _loss(margins: np.ndarray, slopes: np.ndarray, weights: np.ndarray) -> float:
    """Mean negative log-likelihood in nats."""
    return float((weights * np.logaddexp(0.0, -slopes * margins)).sum() / weights.sum())


def _calibration_error(margins: np.ndarray, slopes: np.ndarray, weights: np.ndarray) -> float:
    """Expected calibration error: mean distance of confidence and accuracy over 10 bins of equally many pairs.

    Confidence is the probability of the answer that the model prefers, from 1/2 to 1. A tie is right half the time.
    """
    confidence = probability_better(np.abs(margins) * slopes)
    right = (margins > 0) + 0.5 * (margins == 0)
    order = np.argsort(confidence, kind="stable")
    total = 0.0
    for part in np.array_split(order, min(_BINS, len(order))):
        total += abs(float((weights[part] * (right[part] - confidence[part])).sum()))
    return total / float(weights.sum())
