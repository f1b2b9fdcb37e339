"""The policy `posterior`: labels are flipped by their probability of being right, and uncertain pairs are contested.

The published policy flips a fixed half of the pairs that voters dislike. This one estimates how likely each label is
right (`label_model`), flips labels that are more probably wrong, and keeps a pair whose present label is right with the
probability that the recipe asks for. The rest goes to judges, whose verdict is further evidence (`judge_calibration`).

Only voters that never saw a pair's label judge it. A reward model has learned the labels of its training pairs, the
wrong ones and their style bias with them, and would vote for them again; which models were trained on which pairs is
known exactly, so they are left out, not given less weight.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import logit

from dt2it_pipeline.curate.label_model import LabelModel, fit_labels
from dt2it_pipeline.curate.pair_frames import length_difference, select_rows, swap_sides, with_strength
from dt2it_pipeline.curate.published_algorithm import VerifyResult, VoteResult
from dt2it_pipeline.curate.voters import votes as vote_column
from dt2it_pipeline.curate.voters.margins import voter_margins

NO_VOTER = "no voter may judge it"


@dataclass(frozen=True)
class PosteriorResult(VoteResult):
    """As `published_algorithm.VoteResult`, with the model; `negative` counts labels that are more probably wrong."""

    model: LabelModel


def posterior_vote(
    pairs: pd.DataFrame,
    scores: pd.DataFrame,
    trained_on: Mapping[str, Collection[str]] | None = None,
    smallest_source: int = 100,
) -> PosteriorResult:
    """Relabel every pair by its posterior: a pair whose label is more probably wrong has its sides swapped.

    A pair is judged by those voters that have finite scores for both of its sides and were not trained on it.

    Args:
        pairs: pair_id, chosen_id, rejected_id; `source` (one source where absent), `chosen` and `rejected` (texts, for
            the style term; no style term where absent), and anything else.
        scores: response_id, voter, score.
        trained_on: voter -> ids of the pairs in its training set.
        smallest_source: pairs; the label accuracy of smaller sources is estimated together.

    Returns:
        `voted` with `strength` = log-odds (nats, >= 0) that the present label is right, `label` "flipped" where sides
        were swapped, and `votes` the raw margins of the voters that judged the pair. `unscored`: pairs without any.

    Raises:
        CurationError: malformed tables, repeated pair ids or contradicting scores.
    """
    found = voter_margins(pairs, scores)
    margins = found.margins.copy()
    for place, voter in enumerate(found.voters):
        margins[pairs["pair_id"].isin(set((trained_on or {}).get(voter, ()))).to_numpy(), place] = np.nan
    sources = pairs["source"].to_numpy(dtype=object) if "source" in pairs else np.full(len(pairs), "")
    draw = pd.util.hash_array(pairs["pair_id"].to_numpy(dtype=object))
    model = fit_labels(margins, length_difference(pairs), sources, draw, smallest_source)

    judged = ~np.isnan(model.log_odds)
    voted = with_strength(select_rows(pairs, judged), model.log_odds[judged])
    where, which = np.nonzero(np.isfinite(margins[judged]))
    names = pd.Series(np.array(found.voters, dtype=object)[which], dtype="str")
    voted["votes"] = vote_column.append(None, where, names, margins[judged][where, which], len(voted))
    wrong = model.log_odds[judged] < 0
    voted = swap_sides(voted, wrong)
    voted["label"] = voted["label"].mask(wrong, "flipped")

    unscored = select_rows(pairs, ~judged)
    # A pair that voters did score, and only such as were trained on it, has no reason from the join.
    reason = np.where(pd.isna(found.reason[~judged]), NO_VOTER, found.reason[~judged])
    detail = np.where(pd.isna(found.detail[~judged]), "every voter was trained on it", found.detail[~judged])
    unscored = unscored.assign(reason=pd.Series(reason, dtype="str"), detail=pd.Series(detail, dtype="str"))
    flipped = int(wrong.sum())
    return PosteriorResult(voted, unscored, flipped, flipped, found.voters, model)


def split_confident(voted: pd.DataFrame, keep_probability: float) -> VerifyResult:
    """Keep the pairs of `posterior_vote` whose label is right with `keep_probability` or more; contest the others.

    Raises:
        ValueError: keep_probability lies outside [0.5, 1).
    """
    if not 0.5 <= keep_probability < 1:
        raise ValueError(f"keep_probability must be at least 0.5 and below 1, not {keep_probability}")
    sure = voted["strength"].to_numpy() >= logit(keep_probability)
    none = voted.iloc[:0].assign(reason=pd.Series(dtype="str"), detail=pd.Series(dtype="str"))
    return VerifyResult(select_rows(voted, sure), select_rows(voted, ~sure), none, ())
