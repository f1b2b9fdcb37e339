"""The policy `joint` on pairs whose truth is known: who is asked about which pairs, and what becomes of every one."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from dt2it_pipeline.config.recipe import CurationSettings
from dt2it_pipeline.curate import Anchor, Decision, Policy, make_policy, merge
from dt2it_pipeline.curate.annotation.budget import BEYOND
from dt2it_pipeline.curate.policies.joint import NO_VOTER
from dt2it_pipeline.curate.tables import to_frame
from dt2it_pipeline.storage import schemas
from dt2it_pipeline_tests.support.label_worlds import World, judged_with

NOBODY = to_frame(schemas.table([], "votes"))


class Judge:
    """A judge of a known accuracy, who remembers what it was asked.

    Where `says` is given, all its verdicts on pairs to be cleaned are that; where `ties`, every so-manyth is a tie.
    """

    def __init__(self, world: World, skill: float = 0.9, says: str | None = None, ties: int | None = None) -> None:
        self.world, self.skill, self.says, self.ties = world, skill, says, ties
        self.asked: list[list[str]] = []

    def __call__(self, pairs: pd.DataFrame) -> pd.DataFrame:
        if pairs["pair_id"].str.startswith("t").any():  # trusted ones, whose label is right
            right = np.random.default_rng(len(pairs)).random(len(pairs)) < self.skill
            verdicts = np.where(right, "chosen", "rejected")
            return pairs[["pair_id"]].assign(judge="a", order="forward", verdict=verdicts).reset_index(drop=True)
        self.asked.append(pairs["pair_id"].tolist())
        votes = judged_with(self.skill, self.world, pairs, seed=len(self.asked))
        votes = votes[votes["judge"] == "a"].reset_index(drop=True)
        if self.ties:
            votes["verdict"] = votes["verdict"].mask(votes.index % self.ties == 0, "tie")
        return votes if self.says is None else votes.assign(verdict=self.says)


def policy(**settings: object) -> Policy:
    return make_policy(CurationSettings.model_validate({"policy": "joint", **settings}))


def world_with_scores(count: int = 600, noise: float = 0.3, quality: float = 2.0) -> tuple[World, pd.DataFrame]:
    world = World(count, noise)
    return world, pd.concat([world.voter("a", quality=quality), world.voter("b", quality=quality)], ignore_index=True)


def audited(world: World, count: int, seed: int = 0) -> Anchor:
    """An audit of so many pairs by somebody who knows."""
    drawn = np.random.default_rng(seed).permutation(len(world.pairs))[:count]
    rows = world.pairs.iloc[drawn]
    better = np.where(world.right[drawn], rows["chosen_id"], rows["rejected_id"])
    return Anchor(audit=pd.DataFrame({"pair_id": rows["pair_id"].to_numpy(), "better_id": better}))


def decided(
    world: World,
    scores: pd.DataFrame,
    anchor: Anchor,
    judge: Judge,
    calls: int | None = None,
    people: pd.DataFrame = NOBODY,
    **settings: object,
) -> Decision:
    chosen = policy(**settings)
    vote = chosen.vote(world.pairs, scores, {}, anchor)
    checked = chosen.check(vote.result.voted, scores)
    with_votes = Anchor(vote.trusted, anchor.audit)
    made = chosen.decide(checked.verified, checked.contested, people, judge, 1, calls, with_votes)
    ends = [*made.kept["pair_id"], *made.annotated["pair_id"], *made.dropped["pair_id"]]
    assert sorted(ends) == sorted(world.pairs["pair_id"])  # every pair ends once
    merge(made.kept, made.annotated)
    return made


def curated(made: Decision) -> pd.DataFrame:
    return pd.concat([made.kept, made.annotated], ignore_index=True)


def test_an_audit_lets_labels_be_flipped_and_the_estimate_holds() -> None:
    world, scores = world_with_scores()
    judge = Judge(world)
    made = decided(world, scores, audited(world, 60), judge)
    found = curated(made)
    assert world.accuracy(found) > 0.95 and len(found) > 0.8 * len(world.pairs)
    assert (found["label"] == "flipped").sum() > 40 and (found["label"] == "annotated").sum() > 20
    before, after = made.metadata["label_accuracy_before"], made.metadata["label_accuracy_after"]
    assert before[1] <= world.accuracy(world.pairs) <= before[2]
    assert after[1] <= world.accuracy(found) <= after[2]
    assert made.metadata["anchored"] and not made.metadata["sensitivity"]
    rows = made.calibration()
    assert rows["pairs"].sum() == 60 and set(rows["kind"]) == {"audited"}
    assert np.average(rows["claimed"], weights=rows["pairs"]) == pytest.approx(
        np.average(rows["observed"], weights=rows["pairs"]), abs=0.08
    )


def test_without_an_anchor_nothing_is_flipped_and_the_reader_learns_why() -> None:
    world, scores = world_with_scores()
    made = decided(world, scores, Anchor(), Judge(world))
    given = world.pairs.set_index("pair_id")["chosen_id"]
    found = curated(made)
    assert (found["chosen_id"].to_numpy() == given.reindex(found["pair_id"]).to_numpy()).all()
    assert set(found["label"]) <= {"original", "annotated"} and made.swapped == 0
    assert world.accuracy(found) > world.accuracy(world.pairs) + 0.05  # pairs that the evidence is against are dropped
    assert any("no label was flipped" in note for note in made.metadata["notes"])
    assert len(made.metadata["sensitivity"]) >= 2 and not made.metadata["anchored"]


def test_trusted_pairs_are_an_anchor_and_are_counted_apart() -> None:
    world, scores, renamed = with_trusted()
    chosen = policy()
    vote = chosen.vote(world.pairs, scores, {}, Anchor(trusted=renamed))
    assert len(vote.trusted) == vote.metadata["trusted_pairs"] == 120 and vote.result.flipped > 80
    assert len(vote.result.voted) == len(world.pairs)
    given = Anchor(trusted=renamed)
    made = decided(world, scores, given, judge := Judge(world, 0.97))
    assert made.metadata["anchored"] and world.accuracy(curated(made)) > 0.93
    assert len(curated(made)) > 0.8 * len(world.pairs)
    asked = [pair for one in judge.asked for pair in one]
    assert len(made.votes) == len(asked) + 120 and len(made.asked) == len(asked)  # trusted pairs are put to judges too
    assert not set(renamed["pair_id"]) & {*curated(made)["pair_id"], *made.dropped["pair_id"]}
    few = decided(world, scores, given, judge := Judge(world, 0.97), calls=60)
    assert len(few.votes) == 60 and sum(map(len, judge.asked)) == 30
    rows = made.calibration()
    assert set(rows["kind"]) == {"trusted"} and rows["pairs"].sum() == 120


@pytest.mark.parametrize("calls", [0, 1, 22, 60])
def test_a_budget_is_kept_and_a_part_of_it_checks_sure_pairs(calls: int) -> None:
    world, scores = world_with_scores()
    anchor, judge = audited(world, 60), Judge(world)
    made = decided(world, scores, anchor, judge, calls)
    asked = [pair for one in judge.asked for pair in one]
    assert len(asked) == len(set(asked)) == len(made.votes) == len(made.asked) == calls
    assert made.beyond_budget == int((made.dropped["reason"] == BEYOND).sum())
    if calls >= 22:  # one in eleven
        chosen = policy()
        vote = chosen.vote(world.pairs, scores, {}, anchor)
        sure = set(chosen.check(vote.result.voted, scores).verified["pair_id"])
        assert len(sure & set(judge.asked[0])) >= calls // 11


def test_verdicts_on_some_pairs_count_for_all() -> None:
    world, scores = world_with_scores(1000, quality=1.0)
    judge = Judge(world, skill=0.97)
    made = decided(world, scores, audited(world, 80), judge)
    asked = [pair for one in judge.asked for pair in one]
    assert len(asked) > 100 and world.accuracy(curated(made)) > 0.95
    assert made.asked["pair_id"].isin(asked).all() and len(made.asked) == len(asked)


def test_verdicts_show_which_other_pairs_to_ask_about_and_none_is_asked_twice() -> None:
    """Few checked pairs, and voters who are worse than they seem, until a judge says so. Ties are no verdict on a pair,
    which would be worth asking about again.
    """
    world, scores = world_with_scores(noise=0.1, quality=0.6)
    judge = Judge(world, skill=0.97, ties=3)
    made = decided(world, scores, audited(world, 15, seed=3), judge)
    first, *others = judge.asked
    assert len(others) >= 1 and sum(map(len, others)) > 10 and len(first) > 100
    asked = [pair for one in judge.asked for pair in one]
    assert len(asked) == len(set(asked)) == len(made.votes) == len(made.asked)
    assert (made.votes["verdict"] == "tie").mean() > 0.3


@pytest.mark.parametrize("says", ["tie", None])
def test_a_judge_without_an_opinion_decides_nothing(says: str | None) -> None:
    world, scores = world_with_scores()
    silent = Judge(world, says="tie")
    ask = silent if says else (lambda pairs: silent(pairs).assign(verdict=None))
    made = decided(world, scores, audited(world, 60), ask)  # type: ignore[arg-type]
    alone = decided(world, scores, audited(world, 60), Judge(world), 0)
    assert set(made.dropped["pair_id"]) == set(alone.dropped["pair_id"])
    assert not (curated(made)["label"] == "annotated").any()


def test_voters_do_not_judge_what_they_were_trained_on() -> None:
    world, scores = world_with_scores()
    mine, both = world.pairs["pair_id"][:100].tolist(), world.pairs["pair_id"][:7].tolist()
    result = policy().vote(world.pairs, scores, {"a": mine, "b": both}, audited(world, 60)).result
    assert result.unscored["pair_id"].tolist() == both and set(result.unscored["reason"]) == {NO_VOTER}
    voters = {row["pair_id"]: [vote["voter"] for vote in row["votes"]] for row in result.voted.to_dict("records")}
    assert all(voters[pair] == ["b"] for pair in mine[7:])
    assert all(names == ["a", "b"] for pair, names in voters.items() if pair not in mine)


def test_a_voter_of_few_pairs_does_not_take_the_others_place_on_trusted_pairs() -> None:
    """As a round's model, which learned nearly all pairs, may judge all trusted ones, and is the best of all there."""
    world, scores = world_with_scores()
    other = World(120, 0.0, seed=5)
    renamed = other.pairs.assign(**{name: "t" + other.pairs[name] for name in ("pair_id", "chosen_id", "rejected_id")})
    renamed = renamed.assign(chosen="w" * 20, rejected="v" * 20)
    theirs = pd.concat([other.voter(name, quality=2.0) for name in "ab"] + [other.voter("new", quality=9.0)])
    theirs["response_id"] = "t" + theirs["response_id"]
    scores = pd.concat([scores, world.voter("new", quality=9.0), theirs], ignore_index=True)
    learned = {"new": world.pairs["pair_id"][20:].tolist()}
    vote = policy().vote(world.pairs, scores, learned, Anchor(trusted=renamed))
    alone = policy().vote(world.pairs, scores[scores["voter"] != "new"], {}, Anchor(trusted=renamed))
    heard = [sorted(each["voter"] for each in votes) for votes in vote.trusted["votes"]]
    assert sum("new" in voters for voters in heard) < 20
    assert vote.result.flipped > 0.8 * alone.result.flipped > 60
    assert world.accuracy(vote.result.voted) > world.accuracy(alone.result.voted) - 0.03


