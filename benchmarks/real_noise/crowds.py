"""Methods from learning from crowds, of two packages that are optional: crowd-kit and cleanlab.

`pip install crowd-kit cleanlab` brings them (the extra `bench`). Without them these methods are left out, and the
command says so. All know classes "side a" and "side b" of a pair, drawn at random, and not "the label is right"
(`Evidence.swapped`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from benchmarks.real_noise.baselines import KEEP_PROBABILITY
from benchmarks.real_noise.evidence import Evidence, NotApplicable, answer, by_probability

_FOLDS = 5


def dawid_skene(evidence: Evidence) -> pd.DataFrame:
    """Dawid and Skene (1979) by crowd-kit: label, judges and signs of voters' margins are the workers.

    Each worker has a confusion matrix, fitted with the pairs' classes by expectation maximisation. Ties and margins of
    0 say nothing. An audit's pairs enter with their true class. The more likely side is kept from a probability of 0.8
    on.

    Raises:
        NotApplicable: crowd-kit is not installed, or nobody but the label says anything.
    """
    try:
        from crowdkit.aggregation import DawidSkene
    except ImportError as error:
        raise NotApplicable("needs the package crowd-kit") from error
    said = np.column_stack([np.ones(len(evidence.pairs)), np.sign(evidence.margins), np.sign(evidence.verdicts)])
    if said.shape[1] == 1:
        raise NotApplicable("needs a voter or a judge")
    said = np.nan_to_num(said) * _side(evidence)[:, None]
    task, worker = np.nonzero(said)
    answers = pd.DataFrame({"task": task, "worker": worker, "label": (said[task, worker] > 0).astype(int)})
    known = None
    if evidence.audit is not None:
        side = np.where(evidence.audited_right, 1, -1) * _side(evidence)[evidence.audited]
        known = pd.Series((side > 0).astype(int), index=np.flatnonzero(evidence.audited))
    found = DawidSkene(n_iter=100).fit_predict_proba(answers, true_labels=known)
    first = found.reindex(index=range(len(said)), columns=[0, 1]).fillna(0.0)[1].to_numpy(dtype=np.float64)
    right = np.where(_side(evidence) > 0, first, 1 - first)
    return by_probability(evidence, right, KEEP_PROBABILITY, evidence.calls if evidence.judges else None)


def crowdlab(evidence: Evidence) -> pd.DataFrame:
    """CROWDLAB (Goh et al. 2022) by cleanlab: consensus of the label and the judges with a classifier.

    The classifier is a logistic regression of the label's side on the voters' margins and the difference of log
    lengths, out of fold. The consensus is kept from a quality score of 0.8 on; the score is taken as a probability, as
    cleanlab does.

    Raises:
        NotApplicable: cleanlab is not installed, there is no judge, or too few pairs to fit a classifier on.
    """
    evidence.need_judges()
    try:
        from cleanlab.multiannotator import get_label_quality_multiannotator
    except ImportError as error:
        raise NotApplicable("needs the package cleanlab") from error
    side = _side(evidence)
    said = np.column_stack([np.ones(len(side)), np.sign(evidence.verdicts)]) * side[:, None]
    labels = np.where(np.nan_to_num(said) == 0, np.nan, (said > 0).astype(float))
    labels = labels[:, [len(np.unique(column[np.isfinite(column)])) == 2 for column in labels.T]]
    if labels.shape[1] < 2:
        raise NotApplicable("needs a judge with verdicts for both sides")
    made = get_label_quality_multiannotator(
        pd.DataFrame(labels),
        _out_of_fold(evidence),
        return_detailed_quality=False,
        return_annotator_stats=False,
        verbose=False,
    )["label_quality"]
    flip = made["consensus_label"].to_numpy(dtype=int) != (side > 0)
    sure = made["consensus_quality_score"].to_numpy(dtype=np.float64)
    return answer(evidence, sure >= KEEP_PROBABILITY, flip, sure, sure, evidence.calls)


def confident_learning(evidence: Evidence) -> pd.DataFrame:
    """Confident learning (Northcutt et al. 2021) by cleanlab: drop what `find_label_issues` finds.

    The classifier is that of `crowdlab`. The probability is the classifier's for the label.

    Raises:
        NotApplicable: cleanlab is not installed, there is no voter, or too few pairs to fit a classifier on.
    """
    evidence.need_voters()
    try:
        from cleanlab.filter import find_label_issues
    except ImportError as error:
        raise NotApplicable("needs the package cleanlab") from error
    predicted, label = _out_of_fold(evidence), (_side(evidence) > 0).astype(int)
    issues: Any = find_label_issues(label, predicted, n_jobs=1)
    right = predicted[np.arange(len(label)), label]
    return answer(evidence, ~np.asarray(issues, dtype=bool), None, right, right)


def _side(evidence: Evidence) -> np.ndarray:
    """1 where the label's side is called a, -1 where it is called b: float64 [n]."""
    return np.where(evidence.swapped, -1.0, 1.0)


def _out_of_fold(evidence: Evidence) -> np.ndarray:
    """Probabilities of the sides b and a by a classifier that learned from the labels of other pairs: [n, 2].

    Raises:
        NotApplicable: a side has fewer pairs than there are folds.
    """
    side = _side(evidence)
    features = np.column_stack([np.nan_to_num(evidence.margins), evidence.longer]) * side[:, None]
    label = (side > 0).astype(int)
    if min(label.sum(), len(label) - label.sum()) < _FOLDS:
        raise NotApplicable(f"needs {_FOLDS} pairs of each side")
    made = np.empty((len(side), 2))
    for train, test in StratifiedKFold(_FOLDS, shuffle=True, random_state=evidence.seed).split(features, label):
        model = LogisticRegression(C=1.0, fit_intercept=False).fit(features[train], label[train])
        made[test] = model.predict_proba(features[test])
    return made
