from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from dt2it_pipeline.curate import CurationError, posterior_vote, split_confident
from dt2it_pipeline.curate.posterior import NO_VOTER
from dt2it_pipeline_tests.support.label_worlds import World


@pytest.mark.parametrize("noise", [0.1, 0.3, 0.4])
@pytest.mark.parametrize("style", [0.0, 0.5])
def test_estimates_the_noise_and_probabilities_that_hold(noise: float, style: float) -> None:
    world = World(4000, noise)
    result = posterior_vote(world.pairs, world.voter("a", scale=7.0, style=style))
    assert result.model.label_accuracy["s"] == pytest.approx(1 - noise, abs=0.05)
    expected = float(expit(result.voted["strength"]).mean())
    assert world.accuracy(result.voted) == pytest.approx(expected, abs=0.04)
    sure = split_confident(result.voted, 0.85).verified
    assert world.accuracy(sure) > world.accuracy(result.voted) + 0.01
    assert len(sure) > 0.7 * len(world.pairs)


def test_no_harm_where_no_label_is_wrong() -> None:
    world = World(3000, 0.0)
    result = posterior_vote(world.pairs, world.voter("a"))
    assert result.flipped < 0.01 * len(world.pairs)
    assert result.model.label_accuracy["s"] > 0.98


def test_a_voter_that_likes_the_labels_style_does_not_hide_wrong_labels() -> None:
    world = World(3000, 0.3)
    result = posterior_vote(world.pairs, world.voter("a", style=0.8))
    assert result.model.style_shifts[0] > 0.3
    assert world.accuracy(result.voted) > 0.9


def test_scale_does_not_matter_and_a_useless_voter_has_no_weight() -> None:
    world = World(3000, 0.3)
    good, useless = world.voter("good"), world.voter("useless", quality=0.0)
    constant = good.assign(voter="constant", score=5.0)
    alone = posterior_vote(world.pairs, good)
    loud = posterior_vote(world.pairs, good.assign(score=good["score"] * 1000))
    np.testing.assert_allclose(loud.voted["strength"], alone.voted["strength"], rtol=1e-6)
    together = posterior_vote(world.pairs, pd.concat([good, useless.assign(score=useless["score"] * 50), constant]))
    weights = dict(zip(together.voters, together.model.weights, strict=True))
    assert weights["good"] > 5 * weights["useless"]
    assert world.accuracy(together.voted) > world.accuracy(alone.voted) - 0.01
    assert {vote["voter"] for vote in together.voted["votes"].iloc[0]} == {"good", "useless", "constant"}


def test_two_independent_voters_are_better_than_one_and_a_copy_is_not() -> None:
    world = World(3000, 0.3)
    one = world.voter("a")
    alone = posterior_vote(world.pairs, one)
    copied = posterior_vote(world.pairs, pd.concat([one, one.assign(voter="copy")]))
    both = posterior_vote(world.pairs, pd.concat([one, world.voter("b")]))
    assert world.accuracy(both.voted) > world.accuracy(alone.voted) + 0.01
    assert copied.voted["strength"].mean() == pytest.approx(alone.voted["strength"].mean(), rel=0.1)


def test_a_voter_alone_at_chance_leaves_every_label() -> None:
    world = World(500, 0.3)
    constant = world.voter("a").assign(score=1.0)
    result = posterior_vote(world.pairs, constant)
    assert result.flipped == 0
    assert (result.voted["strength"] == 0).all()
    assert split_confident(result.voted, 0.8).verified.empty


def test_one_broken_score_does_not_silence_a_voter() -> None:
    world = World(1500, 0.3)
    sound = world.voter("a")
    broken = sound.assign(score=sound["score"].where(sound.index != 7, 1e4))
    expected, result = posterior_vote(world.pairs, sound), posterior_vote(world.pairs, broken)
    assert abs(result.flipped - expected.flipped) <= 0.05 * expected.flipped


def test_a_voter_has_no_say_on_the_pairs_it_was_trained_on() -> None:
    world = World(1000, 0.3)
    scores = pd.concat([world.voter("reward_model/0"), world.voter("reward_model/1")])
    trained = world.pairs["pair_id"][:600].tolist()
    voted = posterior_vote(world.pairs, scores, {"reward_model/1": trained, "unknown": ["x"]}).voted
    voters = voted["votes"].map(lambda votes: " ".join(vote["voter"] for vote in votes)).astype(str)
    was_trained_on = voted["pair_id"].isin(trained)
    assert set(voters[was_trained_on]) == {"reward_model/0"}
    assert set(voters[~was_trained_on]) == {"reward_model/0 reward_model/1"}
    only = posterior_vote(world.pairs, scores[scores["voter"] == "reward_model/1"], {"reward_model/1": trained})
    assert only.unscored["pair_id"].tolist() == trained
    assert set(only.unscored["reason"]) == {NO_VOTER}
    assert len(only.voted) + len(only.unscored) == len(world.pairs)


def test_a_voter_that_may_judge_only_a_small_rest_changes_nothing() -> None:
    world = World(2000, 0.3)
    first, second = world.voter("reward_model/0"), world.voter("reward_model/1")
    alone = posterior_vote(world.pairs, first).voted
    trained = {"reward_model/1": world.pairs["pair_id"][:1900].tolist()}
    both = posterior_vote(world.pairs, pd.concat([first, second]), trained)
    assert both.model.weights[1] == pytest.approx(0.0, abs=1e-9)
    np.testing.assert_allclose(both.voted["strength"], alone["strength"], rtol=1e-6)