def with_trusted(count: int = 120) -> tuple[World, pd.DataFrame, pd.DataFrame]:
    """A world, scores, and trusted pairs of another one, in one style as debiased pairs are."""
    world, scores = world_with_scores()
    other = World(count, 0.0, seed=5)
    named = {name: "t" + other.pairs[name] for name in ("pair_id", "chosen_id", "rejected_id")}
    theirs = pd.concat([other.voter(name, quality=2.0) for name in "ab"], ignore_index=True)
    scores = pd.concat([scores, theirs.assign(response_id="t" + theirs["response_id"])], ignore_index=True)
    return world, scores, other.pairs.assign(chosen="w" * 20, rejected="v" * 20, **named)


def test_people_decide_their_pairs() -> None:
    world, scores = world_with_scores()
    anchor = audited(world, 60)
    nobody_asked = decided(world, scores, anchor, Judge(world))
    some = curated(nobody_asked)["pair_id"].tolist()[:40]
    rows = world.pairs[world.pairs["pair_id"].isin(some)]
    chosen = policy()
    voted = chosen.vote(world.pairs, scores, {}, anchor).result.voted.set_index("pair_id").loc[rows["pair_id"]]
    verdict = np.where(world.is_right(voted.reset_index()), "chosen", "rejected")
    people = rows[["pair_id"]].assign(judge="person/x", order="people", verdict=verdict).reset_index(drop=True)
    people.loc[0, "verdict"] = "tie"
    made = decided(world, scores, anchor, judge := Judge(world), people=people)
    assert not set(some) & {pair for one in judge.asked for pair in one}
    theirs = curated(made)
    theirs = theirs[theirs["pair_id"].isin(people["pair_id"][1:])]
    assert len(theirs) == 39 and world.accuracy(theirs) == 1.0 and set(theirs["label"]) == {"annotated"}
    tied = made.dropped[made.dropped["pair_id"] == people["pair_id"][0]]
    assert tied["reason"].tolist() == ["votes are tied"]


