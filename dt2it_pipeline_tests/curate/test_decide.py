"""Who is asked about which pairs, and what becomes of every one of them."""

from __future__ import annotations

import pandas as pd
import pytest

from dt2it_pipeline import records
from dt2it_pipeline.curate import Decision, Policy, decide_pairs, make_policy, merge
from dt2it_pipeline.curate.budget import BEYOND
from dt2it_pipeline.curate.tables import to_frame
from dt2it_pipeline.recipe import CurationSettings
from dt2it_pipeline_tests.curate.test_posterior import World
from dt2it_pipeline_tests.curate.test_verdicts import judged_with, misled

NOBODY = to_frame(records.table([], "votes"))


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


def test_pairs_that_verdicts_shake_are_judged_too() -> None:
    world, judge, verified, made = decided()
    first, second = judge.asked
    assert not set(first) & set(verified["pair_id"])
    assert set(second) < set(verified["pair_id"])
    assert made.recalled == len(second) > 100
    assert made.asked["pair_id"].tolist() == [*first, *second]
    assert len(made.votes) == len(first) + len(second)
    assert made.beyond_budget == 0
    assert world.accuracy(merge(made.kept, made.annotated)) > world.accuracy(verified) + 0.02
    assert set(made.facts) == {"estimated_verdict_accuracy", "vote_slope", "vote_style"}


@pytest.mark.parametrize("calls", [0, 1, 300])
def test_a_budget_that_ends_among_the_contested_pairs_is_kept(calls: int) -> None:
    _, judge, _, made = decided(calls)
    assert sum(map(len, judge.asked)) == len(made.votes) == calls
    assert made.beyond_budget == int((made.dropped["reason"] == BEYOND).sum()) > 0
    if calls == 0:  # nobody has said anything that could shake a pair
        assert made.recalled == 0


def test_a_budget_that_ends_among_the_shaken_pairs_leaves_out_the_rest() -> None:
    _, judge, _, whole = decided()
    contested = len(judge.asked[0])
    _, judge, _, made = decided(contested + 50)
    assert [len(asked) for asked in judge.asked] == [contested, 50]
    assert made.recalled == whole.recalled
    assert made.beyond_budget == made.recalled - 50


def test_people_decide_verified_pairs_as_well_as_contested_ones() -> None:
    _, _, verified, _ = decided()
    theirs = verified["pair_id"].tolist()[:2]
    rows = [
        {"pair_id": pair, "judge": "person/x", "order": "people", "verdict": verdict}
        for pair, verdict in zip(theirs, ("rejected", "tie"), strict=True)
    ]
    _, judge, _, made = decided(people=to_frame(records.table(rows, "votes")))
    assert not set(theirs) & {pair for asked in judge.asked for pair in asked}
    turned = made.annotated.set_index("pair_id").loc[theirs[0]]
    assert turned["chosen_id"] == verified["rejected_id"].iloc[0]
    assert made.dropped.set_index("pair_id")["reason"][theirs[1]] == "votes are tied"


def test_the_published_policy_asks_once() -> None:
    world, voted = misled(400)
    judge = Judge(world)
    verified, contested = voted.iloc[:300], voted.iloc[300:].reset_index(drop=True)
    made = decide_pairs(make_policy(CurationSettings()), verified, contested, NOBODY, judge, 1)
    assert len(judge.asked) == 1 and len(made.kept) == 300 and made.recalled == 0


def test_without_any_pair_nothing_is_lost() -> None:
    world, voted = misled(10)
    judge, none = Judge(world), voted.iloc[:0]
    made = decide_pairs(posterior(), none, none, NOBODY, judge, 1)
    assert [len(part) for part in (made.kept, made.annotated, made.dropped, made.votes)] == [0, 0, 0, 0]
