"""How probable it is that all labels of a source are right, and the disputed ones errors of the annotators.

Voters and judges dispute some right labels, too. How many, known pairs show: audited and trusted ones, whose better
side is known. A label is disputed if its other side is more probable. Two hypotheses explain the disputed labels of a
source: all labels are right, and the annotators err (e is how often they dispute a right label); or a share w of them
is wrong, too, and a share e + w (1 - 2 e) is disputed. Before any data, either is as probable. e has a uniform prior,
and the known pairs say what it is; w has the prior of the joint model. An audit tells the hypotheses apart a second
way: by how many labels it found wrong, where its own errors have their prior. The one that speaks more for wrong
labels counts, since labels that are wrong where annotators err are not disputed.

A label is flipped only if it is worth it although all labels may be right. With the probability P of that, its other
side is better with (1 - P) (1 - p), where p is what the joint model says, which knows of no clean labels. So the more
certain a flip would be otherwise, the more doubt it bears. A test with a fixed level would flip many labels at once
where it errs.

All pairs are looked at together, too, and the greater probability counts, so that many small sources do not give many
chances to err (as in closed testing, Marcus, Peritz and Gabriel 1976).

The known pairs were used to fit the model, so that it errs a little less on them than on others. Trusted pairs may be
easier than the source's: so the log-odds of e may differ there, by a normal number. An audit's pairs are the source's.
This says that there are wrong labels, not which: that is the posterior's part.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.special import expit, logit, logsumexp

from dt2it_pipeline.curate.joint.evidence import JUDGE, NET_VERDICT, POSITION, Evidence
from dt2it_pipeline.curate.joint.model import Anchors, label_probabilities
from dt2it_pipeline.curate.joint.priors import AUDITOR, LABEL

_CLEAN = 0.5  # probability that all labels of a source are right, before any data
TRANSFER = 0.5  # spread of log-odds: annotators err by 0.37 to 2.7 times the odds on the pairs to be cleaned
_MOST = 1_000  # pairs; more count as so many with the same shares: they would magnify what the hypotheses leave out
_ERRORS = expit(np.arange(-9.0, 9.01, 0.05))  # shares of right labels that annotators dispute
_QUANTILES = 64  # of the priors of label accuracy and of an auditor's errors
_FEW_QUANTILES = 31  # of the difference to trusted pairs


def clean_probabilities(evidence: Evidence, anchors: Anchors, draws: np.ndarray, disputed: np.ndarray) -> np.ndarray:
    """Probability that all labels of a source are right, float64 [groups]; 0 where no 15 checked or 50 trusted are.

    Args:
        evidence: of n pairs.
        anchors: with the known pairs.
        draws: float64 [draws, parameters], of the posterior.
        disputed: bool [n], unchecked pairs whose label is less probable than its other side.
    """
    groups = max(len(evidence.source_names), 1)
    if not anchors.pairs_known or not disputed.any():
        return np.zeros(groups)
    unchecked = anchors.checked == 0
    of_source, pairs = (np.bincount(evidence.sources[which], minlength=groups) for which in (disputed, unchecked))
    asked = np.flatnonzero(anchors.checked)
    wrong = np.bincount(evidence.sources[asked[anchors.checked[asked] < 0]], minlength=groups)
    answers = np.bincount(evidence.sources[asked], minlength=groups)
    truth = np.sign(anchors.checked[asked])[:, None]
    known = np.concatenate([evidence.features[asked] * truth, anchors.trusted])
    views = _views(evidence, known, disputed)
    errors = np.zeros((groups, 2))
    for source in np.flatnonzero(of_source):
        among = _disputed(evidence, views, source, draws)
        errors[source] = among[: len(asked)].sum(), among[len(asked) :].sum()
    usual = of_source @ errors / of_source.sum()
    sizes = np.array([len(asked), len(anchors.trusted)])
    together = _clean(of_source.sum(), pairs.sum(), usual, sizes, wrong.sum(), answers.sum())
    single = [_clean(of_source[k], pairs[k], errors[k], sizes, wrong[k], answers[k]) for k in range(groups)]
    return np.maximum(single, together)


def _clean(disputed: int, pairs: int, errors: np.ndarray, known: np.ndarray, wrong: int, answers: int) -> float:
    """Probability that all of these labels are right.

    Args:
        disputed: labels that are less probable than their other side.
        pairs: of how many.
        errors: float64 [2], audited and trusted pairs that would be disputed although their label is right.
        known: [2], of how many.
        wrong: labels that an audit found wrong.
        answers: of how many.
    """
    e, w = _ERRORS[:, None], expit(-_quantiles(*LABEL))
    of_trusted = expit(logit(e) + _quantiles(0.0, TRANSFER, _FEW_QUANTILES))
    of_e = np.log(_ERRORS * (1 - _ERRORS))  # the uniform prior, since the grid is one of log-odds
    of_e += _log_binomial(errors[0], known[0], _ERRORS)
    of_e += logsumexp(_log_binomial(errors[1], known[1], of_trusted), axis=1)
    all_right = logsumexp(of_e + _log_binomial(disputed, pairs, _ERRORS))
    some_wrong = logsumexp(of_e[:, None] + _log_binomial(disputed, pairs, e + w * (1 - 2 * e))) - np.log(len(w))
    by_disputes = all_right - some_wrong
    if not answers:
        return float(expit(logit(_CLEAN) + by_disputes))
    auditor = expit(-_quantiles(*AUDITOR))
    found_wrong = w * (1 - auditor[:, None]) + (1 - w) * auditor[:, None]
    answered_right = logsumexp(_log_binomial(wrong, answers, auditor))
    answered_wrong = logsumexp(_log_binomial(wrong, answers, found_wrong)) - np.log(len(w))
    return float(expit(logit(_CLEAN) + min(by_disputes, answered_right - answered_wrong)))


def _quantiles(mean: float, spread: float, count: int = _QUANTILES) -> np.ndarray:
    """Evenly spaced quantiles of a normal distribution."""
    from scipy.stats import norm  # slow to import, which programs that test nothing save

    return np.asarray(norm.ppf((np.arange(count) + 0.5) / count, mean, spread))


def _log_binomial(found: float, count: float, share: np.ndarray) -> np.ndarray:
    """Log-likelihood of shares, up to a constant, if so many of `count` pairs were found."""
    weight = min(1.0, _MOST / max(count, 1))
    return np.asarray(weight * (found * np.log(share) + (count - found) * np.log1p(-share)))


def _views(evidence: Evidence, known: np.ndarray, disputed: np.ndarray) -> list[np.ndarray]:
    """Features of known pairs, with their verdicts, without them, or both.

    Known pairs are all put to judges, others where in doubt. So they count with their verdicts if disputed pairs have
    verdicts, without them if disputed pairs have none, and if some have, either way.
    """
    verdicts = evidence.of(NET_VERDICT, JUDGE, POSITION)
    of_disputed = evidence.features[np.ix_(np.flatnonzero(disputed), np.flatnonzero(verdicts))]
    judged = (of_disputed != 0).any(axis=1)
    return [known] * bool(judged.any()) + [known * ~verdicts] * bool(not judged.all())


def _disputed(evidence: Evidence, views: list[np.ndarray], source: int, draws: np.ndarray) -> np.ndarray:
    """Known pairs that would be disputed, seen either way, if their better side were a label of the source: bool."""
    least = np.ones(len(views[0]))
    for features in views:
        groups, seen = np.full(len(features), source), np.ones(len(features), dtype=bool)
        given = replace(evidence, features=features, sources=groups, seen=seen)
        blocks = [p.mean(axis=1, dtype=np.float64) for _, p in label_probabilities(given, draws)]
        least = np.minimum(least, np.concatenate(blocks))
    return least < 0.5
