"""What follows from the joint model: keep, flip or drop every pair, and which pairs are worth a judge call.

A kept pair whose label is right with probability p is worth U = p - c (1 - p): a wrong label costs as much as c right
ones bring. A pair is kept if that is not negative, so from p = c / (1 + c) on; `keep_probability` names that bound
directly. A label is flipped if its other side is worth keeping, there is an anchor, and not all labels of its source
can be right (`clean_labels`).

Without an anchor nothing is flipped. How often labels and annotators agree is seen, which of them errs is not, and a
flip would be a guess. A drop costs a pair, and no accuracy. The level of p is assumed then, too, so that only pairs are
dropped that the evidence speaks against. Where the evidence goes with the labels no more than by chance, all pairs stay
as they are. Of the pairs to drop, only so many are dropped that their labels are surely less often right than all are:
to drop a few labels that are right after all would be a loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv, expit, logit

from dt2it_pipeline.curate.joint.clean_labels import sources_to_flip
from dt2it_pipeline.curate.joint.evidence import JUDGE, NET_VERDICT, VOTER, Evidence
from dt2it_pipeline.curate.joint.model import (
    LEAST_CHECKED,
    Anchors,
    JointModel,
    label_probabilities,
)
from dt2it_pipeline.curate.joint.priors import Layout

KEPT, FLIPPED, DROPPED = 1, -1, 0
_STANDARD_ERRORS = 2.0
_ONE_SIDED = 1.282  # standard deviations: 90%
_DRAWS = 128
_MANY, _FEWER_DRAWS = 200_000, 48
_VERDICT_ALONE = 1.3  # log-odds of one verdict where none was given yet
_LEAST = 1e-6  # probabilities beyond count as this, so that log-odds are finite
_BLOCK = 1 << 16  # pairs whose probabilities under all draws are held at a time
_AT_ONCE = 1 << 18  # pairs whose features are copied at a time; a multiple of the blocks of `label_probabilities`


@dataclass(frozen=True)
class Estimate:
    """A number with its interval.

    Attributes:
        estimate: its mean.
        low, high: bounds that hold it with a probability of 95%, by the model.
    """

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return "not known" if np.isnan(self.estimate) else f"{self.estimate:.1%} ({self.low:.1%} to {self.high:.1%})"


UNKNOWN = Estimate(np.nan, np.nan, np.nan)


@dataclass(frozen=True)
class Decisions:
    """What becomes of n pairs.

    Attributes:
        outcome: int [n]: KEPT, FLIPPED or DROPPED.
        label_right: float64 [n], probability that the given label is right.
        probability: float64 [n], that the chosen side after the decision is the better one.
        before: label accuracy of all pairs as given.
        after: label accuracy of the kept and flipped pairs; not a number where there are none.
        anchored: whether labels could be flipped.
        informative: whether the evidence goes with the labels, or with what was checked, beyond chance.
        agreement: share of pairs with evidence whose evidence is for the label.
        compared: how many pairs have evidence for or against their label.
        retained: how many pairs stay only because dropping them may be a pure loss.
        not_flipped: how many pairs are dropped whose label would be flipped if it were shown that its source has wrong
            labels.
    """

    outcome: np.ndarray
    label_right: np.ndarray
    probability: np.ndarray
    before: Estimate
    after: Estimate
    anchored: bool
    informative: bool
    agreement: float
    compared: int
    retained: int = 0
    not_flipped: int = 0


def decide(evidence: Evidence, anchors: Anchors, model: JointModel, bound: float, seed: int = 0) -> Decisions:
    """Decide about all pairs.

    Args:
        evidence: of n pairs.
        anchors: as the model was fitted to; checked pairs end as they were answered.
        model: the fitted model.
        bound: least probability of a kept label, 0.5 to 1.
        seed: of the draws.
    """
    anchored = anchors.enough
    agreement, compared, informative = _agreement(evidence, anchors, model)
    draws = model.draws(_DRAWS if len(evidence) <= _MANY else _FEWER_DRAWS, seed)
    outcome = np.full(len(evidence), KEPT)
    label_right = np.empty(len(evidence))
    groups = {name: _Sum.of(len(draws)) for name in (KEPT, FLIPPED, DROPPED)}
    neutral = _without_evidence(evidence, draws)
    auditor = draws[:, Layout(evidence.features.shape[1], neutral.size).auditor]

    def settle(rows: slice | np.ndarray, p: np.ndarray, where: np.ndarray) -> None:
        checked = anchors.checked[rows]
        known = checked != 0
        odds = logit(np.clip(p[known], _LEAST, 1 - _LEAST, dtype=np.float64))
        p[known] = expit(odds + checked[known, None] * auditor)  # and what was answered, as far as it can be believed
        mean = p.mean(axis=1, dtype=np.float64)
        made = np.full(len(mean), KEPT)
        if informative:
            against = mean < neutral[evidence.sources[rows]]
            made[mean < bound if anchors.pairs_known else (mean < bound) & against] = DROPPED
            if anchored:
                made[1 - mean >= bound] = FLIPPED
        made[known] = np.where(checked[known] > 0, KEPT, FLIPPED)
        outcome[rows], label_right[rows] = made, mean
        for name, group in groups.items():
            group.add(p, mean, where & (made == name))

    silent = ~evidence.seen & (anchors.checked == 0)
    if not evidence.seen.any():  # then there are no others to be like
        silent[:] = False
    by_source = _BySource.of(neutral.size, len(draws))
    for part, p in label_probabilities(evidence, draws):
        settle(part, p, ~silent[part])
        by_source.add(p, evidence.sources[part], evidence.seen[part])
    for rows in _blocks(np.flatnonzero(silent)):
        settle(rows, by_source.mean(evidence.sources[rows]), np.ones(len(rows), dtype=bool))
    everything = groups[KEPT] + groups[FLIPPED] + groups[DROPPED]

    def summed(places: np.ndarray) -> _Sum:
        total = _Sum.of(len(draws))
        for rows in _blocks(places[~silent[places]]):
            for part, p in label_probabilities(evidence.rows(rows), draws):
                total.add(p, label_right[rows[part]], np.ones(len(p), dtype=bool))
        for rows in _blocks(places[silent[places]]):
            total.add(by_source.mean(evidence.sources[rows]), label_right[rows], np.ones(len(rows), dtype=bool))
        return total

    flipped = (outcome == FLIPPED) & (anchors.checked == 0)
    disputed = (label_right < 0.5) & (anchors.checked == 0)
    with_wrong_labels = sources_to_flip(evidence, anchors, draws, disputed)
    unexplained = np.flatnonzero(flipped & ~with_wrong_labels[evidence.sources])
    outcome[unexplained] = DROPPED
    groups[FLIPPED] = groups[FLIPPED] - summed(unexplained)
    stay = _not_surely_below(label_right, outcome == DROPPED, everything, _ONE_SIDED)
    outcome[stay] = KEPT
    groups[KEPT] = groups[KEPT] + summed(stay)
    retained = len(stay)
    before, after = everything.estimate(seed), (groups[KEPT] + groups[FLIPPED].turned()).estimate(seed)
    probability = np.where(outcome == FLIPPED, 1 - label_right, label_right)
    seen = (anchored, informative, agreement, compared, retained, int((outcome[unexplained] == DROPPED).sum()))
    return Decisions(outcome, label_right, probability, before, after, *seen)


def as_given(evidence: Evidence, anchors: Anchors) -> Decisions:
    """All pairs stay as they are, and the checked ones alone say how right their labels are."""
    right, wrong = int((anchors.checked > 0).sum()), int((anchors.checked < 0).sum())
    share = (right + 0.5) / (right + wrong + 1)
    low, high = (float(betaincinv(right + 0.5, wrong + 0.5, each)) for each in (0.025, 0.975))
    accuracy, probability = Estimate(share, low, high), np.full(len(evidence), share)
    outcome = np.full(len(evidence), KEPT)
    return Decisions(outcome, probability, probability, accuracy, accuracy, False, False, 0.5, 0)


def verdict_gain(
    evidence: Evidence, model: JointModel, label_right: np.ndarray, asked: np.ndarray, cost: float, *, may_flip: bool
) -> np.ndarray:
    """What one judge call is expected to bring, float64 [n], in right labels; less than 0 where it costs more.

    Args:
        evidence: of n pairs.
        model: the fitted model; it says how far a verdict can be believed.
        label_right: float64 [n], probability that each label is right.
        asked: bool [n], pairs that have verdicts: they are not asked again.
        cost: price of a wrong label that is kept, in right ones.
        may_flip: whether a label can be flipped.
    """
    single = np.flatnonzero(evidence.of(NET_VERDICT) & (evidence.levels == 1))
    draws = model.draws(2 * len(model.components), 0)
    evidence_of_one = float(draws[:, single].mean()) if len(single) else _VERDICT_ALONE
    accuracy = expit(max(evidence_of_one, 0.0))

    def worth(q: np.ndarray) -> np.ndarray:
        value = np.maximum(q - cost * (1 - q), 0.0)
        return np.maximum(value, (1 - q) - cost * q) if may_flip else value

    gain = np.full(len(label_right), -np.inf)
    for start in range(0, len(gain), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        p = np.clip(label_right[part], 1e-6, 1 - 1e-6)
        agrees = p * accuracy + (1 - p) * (1 - accuracy)
        after_for, after_against = p * accuracy / agrees, p * (1 - accuracy) / (1 - agrees)
        brings = agrees * worth(after_for) + (1 - agrees) * worth(after_against) - worth(p)
        gain[part] = np.where(asked[part], -np.inf, brings)
    return gain


def _agreement(evidence: Evidence, anchors: Anchors, model: JointModel) -> tuple[float, int, bool]:
    """Share of pairs whose evidence is for the label, how many there are, and whether it goes with truth or label."""
    annotators = evidence.of(VOTER, NET_VERDICT, JUDGE)
    weights = model.mean[: len(annotators)][annotators]
    u = np.empty(len(evidence))
    for start in range(0, len(u), _AT_ONCE):
        u[start : start + _AT_ONCE] = evidence.features[start : start + _AT_ONCE, annotators] @ weights
    heard = np.abs(u) > 1e-9
    for_label = float((u[heard] > 0).mean()) if heard.any() else 0.5
    count = int(heard.sum())
    informative = count > 0 and 2 * for_label - 1 > _STANDARD_ERRORS / np.sqrt(count)
    checked = heard & (anchors.checked != 0)
    if checked.sum() >= LEAST_CHECKED:
        right = float((np.sign(u[checked]) == np.sign(anchors.checked[checked])).mean())
        informative = informative or 2 * right - 1 > _STANDARD_ERRORS / np.sqrt(checked.sum())
    return for_label, count, bool(informative)


def _not_surely_below(label_right: np.ndarray, dropped: np.ndarray, everything: _Sum, deviations: float) -> np.ndarray:
    """Pairs that must stay, so that the labels that are dropped are surely less often right than all are.

    The most probably wrong ones are dropped, and as many as keep that sure by so many standard deviations. Only chance
    is counted, that of a few labels which all turn out right. Where annotators were no good, dropped labels would be as
    right as all are, and nothing but pairs would be lost.
    """
    places = np.flatnonzero(dropped)
    places = places[np.argsort(label_right[places], kind="stable")]
    p = label_right[places]
    gap = np.cumsum(everything.right.mean() / max(everything.size, 1) - p)
    sure = np.flatnonzero(gap > deviations * np.sqrt(np.cumsum(p * (1 - p))))
    return places[sure[-1] + 1 :] if len(sure) else places


def _blocks(places: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(places), _BLOCK):
        yield places[start : start + _BLOCK]


def _without_evidence(evidence: Evidence, draws: np.ndarray) -> np.ndarray:
    """float64 [groups], probability that a label of each source is right whose pair has no evidence."""
    groups = max(len(evidence.source_names), 1)
    bare = Evidence(
        np.zeros((groups, evidence.features.shape[1])),
        evidence.kinds,
        evidence.levels,
        evidence.names,
        np.arange(groups),
        evidence.source_names,
        np.zeros(groups, dtype=bool),
    )
    return np.concatenate([p.mean(axis=1, dtype=np.float64) for _, p in label_probabilities(bare, draws)])


@dataclass
class _BySource:
    """Mean P(label right) of the pairs of every source that have scores or verdicts.

    A pair without any is like the others of its source. One whose evidence is as strong on either side is a hard one.
    """

    right: np.ndarray
    pairs: np.ndarray

    @classmethod
    def of(cls, sources: int, draws: int) -> _BySource:
        """No pairs."""
        return cls(np.zeros((sources, draws)), np.zeros(sources))

    def add(self, p: np.ndarray, sources: np.ndarray, seen: np.ndarray) -> None:
        """Take in the pairs with scores or verdicts."""
        for source in np.unique(sources[seen]):
            these = seen & (sources == source)
            self.right[source] += p[these].sum(axis=0, dtype=np.float64)
            self.pairs[source] += these.sum()

    def mean(self, sources: np.ndarray) -> np.ndarray:
        """float64 [n, draws], for pairs of these sources; of a source without evidence, that of all."""
        everywhere = self.right.sum(axis=0) / max(self.pairs.sum(), 1)
        means = np.where(self.pairs[:, None] > 0, self.right / np.maximum(self.pairs, 1)[:, None], everywhere)
        return np.asarray(means[sources])


@dataclass
class _Sum:
    """Expected right labels of a group of pairs.

    Attributes:
        right: float64 [draws], sum of P(label right).
        variance: of the number of right labels, where the probabilities are known.
        size: pairs.
    """

    right: np.ndarray
    variance: float
    size: int

    @classmethod
    def of(cls, draws: int) -> _Sum:
        """No pairs."""
        return cls(np.zeros(draws), 0.0, 0)

    def add(self, p: np.ndarray, mean: np.ndarray, where: np.ndarray) -> None:
        """Take in the marked pairs: P(label right) under every draw, and its mean."""
        self.right += p[where].sum(axis=0, dtype=np.float64)
        self.variance += float((mean * (1 - mean))[where].sum())
        self.size += int(where.sum())

    def __add__(self, other: _Sum) -> _Sum:
        return _Sum(self.right + other.right, self.variance + other.variance, self.size + other.size)

    def __sub__(self, other: _Sum) -> _Sum:
        return _Sum(self.right - other.right, max(self.variance - other.variance, 0.0), self.size - other.size)

    def turned(self) -> _Sum:
        """The same pairs with their sides swapped."""
        return _Sum(self.size - self.right, self.variance, self.size)

    def accuracy(self, seed: int) -> np.ndarray:
        """float64 [64, draws], possible label accuracies: over the draws, and over which of the labels are right."""
        chance = np.random.default_rng(seed).standard_normal((64, 1)) * np.sqrt(self.variance)
        return np.clip((self.right + chance) / self.size, 0.0, 1.0)

    def estimate(self, seed: int) -> Estimate:
        """Label accuracy with its interval; not a number without pairs."""
        if not self.size:
            return Estimate(float("nan"), float("nan"), float("nan"))
        low, high = np.quantile(self.accuracy(seed), (0.025, 0.975))
        return Estimate(float(self.right.mean() / self.size), float(low), float(high))
