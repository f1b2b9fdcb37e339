"""What judges' verdicts are worth, and what they teach about the vote."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit

from dt2it_pipeline.curate import merge, posterior_vote, split_confident, weigh_judges
from dt2it_pipeline.curate.judge_calibration import UNSURE, doubtful, fit_trust
from dt2it_pipeline.curate.pair_frames import length_difference
from dt2it_pipeline.curate.tables import to_frame, to_table
from dt2it_pipeline.storage import records, schemas
from dt2it_pipeline_tests.curate.test_posterior import World


def judged(pairs: pd.DataFrame, verdicts: list[tuple[str | None, str | None]]) -> pd.DataFrame:
    rows = [
        {"pair_id": pair, "judge": judge, "order": "forward", "verdict": verdict}
        for pair, both in zip(pairs["pair_id"], verdicts, strict=True)
        for judge, verdict in zip("ab", both, strict=True)
    ]
    return to_frame(schemas.table(rows, "votes"))


def judged_with(skill: float, world: World, pairs: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Votes of two judges who say the same, and that rightly with the probability `skill`."""
    honest = np.random.default_rng(seed).random(len(pairs)) < skill
    sides = ["chosen" if each else "rejected" for each in world.is_right(pairs) == honest]
    return judged(pairs, [(side, side) for side in sides])


def test_a_pair_without_one_verdict_of_two_judges_is_dropped_with_the_reason() -> None:
    world = World(400, 0.3)
    contested = split_confident(posterior_vote(world.pairs, world.voter("a")).voted, 0.85).contested.iloc[:4]
    verdicts = [("chosen", "chosen"), ("chosen", "tie"), ("chosen", "rejected"), (None, "chosen")]
    result = weigh_judges(contested, judged(contested, verdicts), 0.7)
    ids = contested["pair_id"].tolist()
    assert result.annotated["pair_id"].tolist() == ids[:2]
    assert result.annotated["label"].tolist() == ["annotated"] * 2
    assert result.annotated["chosen_id"].tolist() == contested["chosen_id"].tolist()[:2]
    reasons = dict(zip(result.dropped["pair_id"], result.dropped["reason"], strict=True))
    assert reasons == {ids[2]: "votes are tied", ids[3]: "votes do not sum to two"}


def test_one_judge_can_decide() -> None:
    world = World(400, 0.3)
    contested = split_confident(posterior_vote(world.pairs, world.voter("a")).voted, 0.85).contested.iloc[:4]
    votes = judged(contested, [("chosen", None), ("rejected", None), ("tie", None), (None, None)])
    result = weigh_judges(contested, votes, 0.5, judges=1)
    ids = contested["pair_id"].tolist()
    assert result.annotated["pair_id"].tolist() == ids[:2]  # at 0.5 every verdict decides
    reasons = dict(zip(result.dropped["pair_id"], result.dropped["reason"], strict=True))
    assert reasons[ids[2]] == "votes are tied"
    assert reasons[ids[3]] == "votes do not sum to one"


@pytest.mark.parametrize("skill", [0.98, 0.75, 0.5, 0.1])
def test_a_verdict_weighs_what_the_judges_are_worth(skill: float) -> None:
    world = World(4000, 0.3, seed=1)
    contested = split_confident(posterior_vote(world.pairs, world.voter("a")).voted, 0.9).contested
    assert len(contested) > 500
    result = weigh_judges(contested, judged_with(skill, world, contested), 0.9)
    trust = result.trust
    assert trust.accuracy == pytest.approx(skill, abs=0.06)
    assert len(result.annotated) + len(result.dropped) == len(contested)
    if skill == 0.98:  # most are kept, and labels are turned
        assert world.accuracy(result.annotated) > 0.97
        assert len(result.annotated) > 0.75 * len(contested)
        assert result.swapped > 50
    elif skill == 0.75:  # their word is enough for pairs that were nearly sure, and turns none
        assert world.accuracy(result.annotated) > 0.88
        assert result.swapped == 0
    else:  # a coin's verdicts, or a liar's, add next to nothing
        assert len(result.annotated) < 0.02 * len(contested)
        assert set(result.dropped["reason"]) == {UNSURE}
    # What is kept was sure enough: the formula, pair by pair.
    before = contested.set_index("pair_id").loc[result.annotated["pair_id"]]
    signs = np.where(before["chosen_id"].to_numpy() == result.annotated["chosen_id"].to_numpy(), 1, -1)
    strength = before["strength"].to_numpy()
    odds = np.minimum(trust.slope * strength + trust.style * length_difference(before), strength)
    taste = trust.judge_style * signs * length_difference(before)  # for the side that the verdict chose
    verdict = np.log(expit(logit(trust.accuracy) + taste) / expit(taste - logit(trust.accuracy)))
    np.testing.assert_allclose(result.annotated["strength"], signs * odds + verdict)
    assert (result.annotated["strength"] >= np.log(9) - 1e-9).all()


