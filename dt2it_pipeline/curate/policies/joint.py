"""The policy `joint`: labels are kept, flipped, dropped or asked about by the joint model (`joint.solution`).

A pair is contested if its label is not probable enough by the voters alone. Judges are asked where a verdict is worth
its price, and about some sure pairs that are drawn at random, since what is only asked where in doubt cannot be
checked. Trusted pairs are put to the judges too, which shows how far these can be believed. Every verdict, and what
people say in an audit, counts for all pairs: the model is fitted again with them, and the last fit decides. So verified
pairs can be flipped or dropped too.

Only voters that never saw a pair's label judge it. A reward model has learned the labels of its training pairs, the
wrong ones and their style bias with them, and would vote for them again.

What belongs here: the way between frames of pairs and the model's arrays. What does not: any decision about a pair.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from scipy.special import logit

from dt2it_pipeline.curate.annotation.budget import BEYOND
from dt2it_pipeline.curate.joint.calibration import claimed_and_observed
from dt2it_pipeline.curate.joint.decisions import DROPPED, FLIPPED
from dt2it_pipeline.curate.joint.evidence import VOTER
from dt2it_pipeline.curate.joint.solution import Observed, Prices, Solution, reasons_of, solve
from dt2it_pipeline.curate.joint.sums import Estimate
from dt2it_pipeline.curate.pair_frames import select_rows, stack, swap_sides, with_strength
from dt2it_pipeline.curate.policies.joint_tables import (
    heard_trusted,
    no_votes,
    observed_of,
    voters_of,
    votes_of,
    with_verdicts,
)
from dt2it_pipeline.curate.policies.policy import Anchor, Ask, Decision, Vote
from dt2it_pipeline.curate.published_algorithm import VerifyResult, VoteResult, decide_by_people
from dt2it_pipeline.curate.voters.margins import check_pairs, voter_margins

NO_VOTER = "no voter may judge it"
_PERSON_RIGHT = 0.98  # assumed accuracy of people's votes; a majority decides whatever it is
_SUREST = 1e-6  # probabilities beyond count as this, so that a strength is finite
_LEAST_TRUSTED_ASKED = 20  # verdicts; fewer do not show how far a judge can be believed
_ASKINGS = 3  # verdicts show which other pairs are worth asking about; after that, few are
_CHECKS_PER = 11  # one call of so many of a limited budget is for a pair drawn at random


@dataclass(frozen=True)
class JointPolicy:
    """The joint model as a policy.

    Attributes:
        wrong_label_cost: how many right labels a wrong one that is kept costs.
        keep_probability: least probability of a kept label, 0.5 to 1, in place of wrong_label_cost; None: by the cost.
        call_cost: price of one judge call, in right labels.
    """

    name: ClassVar[str] = "joint"
    has_verifier: ClassVar[bool] = False
    takes_anchor: ClassVar[bool] = True

    wrong_label_cost: float
    keep_probability: float | None
    call_cost: float

    def vote(
        self, pairs: pd.DataFrame, scores: pd.DataFrame, trained_on: Mapping[str, Collection[str]], anchor: Anchor
    ) -> Vote:
        """Flip labels whose other side is probable enough, by those voters that were not trained on a pair.

        `strength` is the log-odds (nats) that the present label is right; `votes` are the raw margins.
        """
        check_pairs(pairs)
        found = voter_margins(pairs, scores)
        margins = found.margins.copy()
        for place, voter in enumerate(found.voters):
            margins[pairs["pair_id"].isin(set(trained_on.get(voter, ()))).to_numpy(), place] = np.nan
        heard = np.isfinite(margins).any(axis=1)
        # A pair that voters did score, and only such as were trained on it, has no reason from the join.
        reason = np.where(pd.isna(found.reason[~heard]), NO_VOTER, found.reason[~heard])
        detail = np.where(pd.isna(found.detail[~heard]), "every voter was trained on it", found.detail[~heard])
        unscored = select_rows(pairs, ~heard).assign(
            reason=pd.Series(reason, dtype="str"), detail=pd.Series(detail, dtype="str")
        )
        voted = with_strength(select_rows(pairs, heard), np.zeros(int(heard.sum())))
        voted["label"] = pd.Series("original", index=voted.index, dtype="str")
        voted["votes"] = votes_of(found.voters, margins[heard])
        trusted = heard_trusted(anchor.trusted, scores, found.voters, voted, margins[heard])
        observed = observed_of(voted, found.voters, no_votes(), anchor.audit, trusted)
        solution = solve(observed, self._prices(1))
        flipped = solution.decisions.outcome == FLIPPED
        voted = swap_sides(voted, flipped).assign(strength=_log_odds(solution.decisions.probability))
        voted["label"] = voted["label"].mask(flipped, "flipped")
        negative = int((solution.decisions.label_right < 0.5).sum())
        result = VoteResult(voted, unscored, negative, int(flipped.sum()), found.voters)
        return Vote(result, trusted, _vote_metadata(solution, trusted), solution.notes)

    def check(self, voted: pd.DataFrame, scores: pd.DataFrame) -> VerifyResult:
        """Contested are the pairs whose label is less probable than a kept one has to be."""
        sure = voted["strength"].to_numpy() >= logit(self._prices(1).bound)
        none = voted.iloc[:0].assign(reason=pd.Series(dtype="str"), detail=pd.Series(dtype="str"))
        return VerifyResult(select_rows(voted, sure), select_rows(voted, ~sure), none, ())

    def decide(
        self,
        verified: pd.DataFrame,
        contested: pd.DataFrame,
        people: pd.DataFrame,
        ask: Ask,
        judges: int,
        calls: int | None,
        anchor: Anchor,
    ) -> Decision:
        """Ask about trusted pairs and those that are worth it, and decide about all by the fit to all verdicts.

        People's majority decides a pair; their tie drops it. Only what they say in an audit teaches the model: other
        pairs were put to them because they are doubtful, and are no random sample. The label "annotated" goes to pairs
        that people or judges gave a verdict on.
        """
        pairs, prices = stack(verified, contested), self._prices(judges)
        check_pairs(pairs)
        voters = voters_of(pairs, anchor.trusted)
        votes, asked = self._on_trusted(anchor.trusted, ask, judges, calls), np.zeros(len(pairs), dtype=bool)
        spent = len(votes) // judges
        by_people = pairs["pair_id"].isin(people["pair_id"][people["verdict"].notna()]).to_numpy(dtype=bool)
        for asking in range(_ASKINGS + 1):
            observed = observed_of(pairs, voters, votes, anchor.audit, anchor.trusted)
            solution = solve(observed, prices)
            left = None if calls is None else calls // judges - spent - int(asked.sum())
            places = _next(solution, asked | by_people, left, first=asking == 0)
            if asking == _ASKINGS or solution.doubt or not len(places):
                break
            # In the order of the table, so that a killed run asks the same again.
            places = np.sort(places)
            votes = stack(votes, ask(pairs.iloc[places].reset_index(drop=True)))
            asked[places] = True
        if solution.doubt:  # the audit is not believed, and so it decides no pair either
            people = people[~people["pair_id"].isin(anchor.audit["pair_id"])]
        return _decision(pairs, len(verified), people, asked, votes, observed, solution, limited=calls is not None)

    @staticmethod
    def _on_trusted(trusted: pd.DataFrame, ask: Ask, judges: int, calls: int | None) -> pd.DataFrame:
        """Verdicts on trusted pairs, which show how far judges can be believed; at most half of the budget is spent."""
        count = len(trusted) if calls is None else min(len(trusted), calls // judges // 2)
        return ask(trusted.iloc[:count].reset_index(drop=True)) if count >= _LEAST_TRUSTED_ASKED else no_votes()

    def _prices(self, judges: int) -> Prices:
        call = self.call_cost * judges
        if self.keep_probability is not None:
            return Prices(self.keep_probability, call)
        return Prices.of_wrong_label(self.wrong_label_cost, call)


def _next(solution: Solution, settled: np.ndarray, left: int | None, *, first: bool) -> np.ndarray:
    """Pairs to ask about: those worth it, best first, and the first time some sure ones drawn at random."""
    wanted = solution.wanted[~settled[solution.wanted]]
    random = np.isnan(solution.gain[~settled[solution.wanted]])
    best, checks = wanted[~random], wanted[random] if first else wanted[:0]
    if left is not None and len(best) + len(checks) > left:
        checks = checks[: left // _CHECKS_PER]
        best = best[: left - len(checks)]
    return np.concatenate([best, checks])


def _decision(
    pairs: pd.DataFrame,
    verified: int,
    people: pd.DataFrame,
    asked: np.ndarray,
    votes: pd.DataFrame,
    observed: Observed,
    solution: Solution,
    *,
    limited: bool,
) -> Decision:
    """The outcome of every pair, of which the first `verified` ones were verified, in the tables that stages keep."""
    decisions = solution.decisions
    was_flipped = (pairs["label"] == "flipped").to_numpy()
    turned = (decisions.outcome == FLIPPED) != was_flipped
    dropped = decisions.outcome == DROPPED
    turned &= ~dropped
    heard = np.zeros(len(pairs), dtype=bool)
    heard[(observed.verdicts != 0).any(axis=1)] = True
    now = pairs.assign(label=np.where(decisions.outcome == FLIPPED, "flipped", "original"))
    now["label"] = pd.Series(np.where(heard, "annotated", now["label"]), dtype="str")
    now["votes"] = with_verdicts(pairs, votes)
    now = swap_sides(now, turned).assign(strength=_log_odds(decisions.probability))
    settled, _ = decide_by_people(pairs, people, float(logit(_PERSON_RIGHT)))
    theirs = pairs["pair_id"].isin([*settled.annotated["pair_id"], *settled.dropped["pair_id"]]).to_numpy(dtype=bool)
    stays = (np.arange(len(pairs)) < verified) & ~asked & ~dropped & ~turned & ~theirs
    out = select_rows(now, dropped & ~theirs)
    wanted = np.zeros(len(pairs), dtype=bool)
    wanted[solution.wanted[~np.isnan(solution.gain)]] = True
    beyond = (wanted & ~asked & limited)[dropped & ~theirs]
    reasons = np.where(beyond, BEYOND, reasons_of(solution, observed.same_side)[dropped & ~theirs])
    sure = np.maximum(decisions.label_right, 1 - decisions.label_right)[dropped & ~theirs]
    out = out.assign(
        reason=pd.Series(reasons, index=out.index, dtype="str"),
        detail=pd.Series([f"the better side is {p:.0%} likely right" for p in sure], index=out.index, dtype="str"),
    )
    rest = ~stays & ~dropped & ~theirs
    return Decision(
        kept=select_rows(pairs, stays),
        annotated=stack(settled.annotated, select_rows(now, rest)),
        dropped=stack(settled.dropped, out),
        asked=select_rows(pairs, asked),
        votes=votes,
        swapped=settled.swapped + int(turned[rest].sum()),
        reopened=verified - int(stays.sum()),
        beyond_budget=int(beyond.sum()),
        metadata=_decision_metadata(solution),
        label_right=pd.DataFrame({"pair_id": pairs["pair_id"], "probability": decisions.label_right}),
        calibration=partial(claimed_and_observed, observed, solution),
    )


def _log_odds(probability: np.ndarray) -> np.ndarray:
    return np.asarray(logit(np.clip(probability, _SUREST, 1 - _SUREST)))


def _vote_metadata(solution: Solution, trusted: pd.DataFrame) -> dict[str, Any]:
    evidence, decisions = solution.evidence, solution.decisions
    voters = np.flatnonzero(evidence.of(VOTER))
    return {
        "anchored": decisions.anchored,
        "trusted_pairs": len(trusted),
        "audited_pairs": int(np.count_nonzero(solution.anchors.checked)),
        "estimated_label_accuracy": _three(decisions.before)[0],
        "voters_agree_with_labels": round(decisions.agreement, 4),
        "voter_weights": {evidence.names[place]: round(float(solution.model.mean[place]), 4) for place in voters},
    }


def _decision_metadata(solution: Solution) -> dict[str, Any]:
    decisions = solution.decisions
    return {
        "anchored": decisions.anchored,
        "label_accuracy_before": _three(decisions.before),
        "label_accuracy_after": _three(decisions.after),
        "retained_pairs": decisions.retained,
        "sensitivity": solution.sensitivity.round(4).to_dict("records"),
        "notes": list(solution.notes),
    }


def _three(estimate: Estimate) -> list[float | None]:
    """Estimate, low and high; null where there are no pairs."""
    values = (estimate.estimate, estimate.low, estimate.high)
    return [None if np.isnan(value) else round(float(value), 4) for value in values]