def test_a_score_that_is_missing_or_not_finite_silences_that_voter_on_that_pair_alone() -> None:
    world = World(400, 0.3)
    a, b = world.voter("a"), world.voter("b")
    a.loc[a["response_id"] == "c00000", "score"] = np.nan
    b = b[b["response_id"] != "r00001"]
    a.loc[a["response_id"].isin(["c00002", "r00003"]), "score"] = np.inf
    b.loc[b["response_id"] == "c00002", "score"] = -np.inf
    result = posterior_vote(world.pairs, pd.concat([a, b]))
    votes = result.voted.set_index("pair_id")["votes"].map(lambda votes: [vote["voter"] for vote in votes])
    assert (votes["p00000"], votes["p00001"], votes["p00003"]) == (["b"], ["a"], ["b"])
    assert result.unscored["pair_id"].tolist() == ["p00002"]
    assert result.unscored["reason"].tolist() == ["score not finite"]
    assert np.isfinite(result.voted["strength"]).all()


@pytest.mark.parametrize("seed", range(3))
def test_a_voter_that_knows_nothing_or_the_opposite_rewrites_no_label(seed: int) -> None:
    world = World(3000, 0.3, seed)
    ids = np.concatenate([world.pairs["chosen_id"], world.pairs["rejected_id"]])
    noise = pd.DataFrame({"response_id": ids, "voter": "n", "score": world.random.normal(size=len(ids))})
    inverted = world.voter("i").assign(score=lambda frame: -frame["score"])
    for scores in (noise, inverted, pd.concat([noise, inverted])):
        result = posterior_vote(world.pairs, scores)
        assert result.flipped == 0
        assert not result.model.weights.any()
        assert len(split_confident(result.voted, 0.6).verified) == 0
    beside = posterior_vote(world.pairs, pd.concat([noise, world.voter("a")]))
    assert beside.voters == ("a", "n")
    assert beside.model.weights[0] > 1
    assert world.accuracy(beside.voted) > 0.88


def test_sources_have_their_own_noise_and_tiny_ones_are_pooled() -> None:
    clean, noisy, tiny = World(1500, 0.05, 1, ("clean",)), World(1500, 0.4, 2, ("noisy",)), World(3, 0.4, 3, ("tiny",))
    parts, scores = [], []
    for name, world in (("x", clean), ("y", noisy), ("z", tiny)):
        ids = ["pair_id", "chosen_id", "rejected_id"]
        parts.append(world.pairs.assign(**{column: name + world.pairs[column] for column in ids}))
        voter = world.voter("a")
        scores.append(voter.assign(response_id=name + voter["response_id"]))
    share = posterior_vote(pd.concat(parts, ignore_index=True), pd.concat(scores)).model
    assert share.label_accuracy["clean"] == pytest.approx(0.95, abs=0.04)
    assert share.label_accuracy["noisy"] == pytest.approx(0.6, abs=0.06)
    assert share.pooled == ("tiny",)
    assert share.label_accuracy["tiny"] in (share.label_accuracy["clean"], share.label_accuracy["noisy"])
    small = posterior_vote(pd.concat(parts, ignore_index=True), pd.concat(scores), smallest_source=3)
    assert small.model.pooled == ()


def test_three_pairs_alone_and_no_pairs_at_all() -> None:
    world = World(3, 0.0)
    result = posterior_vote(world.pairs, world.voter("a"))
    assert np.isfinite(result.voted["strength"]).all()
    empty = posterior_vote(world.pairs.iloc[:0], world.voter("a"))
    assert len(empty.voted) == len(empty.unscored) == empty.flipped == 0
    unscored = posterior_vote(world.pairs, world.voter("a").iloc[:0])
    assert set(unscored.unscored["reason"]) == {"score missing"}
    assert len(unscored.voted) == 0
    assert len(split_confident(unscored.voted, 0.9).verified) == 0


def test_rows_in_any_order_give_the_same_and_inputs_stay() -> None:
    world = World(300, 0.3)
    scores, before = world.voter("a"), world.pairs.copy(deep=True)
    first = posterior_vote(world.pairs, scores).voted.set_index("pair_id")
    pd.testing.assert_frame_equal(world.pairs, before)
    mixed = posterior_vote(world.pairs.sample(frac=1, random_state=1), scores.sample(frac=1, random_state=2)).voted
    mixed = mixed.set_index("pair_id").loc[first.index]
    assert mixed["chosen_id"].tolist() == first["chosen_id"].tolist()
    np.testing.assert_allclose(mixed["strength"], first["strength"], rtol=1e-4)


def test_malformed_tables_give_clear_errors() -> None:
    world = World(5, 0.0)
    scores = world.voter("a")
    with pytest.raises(CurationError, match="1 rows repeat a pair_id"):
        posterior_vote(pd.concat([world.pairs, world.pairs.iloc[:1]]), scores)
    with pytest.raises(CurationError, match="two different scores"):
        posterior_vote(world.pairs, pd.concat([scores, scores.iloc[:1].assign(score=99.0)]))
    with pytest.raises(ValueError, match=r"at least 0\.5 and below 1"):
        split_confident(posterior_vote(world.pairs, scores).voted, 1.0)