def test_people_who_look_at_dropped_pairs_alone_do_not_bring_the_audit_into_doubt() -> None:
    """Most labels that they see are wrong, and rightly so: nothing may be concluded from that for the others."""
    world, scores = world_with_scores(noise=0.2)
    before = decided(world, scores, Anchor(), Judge(world), 0)
    shown = before.dropped.head(40).reset_index(drop=True)
    verdict = np.where(world.is_right(shown), "chosen", "rejected")
    people = shown[["pair_id"]].assign(judge="person/x", order="people", verdict=verdict)
    made = decided(world, scores, Anchor(), Judge(world), 0, people=people)
    theirs = curated(made)
    theirs = theirs[theirs["pair_id"].isin(shown["pair_id"])]
    assert len(theirs) == 40 and world.accuracy(theirs) == 1.0
    assert not any("the audit says" in note for note in made.metadata["notes"])
    assert world.accuracy(curated(made)) >= world.accuracy(curated(before))
    assert made.metadata["label_accuracy_before"] == before.metadata["label_accuracy_before"]


def test_voters_that_are_good_on_trusted_pairs_alone_change_nothing() -> None:
    world, scores, trusted = with_trusted()
    random = np.random.default_rng(2)
    own = ~scores["response_id"].str.startswith("t")
    scores.loc[own, "score"] = random.normal(size=int(own.sum()))
    made = decided(world, scores, Anchor(trusted=trusted), Judge(world), 0)
    assert len(curated(made)) == len(world.pairs) and made.swapped == 0
    assert world.accuracy(curated(made)) == world.accuracy(world.pairs)
    assert any("no more than chance" in note for note in made.metadata["notes"])


