"""A test of each source: could all of its labels be right, and the disputed ones be errors of the annotators?

Voters and judges dispute some right labels, too. How many, known pairs show: audited and trusted ones, whose better
side is known. A label is disputed if its other side is more probable. The hypothesis for a source is that all of its
labels are right. Under it, the share of its labels that are disputed is the share of known pairs that would be disputed
if their right side were the label. No label of the source is flipped unless significantly more are disputed than that,
or an audit found wrong ones.

All pairs are tested together first, and a source only where that hypothesis is rejected, so that many small sources do
not give many chances to reject a true hypothesis (closed testing, Marcus, Peritz and Gabriel 1976).

The known share is itself measured on few pairs. k of m gives it the distribution Beta(k + 1, m - k), whose quantiles
are the upper confidence bounds of Clopper and Pearson (1934). So the number of disputed labels under the hypothesis
follows a beta-binomial distribution, and it is rejected where as many as observed have a probability below 5%.

The known pairs were used to fit the model, so that it errs a little less on them than on others. Trusted pairs that are
easier than the source's make its labels look worse than they are; an audit's cannot be. And the test says that there
are wrong labels, not which: that is the posterior's part.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.special import expit

from dt2it_pipeline.curate.joint.evidence import JUDGE, NET_VERDICT, POSITION, Evidence
from dt2it_pipeline.curate.joint.model import Anchors, label_probabilities
from dt2it_pipeline.curate.joint.priors import AUDITOR

_LEVEL = 0.05  # probability to reject a true hypothesis
_QUANTILES = 64  # of the prior of an auditor's errors


def sources_to_flip(evidence: Evidence, anchors: Anchors, draws: np.ndarray, disputed: np.ndarray) -> np.ndarray:
    """Sources whose labels cannot all be right, bool [groups]; all sources where no 15 checked or 50 trusted pairs are.

    Args:
        evidence: of n pairs.
        anchors: with the known pairs.
        draws: float64 [draws, parameters], of the posterior.
        disputed: bool [n], unchecked pairs whose label is less probable than its other side.
    """
    groups = max(len(evidence.source_names), 1)
    if not anchors.pairs_known or not disputed.any():
        return np.ones(groups, dtype=bool)
    unchecked = anchors.checked == 0
    of_source, pairs = (np.bincount(evidence.sources[which], minlength=groups) for which in (disputed, unchecked))
    asked = np.flatnonzero(anchors.checked)
    wrong = np.bincount(evidence.sources[asked[anchors.checked[asked] < 0]], minlength=groups)
    answers = np.bincount(evidence.sources[asked], minlength=groups)
    truth = np.sign(anchors.checked[asked])[:, None]
    known = np.concatenate([evidence.features[asked] * truth, anchors.trusted])
    views = _views(evidence, known, disputed)
    errors = np.zeros(groups)
    for source in np.flatnonzero(of_source):
        errors[source] = _disputed(evidence, views, source, draws)
    usual = float(errors @ of_source / of_source.sum())
    if not _rejected(of_source.sum(), pairs.sum(), usual, len(known), wrong.sum(), answers.sum()):
        return np.zeros(groups, dtype=bool)
    return np.array(
        [_rejected(of_source[k], pairs[k], errors[k], len(known), wrong[k], answers[k]) for k in range(groups)]
    )


def _rejected(disputed: int, pairs: int, errors: float, known: int, wrong: int, answers: int) -> bool:
    """Whether not all labels can be right: an audit found wrong ones, or annotators dispute too many.

    Args:
        disputed: labels that are less probable than their other side.
        pairs: of how many.
        errors: known pairs that would be disputed although their label is right.
        known: of how many.
        wrong: labels that an audit found wrong.
        answers: of how many.
    """
    from scipy.stats import betabinom, binom, norm  # slow to import, which programs that test nothing save

    # Of right labels an auditor calls some wrong. In how many, the prior of the auditor's errors says.
    mean, spread = AUDITOR
    auditor = expit(-norm.ppf((np.arange(_QUANTILES) + 0.5) / _QUANTILES, mean, spread))
    if binom.sf(wrong - 1, answers, auditor).mean() < _LEVEL:
        return True
    if errors >= known:  # all known pairs are disputed: so may all others be
        return False
    return bool(betabinom.sf(disputed - 1, pairs, errors + 1, known - errors) < _LEVEL)


def _views(evidence: Evidence, known: np.ndarray, disputed: np.ndarray) -> list[np.ndarray]:
    """Features of known pairs, with their verdicts, without them, or both.

    Known pairs are all put to judges, others where in doubt. So they count with their verdicts if disputed pairs have
    verdicts, without them if disputed pairs have none, and if some have, either way.
    """
    verdicts = evidence.of(NET_VERDICT, JUDGE, POSITION)
    of_disputed = evidence.features[np.ix_(np.flatnonzero(disputed), np.flatnonzero(verdicts))]
    judged = (of_disputed != 0).any(axis=1)
    return [known] * bool(judged.any()) + [known * ~verdicts] * bool(not judged.all())


def _disputed(evidence: Evidence, views: list[np.ndarray], source: int, draws: np.ndarray) -> int:
    """How many known pairs would be disputed, seen either way, if their better side were a label of the source."""
    least = np.ones(len(views[0]))
    for features in views:
        groups, seen = np.full(len(features), source), np.ones(len(features), dtype=bool)
        given = replace(evidence, features=features, sources=groups, seen=seen)
        blocks = [p.mean(axis=1, dtype=np.float64) for _, p in label_probabilities(given, draws)]
        least = np.minimum(least, np.concatenate(blocks))
    return int((least < 0.5).sum())
