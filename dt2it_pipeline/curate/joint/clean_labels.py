"""How probable it is that all labels of a source are right, and the disputed ones errors of the annotators.

Voters and judges dispute some right labels, too. How many, known pairs show: audited and trusted ones, whose better
side is known. A label is disputed if its other side is more probable. Two hypotheses explain the disputed labels of a
source: all labels are right, and the annotators err (e is how often they dispute a right label); or a share w of them
is wrong, too, and a share e + w (1 - 2 e) is disputed. Before any data, either is as probable. e has a uniform prior,
and the known pairs say what it is; w has the prior of the joint model.

Of an audited pair it counts whether its label is disputed and whether the answer is against it, both at once. If all
labels are right, either is an error, and they fall together by chance alone. If a label is wrong, both are as they
should be. An audit's own errors have their prior. How many labels the answers are against, whatever is disputed, tells
the hypotheses apart a second way, and the one that speaks more for wrong labels counts, since labels that are wrong
where annotators err are not disputed.

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
_ERRORS = expit(np.arange(-9.0, 9.01, 0.1))  # shares of right labels that annotators dispute
_QUANTILES = 32  # of the priors of label accuracy, of an auditor's errors and of the difference to trusted pairs


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
    of_source, pairs = (
        np.bincount(evidence.sources[which], minlength=groups) for which in (disputed, anchors.checked == 0)
    )
    asked = np.flatnonzero(anchors.checked)
    against = anchors.checked[asked] < 0
    views = _views(evidence, np.concatenate([evidence.features[asked], anchors.trusted]), disputed)
    answers, errors = np.zeros((groups, 2, 2)), np.zeros(groups)
    for source in range(groups):
        among = _disputed(evidence, views, source, draws)
        own = evidence.sources[asked] == source
        np.add.at(answers[source], (among[: len(asked)][own].astype(int), against[own].astype(int)), 1)
        errors[source] = among[len(asked) :].sum()
    trusted, usual = len(anchors.trusted), float(of_source @ errors / of_source.sum())
    together = _clean(of_source.sum(), pairs.sum(), answers.sum(axis=0), usual, trusted)
    single = [_clean(*each, trusted) for each in zip(of_source, pairs, answers, errors, strict=True)]
    return np.maximum(single, together)


def _clean(disputed: int, pairs: int, answers: np.ndarray, errors: float, trusted: int) -> float:
    """Probability that all of these labels are right.

    Args:
        disputed: unchecked labels that are less probable than their other side.
        pairs: of how many.
        answers: float64 [2, 2], checked pairs by whether their label is disputed, and by whether the answer is against
            it.
        errors: trusted pairs that would be disputed although their label is right.
        trusted: of how many.
    """
    e, auditor, w = _ERRORS[:, None, None], expit(-_quantiles(*AUDITOR))[None, :, None], expit(-_quantiles(*LABEL))
    of_trusted = expit(logit(_ERRORS[:, None]) + _quantiles(0.0, TRANSFER))
    of_e = np.log(_ERRORS * (1 - _ERRORS))  # the uniform prior, since the grid is one of log-odds
    of_e += logsumexp(_log_binomial(errors, trusted, of_trusted), axis=1)

    def log_evidence(wrong: np.ndarray) -> float:
        """Of so large shares of wrong labels, all as probable."""
        log = of_e[:, None, None] + _log_binomial(disputed, pairs, e + wrong * (1 - 2 * e))
        if answers.any():
            log = log + _log_answers(answers, e, auditor, wrong)
        return float(logsumexp(log)) - np.log(len(wrong))

    by_disputes = log_evidence(np.zeros(1)) - log_evidence(w)
    if not answers.any():
        return float(expit(logit(_CLEAN) + by_disputes))
    found_wrong = w * (1 - auditor[0]) + (1 - w) * auditor[0]
    against, count = answers[:, 1].sum(), answers.sum()
    answered_right = logsumexp(_log_binomial(against, count, auditor[0]))
    answered_wrong = logsumexp(_log_binomial(against, count, found_wrong)) - np.log(len(w))
    return float(expit(logit(_CLEAN) + min(by_disputes, answered_right - answered_wrong)))


def _log_answers(answers: np.ndarray, e: np.ndarray, auditor: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Log-likelihood of the checked pairs, up to a constant.

    Args:
        answers: as for `_clean`.
        e: [E, 1, 1], how often annotators dispute a right label.
        auditor: [1, A, 1], how often an answer is wrong.
        wrong: [W], shares of wrong labels.

    Returns:
        float64 [E, A, W].
    """
    weight, log = min(1.0, _MOST / answers.sum()), np.zeros(())
    for disputed, against in np.ndindex(2, 2):
        of_right = (e if disputed else 1 - e) * (auditor if against else 1 - auditor)
        of_wrong = (1 - e if disputed else e) * (1 - auditor if against else auditor)
        log = log + weight * answers[disputed, against] * np.log((1 - wrong) * of_right + wrong * of_wrong)
    return log


def _quantiles(mean: float, spread: float) -> np.ndarray:
    """Evenly spaced quantiles of a normal distribution."""
    from scipy.stats import norm  # slow to import, which programs that test nothing save

    return np.asarray(norm.ppf((np.arange(_QUANTILES) + 0.5) / _QUANTILES, mean, spread))


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
