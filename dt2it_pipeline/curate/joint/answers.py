"""Answers of an audit, each as it was given, as what the joint model takes: one rule wherever they come from.

Every answer counts alike, whoever gave it. So the majority decides a pair, and as many answers for either side decide
nothing. Answers about one pair that contradict each other cannot both be right: they show how often answers err.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Answers:
    """Answers about n pairs.

    Attributes:
        lead: int [n], answers for the label minus those against it.
        contradictions: answers that another one about the same pair contradicts, without the other one.
        contradicted: bool [n], pairs with answers for either side.
    """

    lead: np.ndarray
    contradictions: int
    contradicted: np.ndarray


def counted(places: np.ndarray, signs: np.ndarray, pairs: int) -> Answers:
    """Count answers by pair.

    Args:
        places: int [answers], the pair of each.
        signs: float64 [answers]: 1 for the label, -1 against it, 0 where neither side is better.
        pairs: n.
    """
    for_label, against = (np.bincount(places[signs == sign], minlength=pairs) for sign in (1, -1))
    fewer = np.minimum(for_label, against)
    return Answers(for_label - against, int(fewer.sum()), fewer > 0)
