"""How the estimate moves with what is assumed of voters and judges, where nothing is known to be true.

How often annotators and labels agree is seen. How often annotators are right is not, and neither is how often both err
on the same pair: then they agree, and the label is wrong. So for every assumed accuracy of the annotators there is what
the joint model makes of it, and between which bounds the truth lies whatever the model says.

With annotators right in a share r of N pairs, they err on (1 - r) N. Where they err and agree with the label, it is
wrong; where they err and disagree with it, it is right. So labels are best if annotators erred on pairs where they
disagree first, and worst if on pairs where they agree first. Labels that annotators leave open are right in a half to
all of the pairs.

The assumptions go from annotators that are no better than chance to ones that hardly err: on public sets, voters and
judges are right in 40 to 99%, and which of these it is the labels do not show.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import expit

from dt2it_pipeline.curate.joint.decisions import DROPPED, FLIPPED, Decisions
from dt2it_pipeline.curate.joint.evidence import Evidence
from dt2it_pipeline.curate.joint.model import Anchors, JointModel, label_log_odds, labels_beside

ASSUMED = (0.5, 0.6, 0.7, 0.8, 0.9, 0.99)  # accuracies of the annotators
COLUMNS = ("annotator_accuracy", "label_accuracy", "accuracy_after", "after_low", "after_high")
_MOST = 20_000  # pairs that are looked at
_NEGLIGIBLE = 1e-9  # evidence that speaks for neither side
NOTED = 0.7  # the accuracy of ASSUMED that a note says the consequence of
_LEAST_UNHEARD = 0.5  # of the labels that annotators leave open are right
_SCALES = np.geomspace(1e-3, 1e3, 121)


@dataclass(frozen=True)
class Assumption:
    """What an estimate without an anchor assumes: two shares that nothing measures.

    How often voters and judges agree with the labels is seen, so with these two the label accuracy is arithmetic.

    Attributes:
        annotator_accuracy: share of the pairs in which voters and judges together prefer the better side.
        right_where_they_err: share of the labels that are right where they prefer the other side.
        sides: int8 [n]: 1 where they are for the given label, -1 against it, 0 where they leave it open.
    """

    annotator_accuracy: float
    right_where_they_err: float
    sides: np.ndarray


def assumption(evidence: Evidence, model: JointModel, label_right: np.ndarray) -> Assumption | None:
    """What an estimate assumes of voters and judges; None where they are for or against no label, or cannot err.

    Args:
        evidence: of n pairs.
        model: the fitted model.
        label_right: float64 [n], probability that each label is right, by the estimate.
    """
    u = evidence.features @ model.mean[: evidence.features.shape[1]]
    sides = ((u > _NEGLIGIBLE).astype(np.int8) - (u < -_NEGLIGIBLE)).astype(np.int8)
    of_agree, of_disagree = label_right[sides > 0], label_right[sides < 0]
    # Where they are against a right label, or for a wrong one, they err.
    against_right, for_wrong = float(of_disagree.sum()), float((1 - of_agree).sum())
    err = against_right + for_wrong
    if not err:
        return None
    return Assumption(1 - err / (len(of_agree) + len(of_disagree)), against_right / err, sides)


def sensitivity(
    evidence: Evidence, anchors: Anchors, model: JointModel, decisions: Decisions, draw: np.ndarray
) -> pd.DataFrame:
    """What follows if voters and judges together are right in 50, 60, 70, 80, 90 and 99% of the pairs.

    Args:
        evidence: of n pairs.
        anchors: as the model was fitted to.
        model: the fitted model.
        decisions: what becomes of the pairs.
        draw: as for `fit_joint_model`.

    Returns:
        Rows of `annotator_accuracy`; `label_accuracy` and `accuracy_after`, of all labels as given and of those that
        stay, as the model expects them; `after_low` and `after_high`, between which the latter lies even if annotators
        and labels err on the same pairs as often as can be, or as seldom, where labels that annotators leave open are
        right in a half of the pairs at least. No row where there is no evidence.
    """
    places = np.arange(len(evidence))
    if len(evidence) > _MOST:  # drawn, not by their place: tables may be sorted
        places = np.sort(np.argpartition(draw, _MOST)[:_MOST])
    part = evidence.rows(places)
    weights = model.mean[: part.features.shape[1]]
    u = part.features @ weights
    heard = np.abs(u) > _NEGLIGIBLE
    if not heard.any():
        return pd.DataFrame({name: np.zeros(0) for name in COLUMNS})
    stays = decisions.outcome[places] != DROPPED
    flipped = decisions.outcome[places] == FLIPPED
    rows = []
    for accuracy in ASSUMED:
        scale = _scale(np.abs(u[heard]), accuracy)
        p = expit(label_log_odds(part, labels_beside(evidence, anchors, draw, scale * weights)))
        after = np.where(flipped, 1 - p, p)
        low, high = _bounds(u, heard, stays, accuracy)
        expected = float(after[stays].mean()) if stays.any() else float("nan")
        rows.append((accuracy, float(p.mean()), float(np.clip(expected, low, high)), low, high))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _scale(size: np.ndarray, accuracy: float) -> float:
    """What evidence of this size must be multiplied with, for its sides to be better in a share of `accuracy`."""
    claimed = [float(expit(scale * size).mean()) for scale in _SCALES]
    return float(np.exp(np.interp(accuracy, claimed, np.log(_SCALES))))


def _bounds(u: np.ndarray, heard: np.ndarray, stays: np.ndarray, accuracy: float) -> tuple[float, float]:
    """Least and greatest accuracy of the labels that stay."""
    if not stays.any():
        return float("nan"), float("nan")
    agree, disagree = heard & (u > 0), heard & (u < 0)
    of_agree, of_disagree = int(agree.sum()), int(disagree.sum())
    kept_agree, kept_disagree = int((agree & stays).sum()), int((disagree & stays).sum())
    unheard = int((stays & ~heard).sum())
    wrong = (1 - accuracy) * (of_agree + of_disagree)  # answers of annotators
    # Within either group, errors fall on pairs that stay or on the others, whichever is worse or better.
    shared = min(wrong, of_agree)
    least = kept_agree - min(shared, kept_agree) + max(wrong - shared - (of_disagree - kept_disagree), 0.0)
    apart = min(wrong, of_disagree)
    most = kept_agree - max(wrong - apart - (of_agree - kept_agree), 0.0) + min(apart, kept_disagree)
    low, high = np.clip(
        np.array([least + _LEAST_UNHEARD * unheard, most + unheard]) / int(stays.sum()), 0.0, 1.0
    ).tolist()
    return low, high
