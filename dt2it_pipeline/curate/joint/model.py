r"""The joint model: how far labels, voters and judges can be believed, from labels nobody checked and some that were.

Data of pair i from source g, all in the direction of the given label: features x_i (scaled margins, verdicts, length;
`evidence`), among them the difference of log lengths s_i. Unknown is z_i: +1 if the label is right, -1 if it is wrong.
As in learning from crowds (Raykar et al. 2010), which joins a regression to the annotator model of Dawid and Skene
(1979):

    better side:  P(z_i | x_i) = sigmoid(z_i u_i),   u_i = w.x_i
    label:        P(label as given | z_i, x_i) = sigmoid(z_i a_g + c_i),   c_i = kappa u_i + lambda s_i

w is one antisymmetric regression on all voters and judges together, so that two that err alike share one weight, and a
judge who repeats a voter adds nothing. Verdicts count by how far one side leads (one weight per lead), with a deviation
for each judge, and one for its habit of preferring what it sees first; a tie is no evidence. Which pairs judges were
asked about does not matter: all that decided it is among the features. a_g is the log-odds that a label of source g is
right, drawn around a common a. lambda is the labellers' length bias. kappa is what labels and other annotators get
wrong together: a pair that is hard for one is hard for the other.

    log odds of z_i = u_i + log sigmoid(a_g + c_i) - log sigmoid(-a_g + c_i)

A pair that nobody checked adds log P(label | x_i). That says how labels and features agree, and leaves open which of
them is to blame where they do not: (a, w) and (logit of the annotators' accuracy, ...) explain the same data. So the
prior decides there, and the answer is integrated over it. A checked pair (audit) adds log P(z_i | label, x_i) at full
weight, and a trusted pair, whose truth is known and whose label comes from elsewhere, log sigmoid(u_i). The model is
wrong in details that a million unchecked pairs would magnify, so these count together as 20 pairs, beside an anchor as
5. Trusted pairs say nothing of labels; so beside them unchecked pairs count as as many more, by their margins alone.
Verdicts stay out of that, and of the fit to unchecked pairs where there is no anchor and not nearly all pairs have
one: judges are asked about pairs whose label voters doubt, and of such pairs alone, labels say little about judges.

The priors are in `priors`. The posterior is a mixture of normal distributions: the mode and curvature of the other
parameters (Laplace), for every a of a grid, weighted by what each explains.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, log_expit, logit, logsumexp

from dt2it_pipeline.curate.joint.evidence import JUDGE, NET_VERDICT, POSITION, VOTER, Evidence
from dt2it_pipeline.curate.joint.priors import Layout, prior

LEAST_CHECKED, LEAST_TRUSTED = 15, 50  # pairs that make an anchor
WEIGHT_OF_UNCHECKED = 20.0  # pairs, together
_WEIGHT_BESIDE_CHECKED = 5.0  # pairs, where there is an anchor
_FIT_PAIRS = 2_000  # unchecked pairs that are looked at; more change little, since together they weigh little
_NEARLY_ALL = 0.8  # of the pairs have a verdict; fewer may be those whose labels are in doubt
_GRID = np.arange(-0.6, 5.41, 0.4)  # of a, log-odds: label accuracies of 35 to 99.5%
_KAPPA_SPREAD_BESIDE = 1.0  # where the accuracy of annotators is assumed: labels may err as they do, or not at all
_KNOWN_SPREAD = 0.1  # of a label accuracy that the user knows, log-odds
_MOST_KNOWN = 1 - 1e-9  # a known label accuracy beyond counts as this: no table is large enough to tell them apart
_BEYOND_KNOWN = 1.2  # log-odds; the grid of a reaches that far beyond a known label accuracy
_LEAST_CURVATURE = 1e-2
_STEP = 1e-4  # of the numerical second derivatives
_LIKELY = 1e-3  # components below are left out
_HOPELESS = 15.0  # nats; a mode that is so much less probable has no weight, whatever its curvature


@dataclass(frozen=True)
class Anchors:
    """What is known to be true.

    Attributes:
        checked: int [n], per pair: answers of an audit for its label minus those against it; 0 where nobody looked, or
            as many say either.
        trusted: float64 [m, F], features of other pairs, in the direction of their better side.
        label_accuracy: what the user says it is, above 0 and below 1; None: not known.
        contradictions: answers of an audit that another one about the same pair contradicts, without the other one.
        auditor_accuracy: how many of an audit's answers are right, where that is not estimated. At 0.5 they say
            nothing, so that the log evidence of two fits shows whether answers fit the rest better than answers at
            random would.
    """

    checked: np.ndarray
    trusted: np.ndarray
    label_accuracy: float | None = None
    contradictions: int = 0
    auditor_accuracy: float | None = None

    @property
    def enough(self) -> bool:
        """Whether labels may be flipped: 15 checked pairs, 50 trusted ones, or a known label accuracy."""
        return self.pairs_known or self.label_accuracy is not None

    @property
    def pairs_known(self) -> bool:
        """Whether the truth of single pairs is an anchor: 15 checked or 50 trusted ones."""
        return int(np.count_nonzero(self.checked)) >= LEAST_CHECKED or len(self.trusted) >= LEAST_TRUSTED


@dataclass(frozen=True)
class Component:
    """The posterior for one value of a: a normal distribution.

    Attributes:
        mode: float64 [parameters].
        root: float64 [parameters - 1, parameters - 1]; symmetric; mode + root @ N(0, 1) are draws of all but a.
        weight: of the mixture.
    """

    mode: np.ndarray
    root: np.ndarray
    weight: float


@dataclass(frozen=True)
class JointModel:
    """A fitted model.

    Attributes:
        components: of the mixture, by rising a.
        log_evidence: logarithm of what the model gives to the data, up to a constant that depends on the unchecked
            pairs alone.
    """

    components: tuple[Component, ...]
    log_evidence: float

    @property
    def mean(self) -> np.ndarray:
        """float64 [parameters], mean of the posterior."""
        weights = [each.weight for each in self.components]
        return np.asarray(np.average([each.mode for each in self.components], axis=0, weights=weights))

    def draws(self, count: int, seed: int = 0) -> np.ndarray:
        """float64 [count, parameters], draws of the posterior, in pairs that mirror each other; `count` is even."""
        rng = np.random.default_rng(seed)
        weights = np.array([each.weight for each in self.components])
        # Evenly spaced: a component of weight 0.25 gets a quarter of the draws.
        picked = np.searchsorted(np.cumsum(weights) / weights.sum(), (np.arange(count // 2) + 0.5) / (count // 2))
        drawn = []
        for place in picked:
            component = self.components[min(int(place), len(self.components) - 1)]
            offset = component.root @ rng.standard_normal(component.root.shape[1])
            for sign in (1.0, -1.0):
                one = component.mode.copy()
                one[:-1] += sign * offset
                drawn.append(one)
        return np.array(drawn).reshape(-1, len(self.components[0].mode))


def fit_joint_model(evidence: Evidence, anchors: Anchors, draw: np.ndarray) -> JointModel:
    """Fit the model of this module.

    Args:
        evidence: of n pairs.
        anchors: what is known to be true.
        draw: n numbers, random and different: of more than 2,000 unchecked pairs, those with the lowest are fitted to.
    """
    layout = Layout(evidence.features.shape[1], max(len(evidence.source_names), 1))
    problem = _Problem(layout, evidence, anchors, draw)
    start = problem.mean.copy()
    modes = []
    for a in _grid(anchors.label_accuracy)[::-1]:  # from labels that are right: there the regression is an ordinary one
        modes.append(problem.mode(start, float(a)))
        start = modes[-1][0]
    found, best = [], max(value for _, value in modes)
    for mode, value in modes:
        if value < best - _HOPELESS:
            continue
        values, vectors = np.linalg.eigh(problem.curvature(mode))
        values = np.maximum(values, _LEAST_CURVATURE)
        found.append((mode, (vectors / np.sqrt(values)) @ vectors.T, value - 0.5 * float(np.log(values).sum())))
    logs = np.array([log for *_, log in found])
    weights = np.exp(logs - logs.max())
    evidence_log = float(logs.max() + np.log(weights.sum()))
    weights /= weights.sum()
    components = [
        Component(mode, root, float(weight))
        for (mode, root, _), weight in zip(found, weights, strict=True)
        if weight >= _LIKELY
    ]
    return JointModel(tuple(components[::-1]), evidence_log)


def _grid(known: float | None) -> np.ndarray:
    """Values of a, rising, beyond a known label accuracy: else the deviations of sources would have to explain it."""
    if known is None:
        return _GRID
    step = float(_GRID[1] - _GRID[0])
    return np.append(_GRID, np.arange(_GRID[-1] + step, logit(min(known, _MOST_KNOWN)) + _BEYOND_KNOWN, step))


def labels_beside(evidence: Evidence, anchors: Anchors, draw: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The parameters that explain the labels best if annotators are as good as `weights` says, float64 [parameters].

    Args:
        evidence: of n pairs.
        anchors: what is known to be true.
        draw: as for `fit_joint_model`.
        weights: float64 [F], of the features; they stay as they are.
    """
    from scipy.optimize import minimize

    layout = Layout(evidence.features.shape[1], max(len(evidence.source_names), 1))
    problem = _Problem(layout, evidence, anchors, draw)
    problem.mean[: layout.features] = weights
    problem.precision[layout.kappa, layout.kappa] = _KAPPA_SPREAD_BESIDE**-2

    def loss(rest: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = problem.value(np.append(weights, rest))
        return -value, -gradient[layout.features :]

    rest = minimize(loss, problem.mean[layout.features :], jac=True, method="BFGS", options={"gtol": 1e-5}).x
    return np.append(weights, rest)


def label_log_odds(evidence: Evidence, parameters: np.ndarray) -> np.ndarray:
    """float64 [n], nats: log-odds that each label is right under one draw of the parameters."""
    for_right, for_wrong = _log_joint(
        Layout(evidence.features.shape[1], max(len(evidence.source_names), 1)),
        parameters,
        evidence.features,
        evidence.sources,
    )[-2:]
    return np.asarray(for_right - for_wrong)


def label_probabilities(
    evidence: Evidence, draws: np.ndarray, rows: int = 16_384
) -> Iterator[tuple[slice, np.ndarray]]:
    """P(label right) of all pairs under every draw, in blocks: the rows, and float32 [rows, draws]."""
    size = evidence.features.shape[1]
    layout = Layout(size, max(len(evidence.source_names), 1))
    w, kappa, bias = draws[:, :size].T, draws[:, layout.kappa], draws[:, layout.length_bias]
    # e^a: [groups, draws]; with all exponents within these bounds, no product leaves the range of float32.
    by_group = np.exp(np.clip((draws[:, -1:] + draws[:, layout.deviations]).T, -20, 20)).astype(np.float32)
    for start in range(0, len(evidence), rows):
        part = slice(start, min(start + rows, len(evidence)))
        u = evidence.features[part] @ w
        common = kappa * u + evidence.length[part, None] * bias
        odds, inverse = (
            np.exp(np.clip(u, -40, 40, dtype=np.float32)),
            np.exp(np.clip(-common, -40, 40, dtype=np.float32)),
        )
        e_a = by_group[evidence.sources[part]]
        # sigmoid(a + c) / sigmoid(-a + c) = (1 + e^a e^-c) / (1 + e^-a e^-c)
        odds *= (1 + e_a * inverse) / (1 + inverse / e_a)
        yield part, odds / (1 + odds)


def _log_joint(
    layout: Layout, t: np.ndarray, x: np.ndarray, groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """u, a_g, c, and log P(label, z | x) for z = +1 and for z = -1."""
    u = x @ t[: layout.features]
    a = t[-1] + t[layout.deviations][groups]
    c = t[layout.kappa] * u + t[layout.length_bias] * x[:, -1]
    return u, a, c, log_expit(u) + log_expit(a + c), log_expit(-u) + log_expit(-a + c)


class _Problem:
    """The logarithm of the posterior of one fit, its mode and its curvature for a given a."""

    def __init__(self, layout: Layout, evidence: Evidence, anchors: Anchors, draw: np.ndarray) -> None:
        self.layout, self.trusted, self.anchors = layout, anchors.trusted, anchors
        unchecked = np.flatnonzero(anchors.checked == 0)
        count = max(len(unchecked), 1)
        together = _WEIGHT_BESIDE_CHECKED if anchors.pairs_known else WEIGHT_OF_UNCHECKED
        weight = min(1.0, together / count)
        unjudged = min(1.0 - weight, max(len(anchors.trusted) - together, 0.0) / count)
        if len(unchecked) > _FIT_PAIRS:
            weight, unjudged = weight * len(unchecked) / _FIT_PAIRS, unjudged * len(unchecked) / _FIT_PAIRS
            unchecked = unchecked[np.argpartition(draw[unchecked], _FIT_PAIRS)[:_FIT_PAIRS]]
        rows = np.concatenate([np.flatnonzero(anchors.checked), unchecked])
        self.x, self.groups, self.checked = evidence.features[rows], evidence.sources[rows], anchors.checked[rows]
        self.weight = np.where(self.checked == 0, weight, min(weight, 1.0))
        self.unjudged = np.where(self.checked == 0, unjudged, 0.0)
        self.known = None if anchors.label_accuracy is None else min(anchors.label_accuracy, _MOST_KNOWN)
        stands_for = np.where(self.checked == 0, count / max(len(unchecked), 1), 1.0)
        self.share = stands_for / max(stands_for.sum(), 1.0)  # of all pairs, that each row stands for
        self.without_verdicts = ~evidence.of(NET_VERDICT, JUDGE, POSITION)
        heard = (self.x[:, ~self.without_verdicts] != 0).any(axis=1)
        if not heard.any():  # then both likelihoods are one
            self.weight, self.unjudged = self.weight + self.unjudged, np.zeros_like(self.unjudged)
        elif not anchors.pairs_known and heard.mean() < _NEARLY_ALL and self.x[:, evidence.of(VOTER)].any():
            self.unjudged = np.where(self.checked == 0, self.weight + self.unjudged, self.unjudged)
            self.weight = np.where(self.checked == 0, 0.0, self.weight)
        self.mean, self.precision = prior(
            layout, evidence, anchored=anchors.enough, trusted=len(anchors.trusted) >= LEAST_TRUSTED
        )

    def value(self, t: np.ndarray) -> tuple[float, np.ndarray]:
        """Log posterior, and its gradient."""
        layout = self.layout
        value, gradient = self._labels(t, self.x, self.weight, self.checked, self.known)
        if self.unjudged.any():
            more, slope = self._labels(t, self.x * self.without_verdicts, self.unjudged, np.zeros_like(self.checked))
            value, gradient = value + more, gradient + slope
        if len(self.trusted):
            known = self.trusted @ t[: layout.features]
            value += float(log_expit(known).sum())
            gradient[: layout.features] += self.trusted.T @ expit(-known)
        if self.anchors.contradictions and self.anchors.auditor_accuracy is None:
            auditor = t[layout.auditor]
            value += self.anchors.contradictions * float(log_expit(auditor) + log_expit(-auditor))
            gradient[layout.auditor] += self.anchors.contradictions * float(expit(-auditor) - expit(auditor))
        off = t - self.mean
        return value - 0.5 * float(off @ self.precision @ off), gradient - self.precision @ off

    def _labels(
        self, t: np.ndarray, x: np.ndarray, weight: np.ndarray, checked: np.ndarray, known: float | None = None
    ) -> tuple[float, np.ndarray]:
        """Log likelihood of labels, weighted, of the answers about checked ones, and of a known label accuracy.

        With its gradient.
        """
        layout = self.layout
        u, a, c, right, wrong = _log_joint(layout, t, x, self.groups)
        total, q = np.logaddexp(right, wrong), expit(right - wrong)
        answers, by_odds, by_auditor = self._answers(right - wrong, checked, float(t[layout.auditor]))
        value = float(weight @ total) + answers
        if known is not None and len(q):
            # The mean of q by logarithms: near 1 it is rounded to 1, and then nothing says which way it moves.
            log_q, log_other = log_expit(right - wrong), log_expit(wrong - right)
            mean, other = logsumexp(log_q, b=self.share), logsumexp(log_other, b=self.share)
            off = float(mean - other - logit(known)) / _KNOWN_SPREAD
            value -= 0.5 * off**2
            slopes = np.exp(log_q + log_other - mean) + np.exp(log_q + log_other - other)
            by_odds -= off / _KNOWN_SPREAD * self.share * slopes
        by_right, by_wrong = weight * q + by_odds, weight * (1 - q) - by_odds
        su, sp, sm = expit(u), expit(-(a + c)), expit(a - c)
        d_c = by_right * sp + by_wrong * sm
        d_a = by_right * sp - by_wrong * sm
        d_u = by_right * (1 - su) - by_wrong * su + d_c * t[layout.kappa]
        gradient = np.zeros(layout.size)
        gradient[: layout.features] = x.T @ d_u
        gradient[layout.kappa], gradient[layout.length_bias] = u @ d_c, x[:, -1] @ d_c
        gradient[layout.deviations] = np.bincount(self.groups, d_a, layout.groups)
        gradient[layout.auditor] = by_auditor
        gradient[-1] = d_a.sum()
        return value, gradient

    def _answers(self, odds: np.ndarray, lead: np.ndarray, auditor: float) -> tuple[float, np.ndarray, float]:
        """Log P(answers of an audit), and its derivatives by the log-odds of z and by those of the auditor.

        With accuracy A, k answers for a label and m against it have the probability (A (1 - A))^min(k, m) times that of
        k - m answers alone: q A^(k - m) + (1 - q) (1 - A)^(k - m) if that is positive. So answers that contradict each
        other say nothing of z, and are counted where the likelihood is put together.

        Args:
            odds: float64 [n], log-odds of z.
            lead: int [n], k - m.
            auditor: log-odds of A, where that is estimated.
        """
        fixed = self.anchors.auditor_accuracy
        log_right, log_wrong = log_expit([auditor, -auditor]) if fixed is None else np.log([fixed, 1 - fixed])
        by_odds, where = np.zeros(len(odds)), np.flatnonzero(lead)
        sign, count, z = np.sign(lead[where]), np.abs(lead[where]), odds[where]
        if_so, if_not = log_expit(sign * z) + count * log_right, log_expit(-sign * z) + count * log_wrong
        responsible = expit(if_so - if_not)  # probability that the answers are right, given them
        by_odds[where] = sign * (responsible - expit(sign * z))
        error = float(np.exp(log_wrong))
        by_auditor = float(count @ (responsible - (1 - error))) if fixed is None else 0.0
        return float(np.logaddexp(if_so, if_not).sum()), by_odds, by_auditor

    def mode(self, start: np.ndarray, a: float) -> tuple[np.ndarray, float]:
        """The parameters that are most probable for this a, and the log posterior there."""
        from scipy.optimize import minimize  # half a second, which programs that fit nothing save

        def loss(rest: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient = self.value(np.append(rest, a))
            return -value, -gradient[:-1]

        # Not L-BFGS-B: its small matrices go to a threaded library, which takes longer to start than to compute.
        found = minimize(loss, start[:-1], jac=True, method="BFGS", options={"gtol": 1e-5})
        return np.append(found.x, a), -float(found.fun)

    def curvature(self, mode: np.ndarray) -> np.ndarray:
        """Negative second derivatives by all parameters but a, float64 [parameters - 1, parameters - 1]."""
        steps = _STEP * np.eye(len(mode))[:-1]
        rows = [(self.value(mode - step)[1] - self.value(mode + step)[1])[:-1] / (2 * _STEP) for step in steps]
        return (np.array(rows) + np.array(rows).T) / 2
