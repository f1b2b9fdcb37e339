"""Who is asked about which pairs, and what becomes of every one of them."""

from __future__ import annotations

import pandas as pd
import pytest

from dt2it_pipeline.config.recipe import CurationSettings
from dt2it_pipeline.curate import Decision, Policy, decide_pairs, make_policy, merge
from dt2it_pipeline.curate.annotation.budget import BEYOND
from dt2it_pipeline.curate.tables import to_frame
from dt2it_pipeline.storage import schemas
from dt2it_pipeline_tests.support.label_worlds import World, judged_with, misled

NOBODY = to_frame(schemas.table([], "votes"))


class Judge:
    """A judge who is nearly always right, and remembers what it was asked."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.asked: list[list[str]] = []

    def __call__(self, pairs: pd.DataFrame) -> pd.DataFrame:
        self.asked.append(pairs["pair_id"].tolist())
        votes = judged_with(0.98, self.world, pairs, seed=len(self.asked))
        return votes[votes["judge"] == "a"]


def posterior() -> Policy:
    return make_policy(CurationSettings(policy="posterior", keep_probability=0.95))


def decided(calls: int | None = None, people: pd.DataFrame = NOBODY) -> tuple[World, Judge, pd.DataFrame, Decision]:
    world, voted = misled(4000)
    judge, policy = Judge(world), posterior()
    checked = policy.check(voted, voted.iloc[:0])
    made = decide_pairs(policy, checked.verified, checked.contested, people, judge, 1, calls)
    ends = [*made.kept["pair_id"], *made.annotated["pair_id"], *made.dropped["pair_id"]]
    assert sorted(ends) == sorted(voted["pair_id"])  # every pair ends once
    return world, judge, checked.verified, made


def test_pairs_that_verdicts_reopen_are_judged_too() -> None:
    world, judge, verified, made = decided()
    first, second, third = judge.asked
    assert not set(first) & set(verified["pair_id"])
    assert {*second, *third} < set(verified["pair_id"])
    assert len(second) > len(third) > 0
    assert made.reopened == len(second) + len(third)
    assert made.asked["pair_id"].tolist() == [*first, *second, *third]
    assert len(made.votes) == len(made.asked)
    assert made.beyond_budget == 0
    assert world.accuracy(merge(made.kept, made.annotated)) > world.accuracy(verified) + 0.05
    assert set(made.metadata) == {"estimated_verdict_accuracy", "vote_slope", "vote_style", "judge_length_bias"}


@pytest.mark.parametrize("calls", [0, 1, 300])
def test_a_budget_that_ends_among_the_contested_pairs_is_kept(calls: int) -> None:
    _, judge, _, made = decided(calls)
    assert sum(map(len, judge.asked)) == len(made.votes) == calls
    assert made.beyond_budget == int((made.dropped["reason"] == BEYOND).sum()) > 0
    if calls == 0:  # there is no verdict that could reopen a pair
        assert made.reopened == 0


def test_a_budget_that_ends_among_the_reopened_pairs_retains_those_that_a_judge_would_keep() -> None:
    _, judge, _, whole = decided()
    contested = len(judge.asked[0])
    _, judge, verified, made = decided(contested + 50)
    assert [len(asked) for asked in judge.asked] == [contested, 50]
    assert len(made.kept) > len(whole.kept)
    reached = {pair for asked in judge.asked for pair in asked}
    lost = made.dropped[made.dropped["reason"] == BEYOND]["pair_id"]
    assert set(lost) <= set(verified["pair_id"]) - reached
    assert made.reopened == 50 + len(lost)
    assert made.beyond_budget == len(lost)


def test_more_calls_keep_more_pairs() -> None:
    kept = [len(made.kept) + len(made.annotated) for _, _, _, made in map(decided, (0, 100, 1000, 2500, None))]
    assert kept == sorted(kept)


def test_a_reopened_pair_whose_judge_has_no_opinion_is_retained() -> None:
    world, voted = misled(4000)
    judge, policy = Judge(world), posterior()
    checked = policy.check(voted, voted.iloc[:0])

    def ask(pairs: pd.DataFrame) -> pd.DataFrame:
        votes = judge(pairs)
        return votes if len(judge.asked) == 1 else votes.assign(verdict="tie")

    made = decide_pairs(policy, checked.verified, checked.contested, NOBODY, ask, 1)
    again = {pair for asked in judge.asked[1:] for pair in asked}
    assert len(again & set(made.kept["pair_id"])) > 100  # they are right with 0.8 or more all the same
    assert not again & set(made.annotated["pair_id"])
    ends = [*made.kept["pair_id"], *made.annotated["pair_id"], *made.dropped["pair_id"]]
    assert sorted(ends) == sorted(voted["pair_id"])


def test_people_decide_verified_pairs_as_well_as_contested_ones() -> None:
    _, _, verified, _ = decided()
    theirs = verified["pair_id"].tolist()[:2]
    rows = [
        {"pair_id": pair, "judge": "person/x", "order": "people", "verdict": verdict}
        for pair, verdict in zip(theirs, ("rejected", "tie"), strict=True)
    ]
    _, judge, _, made = decided(people=to_frame(schemas.table(rows, "votes")))
    assert not set(theirs) & {pair for asked in judge.asked for pair in asked}
    turned = made.annotated.set_index("pair_id").loc[theirs[0]]
    assert turned["chosen_id"] == verified["rejected_id"].iloc[0]
    assert made.dropped.set_index("pair_id")["reason"][theirs[1]] == "votes are tied"


def test_the_published_policy_asks_once() -> None:
    world, voted = misled(400)
    judge = Judge(world)
    verified, contested = voted.iloc[:300], voted.iloc[300:].reset_index(drop=True)
    made = decide_pairs(make_policy(CurationSettings()), verified, contested, NOBODY, judge, 1)
    assert len(judge.asked) == 1 and len(made.kept) == 300 and made.reopened == 0


def test_without_any_pair_nothing_is_lost() -> None:
    world, voted = misled(10)
    judge, none = Judge(world), voted.iloc[:0]
    made = decide_pairs(posterior(), none, none, NOBODY, judge, 1)
    assert [len(part) for part in (made.kept, made.annotated, made.dropped, made.votes)] == [0, 0, 0, 0]
