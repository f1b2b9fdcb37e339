"""What follows from the joint model: keep, flip or drop every pair, and which pairs are worth a judge call.

A kept pair whose label is right with probability p is worth U = p - c (1 - p): a wrong label costs as much as c right
ones bring. A pair is kept if that is not negative, so from p = c / (1 + c) on; `keep_probability` names that bound
directly. A label is flipped if there is an anchor and its other side is worth keeping, although all labels of its
source may be right (`clean_labels`).

Without an anchor nothing is flipped. How often labels and annotators agree is seen, which of them errs is not, and a
flip would be a guess. A drop costs a pair, and no accuracy. The level of p is assumed then, too, so that only pairs are
dropped that the evidence speaks against. Where the evidence goes with the labels no more than by chance, all pairs stay
as they are. Of the pairs to drop, only so many are dropped that their labels are surely less often right than all are:
to drop a few labels that are right after all would be a loss.

Fifty answers, and fewer still, leave much open, and a decision by them may be worse than the one without them. So pairs
that nobody checked are decided by an audit only where the posterior is sure that little is lost by it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv, expit, logit

from dt2it_pipeline.curate.joint.clean_labels import clean_probabilities
from dt2it_pipeline.curate.joint.evidence import JUDGE, NET_VERDICT, VOTER, Evidence
from dt2it_pipeline.curate.joint.model import (
    LEAST_CHECKED,
    Anchors,
    JointModel,
    label_probabilities,
)
from dt2it_pipeline.curate.joint.priors import Layout
from dt2it_pipeline.curate.joint.sums import BySource, Estimate, Sum

KEPT, FLIPPED, DROPPED = 1, -1, 0
_STANDARD_ERRORS = 2.0
_ONE_SIDED = 1.282  # standard deviations: 90%
SURE = 0.9  # that deciding by an audit is not worse than without it by more than is tolerable
TOLERABLE = 0.03  # right labels per pair that nobody checked
_DRAWS = 128
_MANY, _FEWER_DRAWS = 200_000, 48
_VERDICT_ALONE = 1.3  # log-odds of one verdict where none was given yet
_LEAST = 1e-6  # probabilities beyond count as this, so that log-odds are finite
_BLOCK = 1 << 16  # pairs whose probabilities under all draws are held at a time
_AT_ONCE = 1 << 18  # pairs whose features are copied at a time; a multiple of the blocks of `label_probabilities`


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
        not_flipped: how many pairs are dropped whose label would be flipped if it were more certain that its source has
            wrong labels.
        as_without_audit: pairs that nobody checked are decided as without the audit.
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
    as_without_audit: bool = False


def decide(
    evidence: Evidence,
    anchors: Anchors,
    model: JointModel,
    bound: float,
    seed: int = 0,
    without_audit: Decisions | None = None,
) -> Decisions:
    """Decide about all pairs.

    Args:
        evidence: of n pairs.
        anchors: as the model was fitted to. A checked pair ends as it was answered, unless all other evidence is
            against the answer, and both together leave that side less probable than a kept one has to be: then it is
            dropped.
        model: the fitted model.
        bound: least probability of a kept label, 0.5 to 1.
        seed: of the draws.
        without_audit: what was decided without the answers of the audit; None: there is none.
    """
    anchored = anchors.enough
    agreement, compared, informative = _agreement(evidence, anchors, model)
    draws = model.draws(_DRAWS if len(evidence) <= _MANY else _FEWER_DRAWS, seed)
    outcome = np.full(len(evidence), KEPT)
    label_right = np.empty(len(evidence))
    groups = {name: Sum.of(len(draws)) for name in (KEPT, FLIPPED, DROPPED)}
    neutral = _without_evidence(evidence, draws)
    auditor = draws[:, Layout(evidence.features.shape[1], neutral.size).auditor]

    def settle(rows: slice | np.ndarray, p: np.ndarray, where: np.ndarray) -> None:
        checked = anchors.checked[rows]
        known = checked != 0
        opposed = np.sign(checked[known]) * (p[known].mean(axis=1, dtype=np.float64) - 0.5) < 0
        odds = logit(np.clip(p[known], _LEAST, 1 - _LEAST, dtype=np.float64))
        p[known] = expit(odds + checked[known, None] * auditor)  # and what was answered, as far as it can be believed
        mean = p.mean(axis=1, dtype=np.float64)
        made = np.full(len(mean), KEPT)
        if informative:
            against = mean < neutral[evidence.sources[rows]]
            made[mean < bound if anchors.pairs_known else (mean < bound) & against] = DROPPED
            if anchored:
                made[1 - mean >= bound] = FLIPPED
        believed = np.where(checked[known] > 0, mean[known], 1 - mean[known])
        answered = np.where(checked[known] > 0, KEPT, FLIPPED)
        made[known] = np.where(opposed & (believed < bound), DROPPED, answered)
        outcome[rows], label_right[rows] = made, mean
        for name, group in groups.items():
            group.add(p, mean, where & (made == name))

    silent = ~evidence.seen & (anchors.checked == 0)
    if not evidence.seen.any():  # then there are no others to be like
        silent[:] = False
    by_source = BySource.of(neutral.size, len(draws))
    for part, p in label_probabilities(evidence, draws):
        settle(part, p, ~silent[part])
        by_source.add(p, evidence.sources[part], evidence.seen[part])
    for rows in _blocks(np.flatnonzero(silent)):
        settle(rows, by_source.mean(evidence.sources[rows]), np.ones(len(rows), dtype=bool))
    everything = groups[KEPT] + groups[FLIPPED] + groups[DROPPED]

    def summed(places: np.ndarray) -> Sum:
        total = Sum.of(len(draws))
        for rows in _blocks(places[~silent[places]]):
            for part, p in label_probabilities(evidence.rows(rows), draws):
                total.add(p, label_right[rows[part]], np.ones(len(p), dtype=bool))
        for rows in _blocks(places[silent[places]]):
            total.add(by_source.mean(evidence.sources[rows]), label_right[rows], np.ones(len(rows), dtype=bool))
        return total

    flipped = (outcome == FLIPPED) & (anchors.checked == 0)
    disputed = (label_right < 0.5) & (anchors.checked == 0)
    clean = clean_probabilities(evidence, anchors, draws, disputed)
    unexplained = np.flatnonzero(flipped & ((1 - clean[evidence.sources]) * (1 - label_right) < bound))
    outcome[unexplained] = DROPPED
    groups[FLIPPED] = groups[FLIPPED] - summed(unexplained)
    stay = _not_surely_below(label_right, (outcome == DROPPED) & (anchors.checked == 0), everything, _ONE_SIDED)
    outcome[stay] = KEPT
    groups[KEPT] = groups[KEPT] + summed(stay)
    retained, not_flipped = len(stay), int((outcome[unexplained] == DROPPED).sum())
    as_without = without_audit is not None and not _surely_no_worse(
        without_audit.outcome, outcome, anchors.checked == 0, summed, bound / (1 - bound)
    )
    if without_audit is not None and as_without:
        for old, new, places in _changes(without_audit.outcome, outcome, anchors.checked == 0):
            moved = summed(places)
            groups[new], groups[old] = groups[new] - moved, groups[old] + moved
            outcome[places] = old
        retained, not_flipped = without_audit.retained, without_audit.not_flipped
    before, after = everything.estimate(seed), (groups[KEPT] + groups[FLIPPED].turned()).estimate(seed)
    probability = np.where(outcome == FLIPPED, 1 - label_right, label_right)
    seen = (anchored, informative, agreement, compared, retained, not_flipped, as_without)
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


def _changes(old: np.ndarray, new: np.ndarray, where: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
    """Outcomes before and after of the marked pairs that end otherwise, and the places of those with both."""
    for before in (KEPT, FLIPPED, DROPPED):
        for after in (KEPT, FLIPPED, DROPPED):
            places = np.flatnonzero((old == before) & (new == after) & where)
            if before != after and len(places):
                yield before, after, places


def _surely_no_worse(
    old: np.ndarray, new: np.ndarray, where: np.ndarray, summed: Callable[[np.ndarray], Sum], cost: float
) -> bool:
    """Whether new outcomes are not worth less than old ones, but for what is tolerable, with a probability of 90%.

    Args:
        old: outcomes, int [n].
        new: the same.
        where: bool [n], pairs that count: those that nobody checked, since the others end as they were answered, or are
            dropped.
        summed: expected right labels of the pairs at some places.
        cost: of a wrong label that is kept, in right ones.
    """
    gain: np.ndarray | float = 0.0
    for before, after, places in _changes(old, new, where):
        right = summed(places)
        worth = {
            KEPT: (1 + cost) * right.right - cost * right.size,
            FLIPPED: (1 + cost) * right.turned().right - cost * right.size,
            DROPPED: np.zeros_like(right.right),
        }
        gain = gain + worth[after] - worth[before]
    return float(np.mean(gain >= -TOLERABLE * where.sum())) >= SURE


def _not_surely_below(label_right: np.ndarray, dropped: np.ndarray, everything: Sum, deviations: float) -> np.ndarray:
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
