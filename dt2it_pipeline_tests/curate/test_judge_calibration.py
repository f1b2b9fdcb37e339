"""Judge calibration: how accurate verdicts are, and what they show about the vote."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit

from dt2it_pipeline.curate import calibrate_judges, merge, posterior_vote, split_confident
from dt2it_pipeline.curate.judge_calibration import UNSURE, fit_judge_calibration, reopened
from dt2it_pipeline.curate.pair_frames import length_difference
from dt2it_pipeline.curate.tables import to_frame, to_table
from dt2it_pipeline.storage import records, schemas
from dt2it_pipeline_tests.support.label_worlds import World, judged, judged_with, misled


def test_a_pair_without_one_verdict_of_two_judges_is_dropped_with_the_reason() -> None:
    world = World(400, 0.3)
    contested = split_confident(posterior_vote(world.pairs, world.voter("a")).voted, 0.85).contested.iloc[:4]
    verdicts = [("chosen", "chosen"), ("chosen", "tie"), ("chosen", "rejected"), (None, "chosen")]
    result = calibrate_judges(contested, judged(contested, verdicts), 0.7)
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
    result = calibrate_judges(contested, votes, 0.5, judges=1)
    ids = contested["pair_id"].tolist()
    assert result.annotated["pair_id"].tolist() == ids[:2]  # at 0.5 every verdict decides
    reasons = dict(zip(result.dropped["pair_id"], result.dropped["reason"], strict=True))
    assert reasons[ids[2]] == "votes are tied"
    assert reasons[ids[3]] == "votes do not sum to one"


@pytest.mark.parametrize("skill", [0.98, 0.75, 0.5, 0.1])
def test_a_verdict_counts_as_much_as_the_judges_accuracy_allows(skill: float) -> None:
    world = World(4000, 0.3, seed=1)
    contested = split_confident(posterior_vote(world.pairs, world.voter("a")).voted, 0.9).contested
    assert len(contested) > 500
    result = calibrate_judges(contested, judged_with(skill, world, contested), 0.9)
    calibration = result.calibration
    assert calibration.accuracy == pytest.approx(skill, abs=0.06)
    assert len(result.annotated) + len(result.dropped) == len(contested)
    if skill == 0.98:  # most are kept, and labels are flipped
        assert world.accuracy(result.annotated) > 0.97
        assert len(result.annotated) > 0.75 * len(contested)
        assert result.swapped > 50
    elif skill == 0.75:  # a verdict is enough for pairs that were nearly certain, and flips none
        assert world.accuracy(result.annotated) > 0.88
        assert result.swapped == 0
    else:  # verdicts at chance, or worse, add next to nothing
        assert len(result.annotated) < 0.02 * len(contested)
        assert set(result.dropped["reason"]) == {UNSURE}
    # What is kept is likely enough: the formula, pair by pair.
    before = contested.set_index("pair_id").loc[result.annotated["pair_id"]]
    signs = np.where(before["chosen_id"].to_numpy() == result.annotated["chosen_id"].to_numpy(), 1, -1)
    strength = before["strength"].to_numpy()
    odds = np.minimum(calibration.slope * strength + calibration.style * length_difference(before), strength)
    lean = calibration.judge_length_bias * signs * length_difference(before)  # for the side that the verdict chose
    verdict = np.log(expit(logit(calibration.accuracy) + lean) / expit(lean - logit(calibration.accuracy)))
    np.testing.assert_allclose(result.annotated["strength"], signs * odds + verdict)
    assert (result.annotated["strength"] >= np.log(9) - 1e-9).all()


def test_where_the_vote_outweighs_the_verdict_its_side_is_kept() -> None:
    world = World(4000, 0.3, seed=1)
    contested = split_confident(posterior_vote(world.pairs, world.voter("a")).voted, 0.99).contested
    votes = judged_with(0.7, world, contested)
    result = calibrate_judges(contested, votes, 0.5)
    assert len(result.annotated) == len(contested)
    label = contested.set_index("pair_id")["chosen_id"].loc[result.annotated["pair_id"]].to_numpy()
    verdicts = votes.drop_duplicates("pair_id").set_index("pair_id")["verdict"].loc[result.annotated["pair_id"]]
    overruled = (verdicts == "rejected").to_numpy() & (result.annotated["chosen_id"].to_numpy() == label)
    assert overruled.sum() > 50
    assert (result.annotated["strength"] >= 0).all()
    assert result.swapped == int((result.annotated["chosen_id"].to_numpy() != label).sum()) > 0
    assert world.accuracy(result.annotated) == pytest.approx(expit(result.annotated["strength"]).mean(), abs=0.03)


def test_verdicts_on_contested_pairs_find_the_style_that_misled_the_vote_elsewhere() -> None:
    world, voted = misled(8000)
    checked = split_confident(voted, 0.95)
    votes = judged_with(0.98, world, checked.contested)
    calibration = calibrate_judges(checked.contested, votes, 0.8).calibration
    assert (calibration.style, calibration.accuracy) == pytest.approx((-0.7, 0.98), abs=0.15)
    assert abs(calibration.judge_length_bias) < 0.4  # judges without a length bias are given little
    again = reopened(checked.verified, checked.contested, votes, 0.95)
    longer = length_difference(checked.verified) > 0
    assert again[longer].mean() > 2 * again[~longer].mean()
    assert world.accuracy(checked.verified[again]) < 0.88
    assert world.accuracy(checked.verified[~again]) > world.accuracy(checked.verified) + 0.03
    # Nobody answered: the vote stands as it is.
    nothing = to_frame(schemas.table([], "votes"))
    assert not reopened(checked.verified, checked.contested.iloc[:0], nothing, 0.95).any()
    assert not reopened(checked.verified, checked.contested, nothing, 0.95).any()


def test_verdicts_at_chance_do_little_harm() -> None:
    for seed in range(3):
        world = World(4000, 0.3, seed)
        checked = split_confident(posterior_vote(world.pairs, world.voter("a")).voted, 0.9)
        chance = judged_with(0.5, world, checked.contested, seed)
        assert reopened(checked.verified, checked.contested, chance, 0.9).mean() < 0.1
        kept = calibrate_judges(checked.contested, chance, 0.8).annotated
        assert len(kept) > 100 and world.accuracy(kept) > 0.8


def length_biased(longer_right: float, shorter_right: float, world: World, pairs: pd.DataFrame) -> pd.DataFrame:
    """Votes of a judge who is right with these probabilities where the longer, or the shorter, side is better."""
    right = world.is_right(pairs)
    honest = np.random.default_rng(7).random(len(pairs)) < np.where(
        right == (length_difference(pairs) > 0), longer_right, shorter_right
    )
    votes = judged(pairs, [("chosen" if each else "rejected", None) for each in right == honest])
    return votes[votes["judge"] == "a"]


@pytest.mark.parametrize(("longer_right", "shorter_right"), [(1.0, 0.0), (0.99, 0.5), (0.95, 0.65), (0.65, 0.95)])
def test_a_length_biased_judge_is_not_taken_for_a_vote_that_style_misled(
    longer_right: float, shorter_right: float
) -> None:
    for seed in range(2):
        world = World(2000, 0.3, seed)
        checked = split_confident(posterior_vote(world.pairs, world.voter("a")).voted, 0.95)
        votes = length_biased(longer_right, shorter_right, world, checked.contested)
        result = calibrate_judges(checked.contested, votes, 0.8, judges=1)
        assert np.sign(result.calibration.judge_length_bias) == np.sign(longer_right - shorter_right)
        assert result.calibration.accuracy < 0.9
        again = reopened(checked.verified, checked.contested, votes, 0.95, judges=1)
        assert again.mean() < 0.15
        assert len(result.annotated) > 300
        # The vote alone has 0.86 to 0.88 on them; believed, such judges would leave 0.4 to 0.8.
        assert world.accuracy(result.annotated) > 0.86
    if shorter_right == 0.0:
        assert result.swapped == 0


def test_without_any_strength_verdicts_count_by_the_prior_accuracy() -> None:
    world = World(400, 0.3)
    unknown = world.pairs.assign(strength=0.0, votes=None, round=0)
    alike = unknown.assign(chosen="a", rejected="b")
    result = calibrate_judges(alike, judged_with(0.5, world, alike), 0.8)
    assert len(result.annotated) == len(alike)  # kept from 0.8 on means that 0.8 is enough, whatever rounding does
    assert result.calibration.accuracy == pytest.approx(0.8)


def test_the_calibration_does_not_depend_on_which_side_is_chosen_and_never_exceeds_the_vote() -> None:
    world, voted = misled(2000)
    agrees = world.is_right(voted)
    calibration = fit_judge_calibration(voted, agrees)
    other = voted.rename(columns={"chosen": "rejected", "rejected": "chosen"})
    turned = fit_judge_calibration(other.assign(strength=-voted["strength"]), ~agrees)
    assert (turned.slope, turned.style, turned.accuracy, turned.judge_length_bias) == pytest.approx(
        (calibration.slope, calibration.style, calibration.accuracy, calibration.judge_length_bias), abs=2e-3
    )
    timid = voted.assign(strength=0.3 * voted["strength"])  # right more often than its log-odds claim
    assert fit_judge_calibration(timid, np.ones(len(timid), dtype=bool)).slope == 1.0


def test_the_fitted_calibration_is_a_minimum_of_the_loss() -> None:
    world, voted = misled(300)
    agrees = world.is_right(voted)

    def loss(slope: float, style: float, accuracy: float, judge_length_bias: float) -> float:
        longer = length_difference(voted)
        right = expit(slope * voted["strength"] + style * longer)
        if_right, if_wrong = (expit(sign * logit(accuracy) + judge_length_bias * longer) for sign in (1, -1))
        agreement = if_right * right + if_wrong * (1 - right)
        prior = ((slope - 1) / 0.25) ** 2 / 2 + (style / 0.5) ** 2 / 2 + (judge_length_bias / 0.5) ** 2 / 2
        prior -= 16 * np.log(accuracy) + 4 * np.log(1 - accuracy)
        return float(prior - np.log(np.where(agrees, agreement, 1 - agreement)).sum())

    calibration = fit_judge_calibration(voted, agrees)
    found = (calibration.slope, calibration.style, calibration.accuracy, calibration.judge_length_bias)
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
    empty = calibrate_judges(none.contested, to_frame(schemas.table([], "votes")), 0.5)
    assert len(to_table(merge(none.verified, empty.annotated, 0), "pairs")) == 20
    every = split_confident(voted, 1 - 1e-12)
    assert len(every.verified) == 0
    agreed = calibrate_judges(every.contested, judged(every.contested, [("chosen", "tie")] * 20), 0.5)
    assert len(to_table(merge(every.verified, agreed.annotated, 0), "pairs")) == 20
    nothing = calibrate_judges(every.contested, judged(every.contested, [("chosen", "rejected")] * 20), 0.5)
    assert (len(nothing.annotated), len(nothing.dropped)) == (0, 20)
    calibration = nothing.calibration
    assert (calibration.slope, calibration.style, calibration.accuracy, calibration.judge_length_bias) == pytest.approx(
        (1, 0, 0.8, 0), abs=1e-6
    )
