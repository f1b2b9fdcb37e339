"""`clean_preferences` and judges: in which order they saw the sides, and how far their verdicts are believed."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dt2it_pipeline import clean_preferences
from dt2it_pipeline.curate.voters.margins import CurationError
from dt2it_pipeline_tests.support.noisy_world import NoisyWorld, noisy_world


def test_verdicts_for_the_label_keep_it_where_no_voter_helps() -> None:
    world = noisy_world(400, 0.75, voters=0, judges=2)
    found = clean_preferences(world.pairs, votes=world.votes).pairs
    verdicts = world.votes.merge(world.pairs, on="pair_id")
    agrees = (verdicts["better_id"] == verdicts["chosen_id"]).groupby(verdicts["pair_id"]).sum().loc[found["pair_id"]]
    assert (found["outcome"][(agrees == 2).to_numpy()] == "kept").all()
    assert world.accuracy(found["outcome"]) > 0.85


@pytest.mark.parametrize("column", ["order", "shown_first"])
def test_a_judge_who_prefers_what_comes_first_is_believed_less_where_it_says_so(column: str) -> None:
    world = noisy_world(800, 0.8, voters=0, judges=1, judge=0.9, seed=1)
    votes = world.votes.merge(world.pairs, on="pair_id")
    rng = np.random.default_rng(0)
    lower = votes[["chosen_id", "rejected_id"]].min(axis=1)
    higher = votes[["chosen_id", "rejected_id"]].max(axis=1)
    forward = pd.Series(rng.random(len(votes)) < 0.5)
    first = lower.where(forward, higher)
    habit = rng.random(len(votes)) < 0.5  # then the judge does not look
    votes["better_id"] = votes["better_id"].mask(habit, first)
    told = votes.assign(order=np.where(forward, "forward", "reversed"), shown_first=first)
    told = told[["pair_id", "judge", "better_id", column]]
    gains = []
    for given in (told.drop(columns=column), told):
        found = clean_preferences(world.pairs, votes=given, audit=world.audit(200))
        p = np.where(found.pairs["outcome"] == "flipped", 1 - found.pairs["probability"], found.pairs["probability"])
        unchecked = ~found.pairs["pair_id"].isin(world.audit(200)["pair_id"]).to_numpy()
        gains.append(np.log(np.where(world.right, p, 1 - p))[unchecked].mean())
    assert gains[1] > gains[0] + 0.01


def told_orders(world: NoisyWorld) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Votes that say `shown_first`, and the same that say `order`; a judge who often takes what comes first."""
    votes = world.votes.merge(world.pairs, on="pair_id")
    sides = votes[["chosen_id", "rejected_id"]]
    forward = pd.Series(np.arange(len(votes)) % 3 < 1)
    first = sides.min(axis=1).where(forward, sides.max(axis=1))
    given = votes.assign(better_id=votes["better_id"].mask(pd.Series(np.arange(len(votes)) % 5 < 2), first))
    given = given[["pair_id", "judge", "better_id"]]
    return given.assign(shown_first=first), given.assign(order=np.where(forward, "forward", "reversed"))


def test_an_order_counts_where_shown_first_is_empty() -> None:
    world = noisy_world(400, 0.8, voters=0, judges=1, judge=0.9, seed=1)
    by_side, by_order = told_orders(world)
    empty = pd.Series(np.arange(len(by_side)) % 2 == 0)
    both = by_order.assign(shown_first=by_side["shown_first"].mask(empty))
    blank = by_order.assign(shown_first=by_side["shown_first"].mask(empty, " "))
    expected = clean_preferences(world.pairs, votes=by_order, audit=world.audit(60))
    for votes in (by_side, both, blank):
        found = clean_preferences(world.pairs, votes=votes, audit=world.audit(60))
        pd.testing.assert_frame_equal(found.pairs, expected.pairs)
        assert found.notes == expected.notes


