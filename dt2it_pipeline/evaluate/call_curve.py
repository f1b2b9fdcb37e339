"""What judge calls buy: labels that are right, and pairs that are kept, after so many of a round's calls.

The calls of a round are spent in an order (`curate.budget`). So the curve is what the round would have curated under
smaller budgets, from the verdicts that it has: no judge is asked again.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from dt2it_pipeline.curate.budget import within_budget
from dt2it_pipeline.evaluate.report_data import CallCurve

POINTS = 13  # budgets looked at, none and all of the calls included

Resolve = Callable[[pd.DataFrame, pd.DataFrame], pd.DataFrame]


def call_curve(
    rule: str,
    kept: pd.DataFrame,
    asked: pd.DataFrame,
    votes: pd.DataFrame,
    judges: int,
    resolve: Resolve,
    pool: int,
    truth: pd.DataFrame | None,
    surest_first: bool,
) -> CallCurve:
    """The curve of one round under one way of deciding from verdicts.

    Args:
        rule: name of the way.
        kept: pairs that the round keeps without a judge: pair_id, chosen_id.
        asked: contested pairs that judges were asked about: pair_id, chosen_id, strength and what `resolve` needs.
        votes: their verdicts.
        judges: calls per pair.
        resolve: (contested pairs, votes) -> those of them that are kept, with chosen_id as decided.
        pool: pairs of the uncurated pool, of which shares are told.
        truth: pair_id, chosen_id of the truly better side; None where nobody knows it.
        surest_first: the order in which pairs are asked about.
    """
    better = None if truth is None else truth.set_index("pair_id")["chosen_id"]
    counts = np.unique(np.linspace(0, len(asked), POINTS).round().astype(int))
    shares, right = [], []
    for count in counts.tolist():
        reached, _ = within_budget(asked, count * judges, judges, surest_first)
        decided = resolve(reached, votes[votes["pair_id"].isin(reached["pair_id"])])
        curated = pd.concat([part[["pair_id", "chosen_id"]] for part in (kept, decided)], ignore_index=True)
        shares.append(len(curated) / pool if pool else float("nan"))
        right.append(_right(curated, better))
    return CallCurve(rule, tuple((counts * judges).tolist()), tuple(shares), None if better is None else tuple(right))


def _right(curated: pd.DataFrame, better: pd.Series | None) -> float:
    """Share of the pairs with a truth whose chosen side is the better one; NaN without any."""
    if better is None:
        return float("nan")
    true = better.reindex(curated["pair_id"]).to_numpy(dtype=object)
    known = ~pd.isna(true)
    return float((curated["chosen_id"].to_numpy(dtype=object) == true)[known].mean()) if known.any() else float("nan")
