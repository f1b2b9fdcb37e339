"""How likely is a given label right? A model of noisy labels and voters, fitted without knowing any true label.

Data of pair i from source g: margins m_iv = r(chosen) - r(rejected) of voters v, in the direction of the given label,
and s_i, the difference log(1 + length of chosen) - log(1 + length of rejected) in characters, scaled to root mean
square 1. Unknown is z_i: +1 if the label is right, -1 if it is wrong.

1. Scale: x_iv = m_iv / rms(m_v). Scores of different voters have different scales. A margin beyond ten times the
   voter's median size counts as that much, so that one broken score does not set the scale. A constant voter is 0.
2. Style: a voter with a length bias shifts every margin by it, whatever is true. The shift is fitted by EM
   in the symmetric two-component mixture x_iv ~ N(z_i mu_v + b_v s_i, sigma_v^2), P(z_i = +1) = p_v, and taken away:
   y_iv = x_iv - b_v s_i.
3. Labels: a voter cannot know which side was labelled chosen, so the density of y_i given z_i is that of -y_i given
   -z_i; let its log-odds be linear, log f(y | z = +1) - log f(y | z = -1) = a.y. Given y_i up to its sign, the sign
   that is seen has the likelihood

       pi_g sigmoid(a.y_i) + (1 - pi_g) sigmoid(-a.y_i),

   with pi_g the label accuracy of source g. Nothing else is assumed about the shape of f, so a voter that is
   confident and wrong now and then does not make labels look wrong: where voters rarely contradict the labels of pairs
   they are confident of, pi_g comes out near 1. EM: q_i = sigmoid(logit pi_g + a.y_i); pi_g = mean of q; a = logistic
   regression of q on y without intercept, a >= 0. Priors, Beta(3, 1) on pi and N(3, 1 / voters per pair) on the sum of
   a (together voters are right in 95% at a usual margin), keep small data finite, and the sum from growing, or falling
   to where all labels look right, when much noise leaves the likelihood flat. The data nearly alone decide how the sum
   is shared: 3 / voters per pair each, with variance 1.

The log-odds that label i is right are logit pi_g + a.y_i. a is fitted to all voters together, so two voters that give
the same margins share one voter's weight. The model needs voters that never saw the given labels: a voter trained on
them agrees with them for that reason. A voter that judges less than a tenth of the pairs gets no weight: such a rest is
what earlier votes and judges could not settle, and on this selection the signs of margins are no sample.

A voter gets no weight either unless its y_v agree with the labels in more than 50% plus three standard errors of the
pairs: 66 of 100 pairs, 21 of 25. Below that bar, labels half of which are wrong look the same as a voter at chance,
and every flip would be a guess. So labels must be right more often than wrong.

Where no voter has any weight, nothing is known: all log-odds are 0 and every label accuracy is 0.5.

The label side is the noise-rate model of Dawid and Skene (1979); the voter side is a calibrated Bradley-Terry margin.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit

_FIT_PAIRS = 50_000  # a few numbers are fitted; more pairs take longer and change little
_LEAST_COVERAGE = 0.1
_FARTHEST = 10.0  # medians; one broken score must not set the scale of all
_STANDARD_ERRORS = 3.0
_STEPS = 500
_TOLERANCE = 1e-5
_RIGHT, _WRONG = 2.0, 0.0  # pseudo-labels of the Beta(3, 1) prior on a source's label accuracy
_PRIOR_WEIGHT, _PRIOR_PRECISION = 3.0, 1.0


@dataclass(frozen=True)
class LabelModel:
    """A fitted model of n pairs, V voters.

    Attributes:
        log_odds: float64 [n], nats; log P(label right) - log P(label wrong). NaN where no voter judged the pair.
        weights: float64 [V], a_v: nats per standardised margin; 0: the voter is not above the bar.
        style_shifts: float64 [V], b_v: standardised margin that goes with one unit of length difference.
        label_accuracy: source -> pi_g, 0 to 1; the pooled sources share one value.
        pooled: the sources that were too small for a value of their own.
    """

    log_odds: np.ndarray
    weights: np.ndarray
    style_shifts: np.ndarray
    label_accuracy: Mapping[str, float]
    pooled: tuple[str, ...]


def fit_labels(
    margins: np.ndarray, style: np.ndarray, sources: np.ndarray, draw: np.ndarray, smallest_source: int
) -> LabelModel:
    """Fit the model of this module.

    Where there are more than 50,000 judged pairs, a and b are fitted to that many of them, and only pi to all.

    Args:
        margins: float64 [n, V], in the direction of the given label; NaN where a voter does not judge a pair, which
            then counts as no evidence from this voter.
        style: float64 [n], the difference of log lengths.
        sources: n names.
        draw: n numbers, random and different; the pairs with the lowest are those that a and b are fitted to.
        smallest_source: pairs; sources with fewer judged pairs are pooled, and their pool joins the largest source
            where it is smaller itself.
    """
    present = np.isfinite(margins)
    judged = present.any(axis=1)
    weighed = present & (present.sum(axis=0) >= _LEAST_COVERAGE * judged.sum())
    groups, names, pooled = _groups(sources, judged, smallest_source)
    sample = judged.copy()
    if judged.sum() > _FIT_PAIRS:
        sample &= draw <= np.partition(draw[judged], _FIT_PAIRS - 1)[_FIT_PAIRS - 1]
    y, shifts = _without_style(np.where(weighed, margins, 0.0), weighed, _scaled(style), sample)
    y[:, ~_agree_with_labels(y)] = 0.0
    weights, informative = np.zeros(y.shape[1]), y.any(axis=0)
    per_pair = weighed[judged][:, informative].sum() / max(judged.sum(), 1)
    weights[informative], shares = _fit(y[sample][:, informative], groups[sample], np.full(len(names), 0.75), per_pair)
    evidence = y[judged] @ weights
    log_odds = np.full(len(margins), np.nan)
    if weights.any():
        if not np.array_equal(sample, judged):
            shares = _fit_shares(evidence, groups[judged], shares)
        log_odds[judged] = logit(shares)[groups[judged]] + evidence
    else:  # no voter above the bar: no label is known to be right, and the accuracy would only repeat its prior
        shares = np.full(len(names), 0.5)
        log_odds[judged] = 0.0
    by_source = {name: float(shares[group]) for group, found in enumerate(names) for name in found}
    return LabelModel(log_odds, weights, shifts, dict(sorted(by_source.items())), pooled)


def _agree_with_labels(y: np.ndarray) -> np.ndarray:
    """Bool [V]: the voter's margins, in the labels' direction, are positive clearly more often than negative."""
    positive, negative = (y > 0).sum(axis=0), (y < 0).sum(axis=0)
    return positive - negative > _STANDARD_ERRORS * np.sqrt(positive + negative)


def _scaled(values: np.ndarray) -> np.ndarray:
    """Values over their root mean square; single ones beyond ten times the median size count as that much."""
    middle = np.median(np.abs(values)) if len(values) else 0.0
    if middle > 0:
        values = np.clip(values, -_FARTHEST * middle, _FARTHEST * middle)
    size = np.sqrt(np.mean(values**2)) if len(values) else 0.0
    return values / size if size > 0 else np.zeros_like(values)


def _without_style(
    margins: np.ndarray, present: np.ndarray, style: np.ndarray, sample: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Standardised margins less what goes with style, and the shifts b, which are fitted to the pairs in `sample`."""
    y, shifts = np.zeros_like(margins), np.zeros(margins.shape[1])
    for voter in range(margins.shape[1]):
        here = present[:, voter]
        x, s = _scaled(margins[here, voter]), style[here]
        shifts[voter] = _style_shift(x[sample[here]], s[sample[here]])
        y[here, voter] = x - shifts[voter] * s
    return y, shifts


