"""Claimed against observed: how often what the joint model says of pairs with known truth is so.

A pair whose truth the model was fitted to proves nothing. So the known pairs, audited and trusted ones, are split into
folds, and each fold is predicted by a model that was fitted without its truth.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from scipy.special import expit

from dt2it_pipeline.curate.joint.model import Anchors, fit_joint_model, label_probabilities
from dt2it_pipeline.curate.joint.solution import Observed, Solution

_FOLDS = 5
_DRAWS = 64
_LEAST_OF_A_BIN, _MOST_BINS = 10, 5


def claimed_and_observed(observed: Observed, solution: Solution) -> pd.DataFrame:
    """What is claimed of the more probable side of pairs with known truth, and how often it is the better one.

    Args:
        observed: as the solution was made of.
        solution: of `solve`.

    Returns:
        Up to five rows of equally many pairs, by rising claim, of each `kind` (audited: of the pairs to be cleaned;
        trusted: other pairs, without labels to go by): `pairs`, `claimed`, `observed`.
    """
    anchors = solution.anchors
    checked, trusted = np.flatnonzero(anchors.checked), np.arange(len(anchors.trusted))
    if not anchors.enough or solution.doubt or len(checked) + len(trusted) < _LEAST_OF_A_BIN:
        return pd.DataFrame({"kind": [], "pairs": [], "claimed": [], "observed": []})
    fold_of = np.arange(len(checked)) % _FOLDS, trusted % _FOLDS
    shuffled = checked[np.argsort(observed.draw[checked], kind="stable")]
    right_of_checked, right_of_trusted = np.empty(len(checked)), np.empty(len(trusted))
    for fold in range(_FOLDS):
        left_out = shuffled[fold_of[0] == fold]
        partly = anchors.checked.copy()
        partly[left_out] = 0
        others = replace(anchors, checked=partly, trusted=anchors.trusted[fold_of[1] != fold])
        draws = _fit(solution, others, observed.draw)
        if len(left_out):
            part = solution.evidence.rows(left_out)
            p = np.concatenate([each.mean(axis=1, dtype=np.float64) for _, each in label_probabilities(part, draws)])
            right_of_checked[fold_of[0] == fold] = np.where(anchors.checked[left_out] > 0, p, 1 - p)
        size = solution.evidence.features.shape[1]
        u = anchors.trusted[fold_of[1] == fold] @ draws[:, :size].T
        right_of_trusted[fold_of[1] == fold] = expit(u).mean(axis=1)
    parts = [("audited", right_of_checked), ("trusted", right_of_trusted)]
    return pd.concat([_binned(kind, of_truth) for kind, of_truth in parts if len(of_truth)], ignore_index=True)


def _fit(solution: Solution, anchors: Anchors, draw: np.ndarray) -> np.ndarray:
    return fit_joint_model(solution.evidence, anchors, draw).draws(_DRAWS)


def _binned(kind: str, of_truth: np.ndarray) -> pd.DataFrame:
    """Rows of one kind, from the probability that each pair's true side was given."""
    claimed = np.maximum(of_truth, 1 - of_truth)
    order = np.argsort(claimed, kind="stable")
    bins = np.array_split(order, max(1, min(_MOST_BINS, len(order) // _LEAST_OF_A_BIN)))
    rows = [(kind, len(one), claimed[one].mean(), (of_truth[one] > 0.5).mean()) for one in bins if len(one)]
    return pd.DataFrame(rows, columns=["kind", "pairs", "claimed", "observed"])
