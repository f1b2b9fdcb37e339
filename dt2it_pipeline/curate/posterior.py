"""The policy `posterior`: labels are relabelled by their probability of being right, and doubtful pairs are contested.

Where the published policy flips a fixed half of the pairs that voters dislike, this one asks how probable each label is
(`label_model`), flips what is more probably wrong, and keeps a pair when its present label is right with the
probability that the recipe asks for. The rest goes to judges, whose verdict is one more piece of evidence. How much it
weighs is fitted: judges that agree with the voters as often as right ones would can turn a label, and judges that
agree with them no more than a coin does change nothing. A pair that is not sure enough then either is left out.

Only voters that never saw a pair's label judge it. A reward model has learned the labels of its training pairs, the
wrong ones and their style bias with them, and would vote for them again; which models were trained on which pairs is
known exactly, so they are left out rather than trusted less.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from dt2it_pipeline.curate import votes as vote_column
from dt2it_pipeline.curate.frames import select_rows, swap_sides, with_strength
from dt2it_pipeline.curate.label_model import LabelModel, fit_labels
from dt2it_pipeline.curate.margins import voter_margins
from dt2it_pipeline.curate.steps import AnnotationResult, VerifyResult, VoteResult, resolve_annotations

NO_VOTER = "no voter may judge it"
UNSURE = "not sure enough after the judges' votes"
# Beta prior on the judges' share of right verdicts: its mean is 0.8, and it weighs as much as 20 verdicts.
_RIGHT_VERDICTS, _WRONG_VERDICTS = 16.0, 4.0
_STEPS = 200


@dataclass(frozen=True)
class PosteriorResult(VoteResult):
    """As `steps.VoteResult`, with the fitted model; `negative` counts the labels that are more probably wrong."""

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
        smallest_source: pairs; the share of right labels of smaller sources is estimated together.

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
    model = fit_labels(margins, _length_difference(pairs), sources, draw, smallest_source)

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
    sure = voted["strength"].to_numpy() >= np.log(keep_probability / (1 - keep_probability))
    none = voted.iloc[:0].assign(reason=pd.Series(dtype="str"), detail=pd.Series(dtype="str"))
    return VerifyResult(select_rows(voted, sure), select_rows(voted, ~sure), none, ())


@dataclass(frozen=True)
class WeighedResult(AnnotationResult):
    """As `steps.AnnotationResult`; `accuracy` is the fitted share of right verdicts."""

    accuracy: float


def weigh_judges(
    contested: pd.DataFrame, votes: pd.DataFrame, keep_probability: float, judges: int = 2
) -> WeighedResult:
    """Decide contested pairs by the voters' log-odds and the judges' verdict together.

    The judges' votes make one verdict, as in `steps.resolve_annotations`; pairs without one are dropped as there. The
    share a of right verdicts is fitted to how verdicts agree with the log-odds s_i (by EM, with a Beta(16, 4) prior),
    and a verdict adds log(a / (1 - a)) to its side. The side with the greater log-odds becomes chosen; the pair is
    kept if they reach those of `keep_probability`, else dropped with the reason "not sure enough".

    Args:
        contested: pairs as `split_confident` returns them: `strength` is s_i in nats.
        votes: pair_id, judge, order, verdict.
        keep_probability: as for `split_confident`.
        judges: 1 or 2, the votes that make a verdict.

    Returns:
        `annotated` with `strength` = log-odds (nats) that the label is right after the judges' votes.

    Raises:
        CurationError: malformed tables or repeated pair ids.
    """
    decided = resolve_annotations(contested, votes, judges)
    before = contested.set_index("pair_id").reindex(decided.annotated["pair_id"])
    log_odds = before["strength"].to_numpy(dtype=np.float64)
    turned = decided.annotated["chosen_id"].to_numpy(dtype=object) != before["chosen_id"].to_numpy(dtype=object)
    accuracy = _verdict_accuracy(np.where(turned, -log_odds, log_odds))
    # In the direction of the verdict, which is that of the rows of `annotated`.
    after = np.where(turned, -log_odds, log_odds) + logit(accuracy)
    sure = after >= logit(keep_probability)
    annotated = decided.annotated.assign(strength=after)
    unsure = select_rows(contested, contested["pair_id"].isin(annotated["pair_id"][~sure]).to_numpy())
    detail = pd.Series(expit(after[~sure]), index=annotated["pair_id"][~sure]).reindex(unsure["pair_id"])
    unsure = unsure.assign(
        reason=pd.Series(UNSURE, index=unsure.index, dtype="str"),
        detail=pd.Series([f"the judges' side is right with {p:.2f}" for p in detail], index=unsure.index, dtype="str"),
    )
    dropped = pd.concat([part for part in (decided.dropped, unsure) if len(part)] or [decided.dropped])
    return WeighedResult(
        select_rows(annotated, sure), dropped.reset_index(drop=True), int((turned & sure).sum()), accuracy
    )


def _verdict_accuracy(log_odds: np.ndarray) -> float:
    """Share of right verdicts, from the voters' log-odds that each is right; the prior's mean without verdicts."""
    accuracy = _RIGHT_VERDICTS / (_RIGHT_VERDICTS + _WRONG_VERDICTS)
    for _ in range(_STEPS):
        right = expit(log_odds + logit(accuracy)).sum() + _RIGHT_VERDICTS
        before, accuracy = accuracy, float(right / (len(log_odds) + _RIGHT_VERDICTS + _WRONG_VERDICTS))
        if abs(accuracy - before) < 1e-6:
            break
    return accuracy


def _length_difference(pairs: pd.DataFrame) -> np.ndarray:
    """log(1 + characters of chosen) - log(1 + characters of rejected); zeros where there are no texts."""
    if not {"chosen", "rejected"} <= set(pairs.columns):
        return np.zeros(len(pairs))
    lengths = [np.log1p(pairs[side].str.len().fillna(0).to_numpy(dtype=np.float64)) for side in ("chosen", "rejected")]
    return lengths[0] - lengths[1]