def test_where_the_vote_says_more_than_the_judges_its_side_is_kept() -> None:
    world = World(4000, 0.3, seed=1)
    contested = split_confident(posterior_vote(world.pairs, world.voter("a")).voted, 0.99).contested
    votes = judged_with(0.7, world, contested)
    result = weigh_judges(contested, votes, 0.5)
    assert len(result.annotated) == len(contested)
    label = contested.set_index("pair_id")["chosen_id"].loc[result.annotated["pair_id"]].to_numpy()
    said = votes.drop_duplicates("pair_id").set_index("pair_id")["verdict"].loc[result.annotated["pair_id"]]
    overruled = (said == "rejected").to_numpy() & (result.annotated["chosen_id"].to_numpy() == label)
    assert overruled.sum() > 50
    assert (result.annotated["strength"] >= 0).all()
    assert result.swapped == int((result.annotated["chosen_id"].to_numpy() != label).sum()) > 0
    assert world.accuracy(result.annotated) == pytest.approx(expit(result.annotated["strength"]).mean(), abs=0.03)


def misled(count: int, seed: int = 0) -> tuple[World, pd.DataFrame]:
    """A vote that is too sure of itself, and more so of pairs whose longer side is chosen."""
    world = World(count, 0.3, seed)
    random = np.random.default_rng(seed)
    voted = world.pairs.assign(strength=np.abs(random.normal(2.5, 1.5, count)), votes=None, round=0)
    world.right = random.random(count) < expit(0.8 * voted["strength"] - 0.7 * length_difference(voted))
    return world, voted


def test_verdicts_on_contested_pairs_find_the_style_that_misled_the_vote_elsewhere() -> None:
    world, voted = misled(8000)
    checked = split_confident(voted, 0.95)
    votes = judged_with(0.98, world, checked.contested)
    trust = weigh_judges(checked.contested, votes, 0.8).trust
    assert (trust.style, trust.accuracy) == pytest.approx((-0.7, 0.98), abs=0.15)
    assert abs(trust.judge_style) < 0.4  # judges of no taste get little of the blame
    shaken = doubtful(checked.verified, checked.contested, votes, 0.95)
    longer = length_difference(checked.verified) > 0
    assert shaken[longer].mean() > 2 * shaken[~longer].mean()
    assert world.accuracy(checked.verified[shaken]) < 0.88
    assert world.accuracy(checked.verified[~shaken]) > world.accuracy(checked.verified) + 0.03
    # Nobody answered: the vote is taken at its word.
    nothing = to_frame(schemas.table([], "votes"))
    assert not doubtful(checked.verified, checked.contested.iloc[:0], nothing, 0.95).any()
    assert not doubtful(checked.verified, checked.contested, nothing, 0.95).any()


def test_a_coins_verdicts_do_little_harm() -> None:
    for seed in range(3):
        world = World(4000, 0.3, seed)
        checked = split_confident(posterior_vote(world.pairs, world.voter("a")).voted, 0.9)
        coin = judged_with(0.5, world, checked.contested, seed)
        assert doubtful(checked.verified, checked.contested, coin, 0.9).mean() < 0.1
        kept = weigh_judges(checked.contested, coin, 0.8).annotated
        assert len(kept) > 100 and world.accuracy(kept) > 0.8


def tasteful(longer_right: float, shorter_right: float, world: World, pairs: pd.DataFrame) -> pd.DataFrame:
    """Votes of a judge who is right with these probabilities where the longer, or the shorter, side is better."""
    right = world.is_right(pairs)
    honest = np.random.default_rng(7).random(len(pairs)) < np.where(
        right == (length_difference(pairs) > 0), longer_right, shorter_right
    )
    votes = judged(pairs, [("chosen" if each else "rejected", None) for each in right == honest])
    return votes[votes["judge"] == "a"]