def test_a_good_judge_that_disagrees_with_the_doubtful_labels_it_sees_is_heard() -> None:
    world, scores = world_with_scores(quality=3.0)
    made = decided(world, scores, Anchor(), Judge(world, 0.99))
    alone = decided(world, scores, Anchor(), Judge(world, 0.99), 0)
    assert not any("judge" in note and "not used" in note for note in made.metadata["notes"])
    assert world.accuracy(curated(made)) > world.accuracy(curated(alone))


def test_a_pair_of_one_response_is_dropped_and_nobody_is_asked() -> None:
    world, scores = world_with_scores()
    world.pairs.loc[:9, "rejected_id"] = world.pairs.loc[:9, "chosen_id"]
    made = decided(world, scores, audited(world, 60), judge := Judge(world))
    same = set(world.pairs["pair_id"][:10])
    assert not same & {pair for one in judge.asked for pair in one}
    ended = made.dropped.set_index("pair_id")["reason"]
    assert {ended[pair] for pair in same & set(ended.index)} == {"both sides are one response"}
    assert made.beyond_budget == 0


def test_the_order_of_rows_changes_nothing_beside_trusted_pairs() -> None:
    world, scores, trusted = with_trusted()
    vote = policy().vote(world.pairs, scores, {}, Anchor(trusted=trusted))
    mixed = world.pairs.sample(frac=1.0, random_state=1).reset_index(drop=True)
    again = policy().vote(mixed, scores, {}, Anchor(trusted=trusted.iloc[::-1].reset_index(drop=True)))
    assert again.trusted["pair_id"].tolist() == vote.trusted["pair_id"].tolist()
    left, right = (one.result.voted.set_index("pair_id").sort_index() for one in (vote, again))
    assert left["chosen_id"].equals(right["chosen_id"])
    np.testing.assert_allclose(left["strength"], right["strength"], rtol=1e-3, atol=1e-3)


