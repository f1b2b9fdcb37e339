"""Checks of voters, judges and audits before the joint model is believed.

What belongs here: evidence that cannot be used, or that contradicts the rest. What does not: how far usable evidence
can be believed (`model`), and what follows for pairs (`decisions`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dt2it_pipeline.curate.joint.evidence import JUDGE, VOTER, Evidence
from dt2it_pipeline.curate.joint.model import Anchors, fit_joint_model

_STANDARD_ERRORS = 2.0
_CLEARLY_WORSE = 3.0  # nats; that much worse than answers at random
_RIGHT = 0.98  # of the answers of a careful auditor
_NEARLY_ALL = 0.8  # of the pairs have a verdict that is no tie
_FEWEST_TO_DOUBT = 10  # answers; fewer are too few to tell an auditor who guesses


def opponents(evidence: Evidence, verdicts: np.ndarray, judges: Sequence[str]) -> tuple[np.ndarray, str | None]:
    """Voters and judges that are against the labels clearly more often than for them, and a sentence on them.

    Where nothing is checked, labels are taken to be right more often than not, and so such a voter errs more often than
    not. A model could use it the other way round; but more often its columns are swapped. A judge counts by its own
    verdicts, since beside it the lead of a good one comes to nothing. Where judges together saw a part of the pairs
    alone, they are left alone: a good judge that is asked about doubtful labels disagrees with most of them.

    Args:
        evidence: of n pairs.
        verdicts: [n, J], for the label positive, against it negative, 0 for a tie or no verdict.
        judges: J names.

    Returns:
        Bool [V + J], voters and then judges; and the sentence, None where there are none.
    """
    voters = np.flatnonzero(evidence.of(VOTER))
    columns = [(VOTER, evidence.names[place], evidence.features[:, place]) for place in voters]
    columns += [(JUDGE, judge, verdicts[:, place]) for place, judge in enumerate(judges)]
    judged = (verdicts != 0).any(axis=1).mean() if verdicts.size else 0.0
    found = np.zeros(len(columns), dtype=bool)
    against: dict[bool, list[str]] = {True: [], False: []}  # by whether it saw nearly all pairs
    for place, (kind, name, column) in enumerate(columns):
        in_favour, seen = np.count_nonzero(column > 0), np.count_nonzero(column)
        if kind == JUDGE and judged < _NEARLY_ALL:
            continue
        if 2 * in_favour - seen < -_STANDARD_ERRORS * np.sqrt(seen):
            found[place] = True
            against[bool(seen >= _NEARLY_ALL * len(column))].append(f"{kind} {name} ({in_favour / seen:.0%})")
    notes = []
    if against[True]:
        notes.append(
            f"not used, since they agree with fewer than half of the labels: {', '.join(against[True])}; look whether "
            "their scores or verdicts are the right way round"
        )
    if against[False]:
        notes.append(
            "not used, since they speak about a part of the pairs alone and agree with fewer than half of its labels: "
            f"{', '.join(against[False])}; either they are the wrong way round, or that part was chosen because its "
            "labels are in doubt, and nothing is checked that could tell"
        )
    return found, "; ".join(notes) or None


def doubt_about_audit(evidence: Evidence, anchors: Anchors, draw: np.ndarray) -> str | None:
    """Why an audit and everything else cannot both be believed, so that all pairs stay as they are; None: they can.

    Args:
        evidence: of n pairs.
        anchors: with the audit's answers.
        draw: as for `fit_joint_model`.
    """
    count = int(np.count_nonzero(anchors.checked))
    if count < _FEWEST_TO_DOUBT:
        return None
    right = float((anchors.checked > 0).sum()) / count
    if 2 * right - 1 < -_STANDARD_ERRORS / np.sqrt(count):
        found = "that labels are wrong more often than right"
    else:
        # Compared with answers that are nearly all right: an estimated accuracy would fit answers at random, too.
        right_ones, random = (
            fit_joint_model(evidence, replace(anchors, auditor_accuracy=accuracy), draw) for accuracy in (_RIGHT, 0.5)
        )
        if right_ones.log_evidence >= random.log_evidence - _CLEARLY_WORSE:
            return None
        found = "something that does not fit labels, voters and judges: answers at random would fit them better"
    return (
        f"the audit says {found} ({count} answers, {right:.0%} for the label). Either its answers or voters and judges "
        "mislead, so all pairs stay as they are, and the estimate is the audit's alone. Look at the answers, at how "
        "their pair_id and better_id were joined, and whether voters have learned these labels"
    )