def _style_shift(x: np.ndarray, s: np.ndarray) -> float:
    """Shift b of the symmetric mixture x ~ N(z mu + b s, sigma^2), by EM."""
    if not x.any() or not s.any():
        return 0.0
    mu, shift, variance, share = float(np.abs(x).mean()), 0.0, 1.0, 0.75
    square = s @ s + 1.0  # a prior N(0, sigma^2) on b, for when there are a few pairs
    for _ in range(_STEPS):
        q = expit(2 * mu * (x - shift * s) / variance + logit(share))
        sign = 2 * q - 1
        # Weighted least squares of x on z (expected) and s.
        cross = s @ sign
        determinant = len(x) * square - cross**2
        mu_x, s_x = sign @ x, s @ x
        before, shift = shift, (len(x) * s_x - cross * mu_x) / determinant
        mu = max((square * mu_x - cross * s_x) / determinant, 1e-6)
        rest = x - shift * s
        variance = max(float((rest**2 - 2 * mu * sign * rest + mu**2).mean()), 1e-2)
        share = float((q.sum() + _RIGHT) / (len(x) + _RIGHT + _WRONG))
        share = min(share, 1 - 1e-6)
        if abs(shift - before) < _TOLERANCE:
            break
    return float(shift)


def _groups(
    sources: np.ndarray, judged: np.ndarray, smallest: int
) -> tuple[np.ndarray, list[tuple[str, ...]], tuple[str, ...]]:
    """Group of every pair, the sources of every group, and the pooled sources."""
    names, codes = np.unique(np.asarray(sources, dtype=object).astype(str), return_inverse=True)
    counts = np.bincount(codes[judged], minlength=len(names))
    small = counts < smallest
    large = int((~small).sum())
    place = np.where(small, large, np.cumsum(~small) - 1)
    if large and counts[small].sum() < smallest:
        place[small] = place[np.argmax(counts)]
    members = [tuple(str(name) for name in names[place == group]) for group in range(place.max(initial=-1) + 1)]
    return place[codes], members, tuple(str(name) for name in names[small])


