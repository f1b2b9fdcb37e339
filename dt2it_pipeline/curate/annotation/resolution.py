"""Step 3 as a whole: people first, then judges within a budget, and again where their verdicts reopen verified pairs.

What belongs here: who is asked about which pairs, in which order. What does not: how much a verdict counts
(`policies`), and how a judge comes to it (`annotate`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from dt2it_pipeline.curate.annotation.budget import BEYOND, within_budget
from dt2it_pipeline.curate.judge_calibration import UNSURE
from dt2it_pipeline.curate.pair_frames import select_rows, stack
from dt2it_pipeline.curate.policies import Policy

# Verdicts on reopened pairs reopen others. Of some 1,500 verified pairs, 18 to 495 were reopened at first
# (`benchmarks.rounds_under_noise`, nine cells), then 0 to 75, then 0 to 19: too few to start a judge a third time.
_REOPENINGS = 2
Ask = Callable[[pd.DataFrame], pd.DataFrame]  # pairs -> votes: pair_id, judge, order, verdict


@dataclass(frozen=True)
class Decision:
    """What became of all pairs of step 2: they are those of `kept`, `annotated` and `dropped` together.

    Attributes:
        kept: verified pairs that nobody was asked about, and reopened ones that are retained without a verdict: judges
            gave none, and they are still likely enough to be right.
        annotated: pairs that people or judges decided.
        dropped: with `reason` and `detail`.
        asked: contested pairs that judges were asked about, then verified ones that they were asked about.
        votes: the judges' votes.
        swapped: how many annotated pairs changed sides.
        reopened: verified pairs that the judges' verdicts reopened and that are not among `kept`.
        beyond_budget: pairs dropped because the budget did not reach them.
        metadata: what the policy fitted.
    """

    kept: pd.DataFrame
    annotated: pd.DataFrame
    dropped: pd.DataFrame
    asked: pd.DataFrame
    votes: pd.DataFrame
    swapped: int
    reopened: int
    beyond_budget: int
    metadata: dict[str, Any]


def decide_pairs(
    policy: Policy,
    verified: pd.DataFrame,
    contested: pd.DataFrame,
    people: pd.DataFrame,
    ask: Ask,
    judges: int,
    calls: int | None = None,
) -> Decision:
    """Decide contested pairs, and verified ones that people voted on or judges' verdicts reopen.

    Args:
        policy: how much verdicts count.
        verified: pairs that step 2 kept.
        contested: pairs that it did not.
        people: votes of people, as `published_algorithm.decide_by_people` takes them.
        ask: the judges; called for the contested pairs, and up to _REOPENINGS times for reopened ones if there are any.
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
    kept, reopened, unreached = verified, verified.iloc[:0], verified.iloc[:0]
    for _ in range(_REOPENINGS):
        uncertain = policy.reopened(kept, asked, votes, judges)
        newly, kept = select_rows(kept, uncertain), select_rows(kept, ~uncertain)
        left = None if calls is None else calls - judges * len(asked)
        again, beyond_too = within_budget(newly, left, judges, policy.surest_first)
        reopened, unreached = stack(reopened, newly), stack(unreached, beyond_too)
        if not len(again):
            break
        asked, votes = stack(asked, again), stack(votes, ask(again))
    resolved, metadata = policy.resolve(asked, votes, judges)
    # Reopened pairs without a verdict: retained where they are still likely enough to be right.
    silent = resolved.dropped["pair_id"].isin(reopened["pair_id"]) & (resolved.dropped["reason"] != UNSURE)
    without = stack(unreached, select_rows(resolved.dropped, silent.to_numpy(dtype=bool)))
    retained: set[str] = set()
    if len(without):
        retained = set(without["pair_id"][~policy.dropped_without_verdict(without, asked, votes, judges)])
    dropped = stack(resolved.dropped, beyond, unreached)
    dropped = select_rows(dropped, ~dropped["pair_id"].isin(retained).to_numpy(dtype=bool))
    unchanged = {*kept["pair_id"], *retained}
    return Decision(
        kept=select_rows(verified, verified["pair_id"].isin(unchanged).to_numpy(dtype=bool)),
        annotated=stack(settled.annotated, resolved.annotated),
        dropped=stack(settled.dropped, dropped),
        asked=asked,
        votes=votes,
        swapped=settled.swapped + resolved.swapped,
        reopened=len(reopened) - len(retained),
        beyond_budget=int((dropped["reason"] == BEYOND).sum()),
        metadata=metadata,
    )