def test_trusted_pairs_that_are_to_be_cleaned_too_are_left_out() -> None:
    world, scores, trusted = with_trusted()
    twins = world.pairs.head(7)
    vote = policy().vote(world.pairs, scores, {}, Anchor(trusted=pd.concat([trusted, twins], ignore_index=True)))
    assert len(vote.trusted) == 120 and not set(vote.trusted["pair_id"]) & set(twins["pair_id"])


def test_labels_that_came_as_flipped_are_given_labels() -> None:
    world, scores = world_with_scores()
    made = decided(world, scores, audited(world, 60), Judge(world), 0)
    world.pairs["label"] = "flipped"
    again = decided(world, scores, audited(world, 60), Judge(world), 0)
    pd.testing.assert_frame_equal(curated(made), curated(again))


def test_an_audit_that_says_the_opposite_leaves_everything_as_it_came() -> None:
    world, scores = world_with_scores(noise=0.1)
    anchor = audited(world, 60)
    sides = dict(zip(world.pairs["chosen_id"], world.pairs["rejected_id"], strict=True))
    sides |= {value: key for key, value in sides.items()}
    turned = Anchor(audit=anchor.audit.assign(better_id=anchor.audit["better_id"].map(sides)))
    made = decided(world, scores, turned, judge := Judge(world))
    found = curated(made)
    assert len(found) == len(world.pairs) and not judge.asked and made.swapped == 0
    assert world.accuracy(found) == world.accuracy(world.pairs)
    assert any("stay as they are" in note for note in made.metadata["notes"])


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_few_pairs_or_none(count: int) -> None:
    world = World(max(count, 1), 0.3)
    world.pairs = world.pairs.iloc[:count]
    scores = world.voter("a") if count else World(2, 0.3).voter("a")
    made = decided(world, scores, Anchor(), Judge(world))
    assert len(curated(made)) == count and not len(made.dropped)


def test_the_order_of_pairs_changes_nothing() -> None:
    world, scores = world_with_scores(400)
    anchor = audited(world, 60)
    made = decided(world, scores, anchor, Judge(world, 1.0))
    mixed = World(400, 0.3)
    mixed.pairs = world.pairs.sample(frac=1.0, random_state=1).reset_index(drop=True)
    again = decided(mixed, scores, anchor, Judge(world, 1.0))
    left, right = (curated(one).set_index("pair_id").sort_index() for one in (made, again))
    assert left.index.equals(right.index) and left["chosen_id"].equals(right["chosen_id"])
    np.testing.assert_allclose(left["strength"], right["strength"], rtol=1e-3, atol=1e-3)


def test_a_dearer_wrong_label_keeps_fewer_pairs_with_better_labels() -> None:
    world, scores = world_with_scores()
    cheap, dear = (
        curated(decided(world, scores, audited(world, 60), Judge(world), 0, wrong_label_cost=cost))
        for cost in (2.0, 20.0)
    )
    assert len(dear) < len(cheap) and world.accuracy(dear) > world.accuracy(cheap)