def _fit(
    y: np.ndarray, groups: np.ndarray, shares: np.ndarray, voters_per_pair: float
) -> tuple[np.ndarray, np.ndarray]:
    """Weights a [V] and label accuracies [groups], by EM."""
    several = max(voters_per_pair, 1.0)
    # Precision 1 across, and several**2 along the direction in which all weights grow together.
    prior = np.full(y.shape[1], _PRIOR_WEIGHT / several)
    precision = _PRIOR_PRECISION * (np.eye(len(prior)) + (several - 1 / several) * np.ones((len(prior), len(prior))))
    weights = prior.copy()
    for _ in range(_STEPS):
        before = np.concatenate([weights, shares])
        evidence = y @ weights
        right, shares = _expect(evidence, groups, shares)
        p = expit(evidence)
        gradient = y.T @ (right - p) - precision @ (weights - prior)
        curvature = (y * (p * (1 - p))[:, None]).T @ y + precision
        weights = np.maximum(weights + np.linalg.solve(curvature, gradient), 0.0)
        if np.abs(np.concatenate([weights, shares]) - before).max(initial=0.0) < _TOLERANCE:
            break
    return weights, shares


def _fit_shares(evidence: np.ndarray, groups: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Label accuracies [groups] where the voters' evidence a.y is given."""
    for _ in range(_STEPS):
        before = shares
        _, shares = _expect(evidence, groups, shares)
        if np.abs(shares - before).max(initial=0.0) < 10 * _TOLERANCE:
            break
    return shares


def _expect(evidence: np.ndarray, groups: np.ndarray, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probability that each label is right, and each group's new label accuracy."""
    right = expit(logit(shares)[groups] + evidence)
    sizes = np.bincount(groups, minlength=len(shares)) + _RIGHT + _WRONG
    new = (np.bincount(groups, right, minlength=len(shares)) + _RIGHT) / sizes
    return right, np.clip(new, 1e-6, 1 - 1e-6)