@pytest.mark.parametrize(
    ("column", "value", "note"),
    [
        ("order", "left", "400 values of order are neither forward nor reversed, for example 'left'"),
        ("order", [0, 1], "400 values of order are neither forward nor reversed"),
        ("order", "alone", None),
        ("shown_first", "left", "400 values of shown_first name no side of their pair, for example 'left'"),
        ("shown_first", None, None),
    ],
)
def test_an_order_in_words_that_are_not_known_is_not_used_and_said(column: str, value: Any, note: str | None) -> None:
    world = noisy_world(400, 0.8, voters=0, judges=1, judge=0.9, seed=1)
    plain = clean_preferences(world.pairs, votes=world.votes)
    found = clean_preferences(world.pairs, votes=world.votes.assign(**{column: [value] * len(world.votes)}))
    pd.testing.assert_frame_equal(found.pairs, plain.pairs)
    said = set(found.notes) - set(plain.notes)
    assert len(said) == (note is not None)
    assert note is None or said.pop().startswith(note)


def test_ab_and_ba_are_forward_and_reversed_and_a_note_says_what_that_means() -> None:
    world = noisy_world(400, 0.8, voters=0, judges=1, judge=0.9, seed=1)
    _, by_order = told_orders(world)
    plain = clean_preferences(world.pairs, votes=by_order)
    words = by_order.assign(order=by_order["order"].map({"forward": "AB", "reversed": "ba"}))
    found = clean_preferences(world.pairs, votes=words)
    pd.testing.assert_frame_equal(found.pairs, plain.pairs)
    (note,) = set(found.notes) - set(plain.notes)
    assert note.startswith("400 values of order are AB or BA, which here means that the side with the lower id (AB)")


def test_judges_that_vote_on_all_pairs_and_against_the_labels_are_not_used_though_some_votes_cancel_out() -> None:
    world = noisy_world(300, 0.2, voters=0, judges=2, judge=0.75)
    signs = world.votes["better_id"].str[0].eq("a").groupby(world.votes["pair_id"]).nunique()
    assert 0.2 < (signs == 2).mean() < 0.5  # pairs of which the two say opposites
    found = clean_preferences(world.pairs, votes=world.votes)
    assert any("not used, since they agree with fewer than half of the labels: judge" in note for note in found.notes)
    assert not any("voters and judges agree" in note for note in found.notes)
    assert np.isnan(found.label_accuracy.before.estimate)


def swapped(votes: pd.DataFrame, judge: str) -> pd.DataFrame:
    """The votes with those of one judge for the other side."""
    turned = votes["judge"] == judge
    other = votes["better_id"].str.translate(str.maketrans("ab", "ba"))
    return votes.assign(better_id=votes["better_id"].mask(turned, other))


@pytest.mark.parametrize(("trusted", "audited"), [(0, 0), (30, 0), (0, 10)])
def test_a_judge_with_its_sides_swapped_counts_as_if_it_had_not_been_there(trusted: int, audited: int) -> None:
    """With fewer known pairs than make an anchor, too; nor are its verdicts a reason not to ask about a pair."""
    both = noisy_world(430, 0.8, voters=0, judges=2, judge=0.85)
    world, known = both.with_trusted(430 - trusted)
    audit = world.audit(audited) if audited else None
    more = {"audit": audit, "trusted": known if trusted else None}
    votes = swapped(both.votes, "j1")
    votes = votes[(votes["judge"] == "j1") | (np.arange(len(votes)) % 3 > 0)]  # the good one says nothing of some pairs
    found = clean_preferences(world.pairs, votes=votes, **more)
    alone = clean_preferences(world.pairs, votes=votes[votes["judge"] != "j1"], **more)
    pd.testing.assert_frame_equal(found.pairs, alone.pairs)
    assert len(found.wanted)
    pd.testing.assert_frame_equal(found.wanted, alone.wanted)
    (note,) = set(found.notes) - set(alone.notes)
    assert note.startswith("not used, since they agree with fewer than half of the labels: judge j1 (")


