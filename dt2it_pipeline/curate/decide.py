"""Step 3 as a whole: people first, then judges within a budget, and again where their verdicts shake sure labels.

What belongs here: who is asked about which pairs, in which order. What does not: what a verdict weighs (`policies`) and
how a judge comes to it (`annotate`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from dt2it_pipeline.curate.budget import within_budget
from dt2it_pipeline.curate.frames import select_rows, stack
from dt2it_pipeline.curate.policies import Policy

Ask = Callable[[pd.DataFrame], pd.DataFrame]  # pairs -> votes: pair_id, judge, order, verdict


@dataclass(frozen=True)
class Decision:
    """What became of all pairs of step 2: they are those of `kept`, `annotated` and `dropped` together.

    Attributes:
        kept: verified pairs that nobody was asked about.
        annotated: pairs that people or judges decided.
        dropped: set aside, with `reason` and `detail`.
        asked: contested pairs that judges were asked about, then verified ones that they were asked about.
        votes: the judges' votes.
        swapped: how many annotated pairs changed sides.
        recalled: verified pairs that the judges' verdicts shook, asked about or beyond the budget.
        beyond_budget: pairs that the budget did not reach.
        facts: what the policy fitted.
    """

    kept: pd.DataFrame
    annotated: pd.DataFrame
    dropped: pd.DataFrame
    asked: pd.DataFrame
    votes: pd.DataFrame
    swapped: int
    recalled: int
    beyond_budget: int
    facts: dict[str, Any]


def decide_pairs(
    policy: Policy,
    verified: pd.DataFrame,
    contested: pd.DataFrame,
    people: pd.DataFrame,
    ask: Ask,
    judges: int,
    calls: int | None = None,
) -> Decision:
    """Decide contested pairs, and verified ones that people voted on or judges' verdicts shake.

    Args:
        policy: what verdicts weigh.
        verified: pairs that step 2 kept.
        contested: pairs that it did not.
        people: votes of people, as `steps.decide_by_people` takes them.
        ask: the judges; called for the contested pairs, and for the shaken ones if there are any.
        judges: calls per pair.
        calls: most judge calls; None is no limit.

    Raises:
        CurationError: malformed tables or repeated pair ids.
    """
    settled, _ = policy.settle(stack(verified, contested), people)
    theirs = {*settled.annotated["pair_id"], *settled.dropped["pair_id"]}
    verified, contested = (
        select_rows(part, ~part["pair_id"].isin(theirs).to_numpy(dtype=bool)) for part in (verified, contested)
    )
    asked, beyond = within_budget(contested, calls, judges, policy.surest_first)
    votes = ask(asked)
    shaken = policy.shaken(verified, asked, votes, judges)
    recalled = select_rows(verified, shaken)
    left = None if calls is None else calls - judges * len(asked)
    again, beyond_too = within_budget(recalled, left, judges, policy.surest_first)
    if len(again):
        asked, votes = stack(asked, again), stack(votes, ask(again))
    resolved, facts = policy.resolve(asked, votes, judges)
    return Decision(
        kept=select_rows(verified, ~shaken),
        annotated=stack(settled.annotated, resolved.annotated),
        dropped=stack(settled.dropped, resolved.dropped, beyond, beyond_too),
        asked=asked,
        votes=votes,
        swapped=settled.swapped + resolved.swapped,
        recalled=len(recalled),
        beyond_budget=len(beyond) + len(beyond_too),
        facts=facts,
    )
