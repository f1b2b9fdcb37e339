"""Label accuracy and pairs kept against judge calls, after so many of a round's calls.

The calls of a round are spent in an order. So the curve is what the round would have curated under smaller budgets,
from the verdicts that it has: no judge is asked again.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from dt2it_pipeline.evaluate.report.data import CallCurve

POINTS = 7  # budgets looked at, none and all of the calls included

CurateWith = Callable[[int], pd.DataFrame]


def call_curve(
    rule: str, curate_with: CurateWith, asked: int, judges: int, pool: int, truth: pd.DataFrame | None
) -> CallCurve:
    """The curve of one round under one way of deciding from verdicts.

    Args:
        rule: name of the way.
        curate_with: most judge calls -> the pairs that are curated then: pair_id, and chosen_id as decided.
        asked: pairs that judges were asked about.
        judges: calls per pair.
        pool: pairs of the uncurated pool; shares are of these.
        truth: pair_id, chosen_id of the truly better side; None without truth.
    """
    better = None if truth is None else truth.set_index("pair_id")["chosen_id"]
    calls = judges * np.unique(np.linspace(0, asked, POINTS).round().astype(int))
    shares, right = [], []
    for most in calls.tolist():
        curated = curate_with(most)
        shares.append(len(curated) / pool if pool else float("nan"))
        right.append(_right(curated, better))
    return CallCurve(rule, tuple(calls.tolist()), tuple(shares), None if better is None else tuple(right))


def _right(curated: pd.DataFrame, better: pd.Series | None) -> float:
    """Share of the pairs with a truth whose chosen side is the better one; NaN without any."""
    if better is None:
        return float("nan")
    true = better.reindex(curated["pair_id"]).to_numpy(dtype=object)
    known = ~pd.isna(true)
    return float((curated["chosen_id"].to_numpy(dtype=object) == true)[known].mean()) if known.any() else float("nan")