def test_what_an_audit_does_not_decide_is_decided_without_a_swapped_judge() -> None:
    world = noisy_world(300, 0.98, voters=0, judges=2, judge=0.7, seed=1)
    votes, audit = swapped(world.votes, "j1"), world.audit(15)
    found, without = (clean_preferences(world.pairs, votes=votes, audit=each) for each in (audit, None))
    assert any("the other pairs are decided as without them" in note for note in found.notes)
    others = ~found.pairs["pair_id"].isin(audit["pair_id"])
    pd.testing.assert_series_equal(found.pairs["outcome"][others], without.pairs["outcome"][others])
    assert (without.pairs["outcome"] == "dropped").any()


def test_judges_may_have_numbers_for_names() -> None:
    world = noisy_world(40, judges=1)
    names = pd.Series(np.where(np.arange(40) % 2 == 0, 3.0, np.nan))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = clean_preferences(world.pairs, votes=world.votes.assign(judge=names.to_numpy())).evidence()
    assert set(found.verdicts["judge"]) == {"3", "judge"}


def test_an_order_needs_ids_of_sides_and_says_so() -> None:
    table = pd.DataFrame({"chosen": ["a cat"] * 30, "rejected": ["a dog, or so"] * 30})
    votes = pd.DataFrame({"pair_id": range(30), "verdict": ["chosen", "chosen", "rejected"] * 10, "order": "forward"})
    notes = clean_preferences(table, votes=votes).notes
    assert "30 values of order say nothing, since the pairs have no chosen_id and rejected_id" in notes


def test_verdicts_on_trusted_pairs_show_how_far_a_judge_can_be_believed() -> None:
    both = noisy_world(700, 0.7, 0.8)
    world, trusted = both.with_trusted(600)
    rng = np.random.default_rng(0)
    honest = both.truth[["pair_id", "better_id"]].assign(judge="j")
    guessed = honest.assign(
        better_id=np.where(rng.random(700) < 0.5, both.pairs["chosen_id"], both.pairs["rejected_id"])
    )
    good, bad = (clean_preferences(world.pairs, both.scores, votes, trusted=trusted) for votes in (honest, guessed))
    right, less = (world.accuracy(each.pairs["outcome"]) for each in (good, bad))
    assert right > 0.97 and right > less > 0.8
    assert (good.pairs["outcome"] != "dropped").mean() > 0.97 > (bad.pairs["outcome"] != "dropped").mean() + 0.02
    assert not any("not in the table" in note for note in good.notes)
    twins = trusted.assign(pair_id=world.pairs["pair_id"].head(len(trusted)).tolist())
    with pytest.raises(CurationError, match="among the pairs to be cleaned, too"):
        clean_preferences(world.pairs, both.scores, honest, trusted=twins)
    only = honest[honest["pair_id"].isin(trusted["pair_id"])].assign(judge="k")
    found = clean_preferences(world.pairs, both.scores, pd.concat([honest, only]), trusted=trusted)
    assert any("of judges who said nothing of the pairs" in note and "'k'" in note for note in found.notes)


def test_a_judge_who_repeats_the_voter_adds_nothing() -> None:
    world = noisy_world(500, 0.95, 0.8, voters=1, shape="binary")
    pair_of = pd.concat([world.pairs.set_index(side)["pair_id"] for side in ("chosen_id", "rejected_id")])
    liked = world.scores["response_id"][world.scores["score"] > 0]
    votes = pd.DataFrame({"pair_id": pair_of.loc[liked].to_numpy(), "judge": "same", "better_id": liked.to_numpy()})
    once = clean_preferences(world.pairs, world.scores).pairs["probability"]
    twice = clean_preferences(world.pairs, world.scores, votes).pairs["probability"]
    assert abs(once.mean() - twice.mean()) < 0.05