@pytest.mark.parametrize(("longer_right", "shorter_right"), [(1.0, 0.0), (0.99, 0.5), (0.95, 0.65), (0.65, 0.95)])
def test_a_judge_of_a_taste_is_not_taken_for_a_vote_that_style_misled(
    longer_right: float, shorter_right: float
) -> None:
    for seed in range(2):
        world = World(2000, 0.3, seed)
        checked = split_confident(posterior_vote(world.pairs, world.voter("a")).voted, 0.95)
        votes = tasteful(longer_right, shorter_right, world, checked.contested)
        result = weigh_judges(checked.contested, votes, 0.8, judges=1)
        assert np.sign(result.trust.judge_style) == np.sign(longer_right - shorter_right)
        assert result.trust.accuracy < 0.9
        shaken = doubtful(checked.verified, checked.contested, votes, 0.95, judges=1)
        assert shaken.mean() < 0.15
        assert len(result.annotated) > 300
        # The vote alone has 0.86 to 0.88 on them; believed, such judges would leave 0.4 to 0.8.
        assert world.accuracy(result.annotated) > 0.86
    if shorter_right == 0.0:
        assert result.swapped == 0


def test_without_any_strength_verdicts_decide_with_what_they_are_usually_worth() -> None:
    world = World(400, 0.3)
    unknown = world.pairs.assign(strength=0.0, votes=None, round=0)
    alike = unknown.assign(chosen="a", rejected="b")
    result = weigh_judges(alike, judged_with(0.5, world, alike), 0.8)
    assert len(result.annotated) == len(alike)  # kept from 0.8 on means that 0.8 is enough, whatever rounding does
    assert result.trust.accuracy == pytest.approx(0.8)


def test_trust_does_not_depend_on_which_side_is_called_chosen_and_never_exceeds_the_vote() -> None:
    world, voted = misled(2000)
    agrees = world.is_right(voted)
    trust = fit_trust(voted, agrees)
    other = voted.rename(columns={"chosen": "rejected", "rejected": "chosen"})
    turned = fit_trust(other.assign(strength=-voted["strength"]), ~agrees)
    assert (turned.slope, turned.style, turned.accuracy, turned.judge_style) == pytest.approx(
        (trust.slope, trust.style, trust.accuracy, trust.judge_style), abs=2e-3
    )
    timid = voted.assign(strength=0.3 * voted["strength"])  # it was right more often than it said
    assert fit_trust(timid, np.ones(len(timid), dtype=bool)).slope == 1.0


def test_the_fitted_trust_is_a_minimum_of_what_is_minimised() -> None:
    world, voted = misled(300)
    agrees = world.is_right(voted)

    def loss(slope: float, style: float, accuracy: float, judge_style: float) -> float:
        longer = length_difference(voted)
        right = expit(slope * voted["strength"] + style * longer)
        if_right, if_wrong = (expit(sign * logit(accuracy) + judge_style * longer) for sign in (1, -1))
        agreement = if_right * right + if_wrong * (1 - right)
        prior = ((slope - 1) / 0.25) ** 2 / 2 + (style / 0.5) ** 2 / 2 + (judge_style / 0.5) ** 2 / 2
        prior -= 16 * np.log(accuracy) + 4 * np.log(1 - accuracy)
        return float(prior - np.log(np.where(agrees, agreement, 1 - agreement)).sum())

    trust = fit_trust(voted, agrees)
    found = (trust.slope, trust.style, trust.accuracy, trust.judge_style)
    least = loss(*found)
    for place in range(4):
        for step in (-0.02, 0.02):
            other = [value + step * (index == place) for index, value in enumerate(found)]
            if other[0] <= 1:
                assert loss(*other) > least


def test_nothing_contested_and_everything_contested() -> None:
    rows = [records.make_pair(f"q{i}", "a longer answer", "no", source="s") for i in range(20)]
    pairs = to_frame(schemas.table(rows, "pairs"))
    ids = np.concatenate([pairs["chosen_id"], pairs["rejected_id"]])
    scores = pd.DataFrame({"response_id": ids, "voter": "a", "score": np.repeat([1.0, 0.0], len(pairs))})
    voted = posterior_vote(pairs, scores).voted
    assert to_table(voted, "pairs").num_rows == 20
    none = split_confident(voted, 0.5)
    assert len(none.contested) == 0
    empty = weigh_judges(none.contested, to_frame(schemas.table([], "votes")), 0.5)
    assert len(to_table(merge(none.verified, empty.annotated, 0), "pairs")) == 20
    every = split_confident(voted, 1 - 1e-12)
    assert len(every.verified) == 0
    agreed = weigh_judges(every.contested, judged(every.contested, [("chosen", "tie")] * 20), 0.5)
    assert len(to_table(merge(every.verified, agreed.annotated, 0), "pairs")) == 20
    nothing = weigh_judges(every.contested, judged(every.contested, [("chosen", "rejected")] * 20), 0.5)
    assert (len(nothing.annotated), len(nothing.dropped)) == (0, 20)
    trust = nothing.trust
    assert (trust.slope, trust.style, trust.accuracy, trust.judge_style) == pytest.approx((1, 0, 0.8, 0), abs=1e-6)
