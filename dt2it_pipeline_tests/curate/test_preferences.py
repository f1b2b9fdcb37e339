"""`clean_preferences`: no harm, honest claims, audits that help, and any table."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dt2it_pipeline import clean_preferences
from dt2it_pipeline.curate.joint.sensitivity import COLUMNS
from dt2it_pipeline.curate.voters.margins import CurationError
from dt2it_pipeline_tests.support.noisy_world import NoisyWorld, noisy_world


def significantly_worse(world: NoisyWorld, outcome: pd.Series) -> bool:
    """The bootstrap interval of label accuracy after minus before lies below 0."""
    rng = np.random.default_rng(0)
    stays, flipped = (outcome != "dropped").to_numpy(), (outcome == "flipped").to_numpy()
    rows = rng.integers(0, len(outcome), (500, len(outcome)))
    after = ((world.right ^ flipped) & stays)[rows].sum(axis=1) / np.maximum(stays[rows].sum(axis=1), 1)
    return bool(np.quantile(after - world.right[rows].mean(axis=1), 0.975) < 0)


SHAPES = (("normal", 1), ("binary", 3), ("heavy", 3), ("rounded", 2))


@pytest.mark.parametrize("label", [1.0, 0.98, 0.95, 0.7])
@pytest.mark.parametrize(("place", "voter"), enumerate([0.6, 0.8, 0.99]))
def test_labels_never_get_worse(label: float, place: int, voter: float) -> None:
    shape, voters = SHAPES[(place + int(100 * label)) % len(SHAPES)]
    for count, checked in ((25, 0), (400, 0), (400, 50)):
        world = noisy_world(count, label, voter, voters, shape=shape, seed=count)
        audit = world.audit(checked) if checked else None
        found = clean_preferences(world.pairs, world.scores, audit=audit)
        assert not significantly_worse(world, found.pairs["outcome"])
        assert checked or not (found.pairs["outcome"] == "flipped").any()


@pytest.mark.parametrize("judge", [0.2, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("label", [0.98, 0.75])
def test_judges_alone_do_no_harm_whatever_they_are(judge: float, label: float) -> None:
    for judges, checked in ((1, 0), (2, 0), (2, 50)):
        world = noisy_world(400, label, voters=0, judges=judges, judge=judge)
        audit = world.audit(checked) if checked else None
        found = clean_preferences(world.pairs, votes=world.votes, audit=audit)
        assert not significantly_worse(world, found.pairs["outcome"])
        assert (found.pairs["outcome"] != "dropped").any()


def test_verdicts_for_the_label_keep_it_where_no_voter_helps() -> None:
    world = noisy_world(400, 0.75, voters=0, judges=2)
    found = clean_preferences(world.pairs, votes=world.votes).pairs
    verdicts = world.votes.merge(world.pairs, on="pair_id")
    agrees = (verdicts["better_id"] == verdicts["chosen_id"]).groupby(verdicts["pair_id"]).sum().loc[found["pair_id"]]
    assert (found["outcome"][(agrees == 2).to_numpy()] == "kept").all()
    assert world.accuracy(found["outcome"]) > 0.85


def test_fifty_checks_correct_labels_and_make_the_claims_true() -> None:
    gaps, gains = [], []
    for seed in range(4):
        world = noisy_world(600, 0.7, 0.88, judges=1, judge=0.9, seed=seed)
        audit = world.audit(50, seed)
        found = clean_preferences(world.pairs, world.scores, world.votes, audit)
        outcome = found.pairs["outcome"]
        assert (outcome == "flipped").sum() > 50
        stays = (outcome != "dropped").to_numpy()
        gaps.append(found.pairs["probability"][stays].mean() - world.accuracy(outcome))
        gains.append(world.accuracy(outcome) - world.right.mean())
        for estimate, true in (
            (found.label_accuracy.before, world.right.mean()),
            (found.label_accuracy.after, world.accuracy(outcome)),
        ):
            assert estimate.low <= true <= estimate.high
    assert abs(np.mean(gaps)) < 0.03
    assert min(gains) > 0.15


def test_without_an_anchor_the_range_of_assumptions_holds_the_truth() -> None:
    world = noisy_world(600, 0.85, 0.8)
    found = clean_preferences(world.pairs, world.scores)
    table = found.sensitivity
    assert list(table.columns) == list(COLUMNS) and table["annotator_accuracy"].tolist() == [0.7, 0.8, 0.9]
    kept = (found.pairs["outcome"] == "kept").to_numpy()
    true = float(world.right[kept].mean())
    assert all(table["after_low"] <= table["accuracy_after"]) and all(table["accuracy_after"] <= table["after_high"])
    assert table["after_low"].iloc[1] <= true <= table["after_high"].iloc[1]  # voters together are right in 80%
    assert any("no label was flipped" in sentence for sentence in found.notes)
    assert any("assumed, not measured" in sentence for sentence in found.notes)
    assert clean_preferences(world.pairs, world.scores, audit=world.audit(50)).sensitivity.empty


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


def test_judges_that_vote_on_all_pairs_and_against_the_labels_are_not_used_though_some_votes_cancel_out() -> None:
    world = noisy_world(300, 0.2, voters=0, judges=2, judge=0.75)
    signs = world.votes["better_id"].str[0].eq("a").groupby(world.votes["pair_id"]).nunique()
    assert 0.2 < (signs == 2).mean() < 0.5  # pairs of which the two say opposites
    found = clean_preferences(world.pairs, votes=world.votes)
    assert any("not used, since they agree with fewer than half of the labels: judge" in note for note in found.notes)
    assert not any("voters and judges agree" in note for note in found.notes)
    assert np.isnan(found.label_accuracy.before.estimate)


def test_beside_trusted_pairs_labels_at_chance_stay_and_the_note_says_what_would_help() -> None:
    world, known = noisy_world(400, 0.5, 0.9), noisy_world(100, 1.0, 0.9, seed=1)
    trusted = known.pairs.replace(r"^([abp])", r"t\1", regex=True)
    scores = pd.concat([world.scores, known.scores.assign(response_id="t" + known.scores["response_id"])])
    found = clean_preferences(world.pairs, scores, trusted=trusted)
    assert (found.pairs["outcome"] == "kept").all()
    assert any("no more than chance" in note and "let a person check 15 or more" in note for note in found.notes)
    checked = clean_preferences(world.pairs, scores, audit=world.audit(60), trusted=trusted)
    assert (checked.pairs["outcome"] == "flipped").mean() > 0.2 and world.accuracy(checked.pairs["outcome"]) > 0.8


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


def test_a_pair_that_nobody_looked_at_is_like_the_others_and_a_tie_is_none_of_these() -> None:
    world = noisy_world(600, 0.85, voters=0, judges=1, judge=0.95)
    votes = world.votes.drop_duplicates("pair_id").reset_index(drop=True)
    votes.loc[:49, "better_id"] = None  # ties
    looked_at = votes.drop(index=range(50, 100))
    found = clean_preferences(world.pairs, votes=looked_at, audit=world.audit(100)).pairs.set_index("pair_id")
    unchecked = found[~found.index.isin(world.audit(100)["pair_id"])]
    tied, silent = (unchecked[unchecked.index.isin(votes["pair_id"][rows])] for rows in (slice(0, 50), slice(50, 100)))
    assert silent["probability"].nunique() == 1 and silent["probability"].iloc[0] == pytest.approx(0.85, abs=0.06)
    assert tied["probability"].nunique() == 1 and tied["probability"].iloc[0] != silent["probability"].iloc[0]


def test_twenty_five_pairs_that_a_voter_confirms_are_kept() -> None:
    world = noisy_world(25, 1.0, 0.999999, voters=1)
    assert (clean_preferences(world.pairs, world.scores).pairs["outcome"] == "kept").all()


def test_a_voter_at_chance_changes_nothing() -> None:
    world = noisy_world(400, 0.8, 0.5, voters=1, seed=3)
    found = clean_preferences(world.pairs, world.scores)
    assert (found.pairs["outcome"] == "kept").all()
    assert any("no more than chance" in sentence for sentence in found.notes)


def test_pairs_alone_stay_as_they_are() -> None:
    world = noisy_world(30)
    found = clean_preferences(world.pairs)
    assert (found.pairs["outcome"] == "kept").all() and len(found.pairs) == 30
    assert any("no score and no verdict that can be used" in sentence for sentence in found.notes)
    assert str(found.label_accuracy.before) == "not known" and found.sensitivity.empty
    assert found.pairs["probability"].between(0.6, 0.8).all() and len(found.wanted) == 30


def test_an_auditor_who_guesses_is_noticed() -> None:
    world = noisy_world(400, 0.9, 0.85)
    audit = world.audit(60)
    sides = world.pairs.set_index("pair_id").loc[audit["pair_id"]]
    heads = np.random.default_rng(1).random(60) < 0.5
    guessed = audit.assign(better_id=np.where(heads, sides["chosen_id"], sides["rejected_id"]))
    swapped = sides["chosen_id"].where(
        sides["rejected_id"] == audit.set_index("pair_id")["better_id"], sides["rejected_id"]
    )
    inverted = audit.assign(better_id=swapped.to_numpy())
    for answers, words in (
        (guessed, "answers at random would fit them better"),
        (inverted, "wrong more often than right"),
    ):
        found = clean_preferences(world.pairs, world.scores, audit=answers)
        assert words in found.notes[-1]
        assert set(found.pairs["outcome"]) == {"kept"} and set(found.pairs["reason"]) == {"the audit is in doubt"}
        share = (answers["better_id"].to_numpy() == sides["chosen_id"].to_numpy()).mean()
        assert found.label_accuracy.before.low < share < found.label_accuracy.before.high
    honest = clean_preferences(world.pairs, world.scores, audit=audit)
    assert not any("the audit says" in sentence for sentence in honest.notes)


@pytest.mark.parametrize("copied", [0.5, 1.0])
def test_an_audit_is_believed_where_voters_repeat_the_labels(copied: float) -> None:
    rng = np.random.default_rng(7)
    world = noisy_world(1000, 0.7, voters=0)
    truth = np.where(world.right, 1, -1)
    voter = np.where(rng.random(1000) < copied, 1, truth * np.where(rng.random(1000) < 0.8, 1, -1))
    pairs = world.pairs.assign(up=voter * (0.1 + np.abs(rng.standard_normal(1000))), down=0.0)
    found = clean_preferences(pairs, audit=world.audit(100), chosen_scores="up", rejected_scores="down")
    before, after = found.label_accuracy.before, found.label_accuracy.after
    assert before.low < world.right.mean() < before.high and before.estimate < 0.85
    assert after.low < world.accuracy(found.pairs["outcome"]) < after.high


def test_rows_that_are_no_pairs_are_refused() -> None:
    lists = pd.DataFrame({"prompt": ["q"], "responses": [["a", "b"]], "ratings": [[1.0, 2.0]]})
    with pytest.raises(
        CurationError, match=r"nothing says that its rows are pairs: .*it has prompt, responses, ratings"
    ):
        clean_preferences(lists)
    assert len(clean_preferences(pd.DataFrame({"good": ["a"], "bad": ["b"]}), chosen="good", rejected="bad").pairs) == 1


def test_a_voter_against_the_labels_is_left_out_and_named() -> None:
    world = noisy_world(300, 0.9, 0.9)
    turned = world.scores[world.scores["voter"] == "v0"].assign(voter="turned", score=lambda rows: -rows["score"])
    found = clean_preferences(world.pairs, pd.concat([world.scores, turned]))
    assert any("voter turned (1" in note and "right way round" in note for note in found.notes)
    assert world.accuracy(found.pairs["outcome"]) > world.right.mean()


def test_a_voter_of_doubtful_pairs_alone_is_not_said_to_be_the_wrong_way_round() -> None:
    """As the model of a later round, which is trained on the pairs that were kept and speaks about the others."""
    world = noisy_world(300, 0.8, 0.9)
    doubtful = world.pairs[~world.right]
    heard = world.scores[world.scores["voter"] == "v0"].assign(voter="late")
    heard = heard[heard["response_id"].isin({*doubtful["chosen_id"], *doubtful["rejected_id"]})]
    found = clean_preferences(world.pairs, pd.concat([world.scores, heard]))
    (said,) = [note for note in found.notes if "voter late (" in note]
    assert "a part of the pairs alone" in said and "look whether" not in said


def test_checked_pairs_end_as_they_were_answered() -> None:
    world = noisy_world(60, 0.6, 0.7)
    found = clean_preferences(world.pairs, world.scores, audit=world.truth)
    assert (found.pairs["outcome"] == np.where(world.right, "kept", "flipped")).all()
    assert set(found.pairs["reason"]) == {"checked"}
    world = noisy_world(60, 0.85, 0.9)
    few = clean_preferences(world.pairs, world.scores, audit=world.truth[:5])
    assert (few.pairs["outcome"][:5] == np.where(world.right[:5], "kept", "flipped")).all()
    assert not (few.pairs["outcome"][5:] == "flipped").any()
    assert any("5 checked pairs are too few" in sentence for sentence in few.notes)


def test_answers_that_say_nothing_are_counted() -> None:
    world = noisy_world(60)
    audit = pd.concat(
        [
            world.truth[:20],
            world.pairs[20:21].rename(columns={"rejected_id": "better_id"})[["pair_id", "better_id"]],
            world.pairs[20:21].rename(columns={"chosen_id": "better_id"})[["pair_id", "better_id"]],
            pd.DataFrame({"pair_id": ["p21", "gone"], "better_id": [None, "a1"]}),
        ]
    )
    notes = clean_preferences(world.pairs, world.scores, audit=audit).notes
    assert any("1 rows of audit are about pairs that are not in the table, for example 'gone'" in n for n in notes)
    assert any("1 audited pairs have contradicting answers" in n and "'p20'" in n for n in notes)
    assert any("1 audited pairs have no better side" in n for n in notes)


def test_trusted_pairs_are_an_anchor() -> None:
    both = noisy_world(900, 0.7, 0.9)
    own = both.pairs[:600]
    theirs = both.truth[600:].merge(both.pairs[600:], on="pair_id")
    swapped = (theirs["better_id"] != theirs["chosen_id"]).to_numpy()
    trusted = theirs.assign(
        chosen_id=theirs["chosen_id"].mask(swapped, theirs["rejected_id"]),
        rejected_id=theirs["rejected_id"].mask(swapped, theirs["chosen_id"]),
    )
    found = clean_preferences(own, both.scores, trusted=trusted)
    world = NoisyWorld(own, both.scores, both.votes, both.truth[:600], both.right[:600])
    assert (found.pairs["outcome"] == "flipped").sum() > 60
    assert world.accuracy(found.pairs["outcome"]) > 0.9
    assert found.label_accuracy.before.estimate == pytest.approx(0.7, abs=0.06)
    assert any("on 300 trusted pairs" in note and "is assumed" in note for note in found.notes)


def test_verdicts_on_trusted_pairs_show_how_far_a_judge_can_be_believed() -> None:
    both = noisy_world(700, 0.7, 0.8)
    own = both.pairs[:600]
    theirs = both.truth[600:].merge(both.pairs[600:], on="pair_id")
    swapped = (theirs["better_id"] != theirs["chosen_id"]).to_numpy()
    trusted = theirs.assign(
        chosen_id=theirs["chosen_id"].mask(swapped, theirs["rejected_id"]),
        rejected_id=theirs["rejected_id"].mask(swapped, theirs["chosen_id"]),
    )
    rng = np.random.default_rng(0)
    honest = both.truth[["pair_id", "better_id"]].assign(judge="j")
    guessed = honest.assign(
        better_id=np.where(rng.random(700) < 0.5, both.pairs["chosen_id"], both.pairs["rejected_id"])
    )
    world = NoisyWorld(own, both.scores, both.votes, both.truth[:600], both.right[:600])
    good, bad = (clean_preferences(own, both.scores, votes, trusted=trusted) for votes in (honest, guessed))
    assert world.accuracy(good.pairs["outcome"]) > 0.97 > world.accuracy(bad.pairs["outcome"]) > 0.8
    assert (good.pairs["outcome"] != "dropped").mean() > 0.97 > (bad.pairs["outcome"] != "dropped").mean() + 0.02
    assert not any("not in the table" in note for note in good.notes)
    twins = trusted.assign(pair_id=own["pair_id"].head(len(trusted)).tolist())
    with pytest.raises(CurationError, match="among the pairs to be cleaned, too"):
        clean_preferences(own, both.scores, honest, trusted=twins)
    only = honest[honest["pair_id"].isin(trusted["pair_id"])].assign(judge="k")
    found = clean_preferences(own, both.scores, pd.concat([honest, only]), trusted=trusted)
    assert any("of judges who said nothing of the pairs" in note and "'k'" in note for note in found.notes)


def test_trusted_pairs_that_nobody_scored_are_no_anchor() -> None:
    both = noisy_world(660, 0.8, 0.5)
    own, trusted = both.pairs[:600], both.pairs[600:]
    scored = trusted.iloc[0][["chosen_id", "rejected_id"]].tolist()
    sides = set(trusted["chosen_id"]) | set(trusted["rejected_id"])
    scores = both.scores[~both.scores["response_id"].isin(sides - set(scored))]
    found = clean_preferences(own, scores, trusted=trusted)
    assert (found.pairs["outcome"] == "kept").all() and any("on 1 trusted pairs" in note for note in found.notes)
    with pytest.raises(CurationError, match="no pair of `trusted` has finite scores"):
        clean_preferences(own, scores[~scores["response_id"].isin(scored)], trusted=trusted)


def test_a_known_label_accuracy_is_an_anchor() -> None:
    world = noisy_world(600, 0.7, 0.9)
    found = clean_preferences(world.pairs, world.scores, label_accuracy=0.7)
    assert found.label_accuracy.before.estimate == pytest.approx(0.7, abs=0.03) and found.sensitivity.empty
    assert world.accuracy(found.pairs["outcome"]) > 0.85 and (found.pairs["outcome"] != "dropped").mean() > 0.5


def test_a_judge_who_repeats_the_voter_adds_nothing() -> None:
    world = noisy_world(500, 0.95, 0.8, voters=1, shape="binary")
    pair_of = pd.concat([world.pairs.set_index(side)["pair_id"] for side in ("chosen_id", "rejected_id")])
    liked = world.scores["response_id"][world.scores["score"] > 0]
    votes = pd.DataFrame({"pair_id": pair_of.loc[liked].to_numpy(), "judge": "same", "better_id": liked.to_numpy()})
    once = clean_preferences(world.pairs, world.scores).pairs["probability"]
    twice = clean_preferences(world.pairs, world.scores, votes).pairs["probability"]
    assert abs(once.mean() - twice.mean()) < 0.05


@pytest.mark.parametrize("change", ["order of rows", "units of scores", "names"])
def test_what_says_nothing_changes_nothing(change: str) -> None:
    world = noisy_world(300, 0.8, 0.8)
    pairs, scores = world.pairs, world.scores
    if change == "order of rows":
        pairs = pairs.sample(frac=1, random_state=0)
        scores = scores.sample(frac=1, random_state=1)
    elif change == "units of scores":
        scores = scores.assign(score=scores["score"] * 1000 + 7)
    else:
        pairs = pairs.assign(source="one")
    one = clean_preferences(world.pairs, world.scores, audit=world.audit(40)).pairs.set_index("pair_id")
    other = clean_preferences(pairs, scores, audit=world.audit(40)).pairs.set_index("pair_id").loc[one.index]
    same = (one["outcome"] == other["outcome"]).to_numpy()
    np.testing.assert_allclose(one["probability"][same], other["probability"][same], atol=0.01)
    assert same.mean() > 0.99  # a pair at a bound may fall on either side of it


@pytest.mark.parametrize("fault", ["missing", "infinite", "constant", "twice"])
def test_voters_that_say_nothing_or_the_same_do_no_harm(fault: str) -> None:
    world = noisy_world(300, 0.85, 0.85, voters=1)
    scores = world.scores
    if fault == "missing":
        scores = scores[scores.index % 3 > 0]
    elif fault == "infinite":
        scores = scores.assign(score=scores["score"].mask(scores.index % 3 == 0, np.inf))
    elif fault == "constant":
        scores = pd.concat([scores, scores.assign(voter="flat", score=1.0)])
    else:
        scores = pd.concat([scores, scores.assign(voter="copy")])
    found = clean_preferences(world.pairs, scores).pairs
    assert len(found) == 300 and found["probability"].between(0, 1).all()
    assert world.accuracy(found["outcome"]) >= world.right.mean()


def test_a_wide_table_is_cleaned_as_long_ones_are() -> None:
    world = noisy_world(200, 0.8, 0.85, voters=2)
    by_voter = world.scores.pivot_table(index="response_id", columns="voter", values="score")
    wide = pd.DataFrame(
        {
            f"{voter}_{side}": by_voter[voter].loc[world.pairs[f"{side}_id"]].to_numpy()
            for voter in ("v0", "v1")
            for side in ("chosen", "rejected")
        }
    )
    named = {"chosen_scores": ["v0_chosen", "v1_chosen"], "rejected_scores": ["v0_rejected", "v1_rejected"]}
    checked = world.audit(40)
    rows = checked["pair_id"].str[1:].astype(int)
    side = np.where(world.right[rows], "chosen", "rejected")
    audit = pd.DataFrame({"pair_id": rows.to_numpy(), "better_id": side})
    found = clean_preferences(wide, audit=audit, **named).pairs
    assert found["pair_id"].tolist() == list(range(200))
    long = clean_preferences(world.pairs, world.scores, audit=checked).pairs
    np.testing.assert_allclose(found["probability"], long["probability"], atol=0.03)


def test_applied_outcomes_swap_the_sides_of_flipped_pairs() -> None:
    world = noisy_world(200, 0.6, 0.97)
    pairs = world.pairs.assign(chosen="c", rejected="r", good=1.0, bad=0.0)
    found = clean_preferences(
        pairs, world.scores, audit=world.audit(60), chosen_scores=["good"], rejected_scores=["bad"]
    )
    made = found.apply(pairs)
    stays = found.pairs[found.pairs["outcome"] != "dropped"]
    assert made["pair_id"].tolist() == stays["pair_id"].tolist()
    flipped = (stays["outcome"] == "flipped").to_numpy()
    assert flipped.any() and (made["chosen"] == np.where(flipped, "r", "c")).all()
    assert (made["good"] == np.where(flipped, 0.0, 1.0)).all()
    better = made.merge(world.truth, on="pair_id")
    assert (better["better_id"] == better["chosen_id"]).mean() > 0.95
    with pytest.raises(CurationError, match="199 rows, and 200 were cleaned"):
        found.apply(pairs[1:])


def test_wanted_pairs_are_unsure_ones_and_some_sure_ones() -> None:
    world = noisy_world(600, 0.8, 0.8)
    found = clean_preferences(world.pairs, world.scores, audit=world.audit(60))
    wanted = found.wanted
    best = wanted[wanted["why"] == "may change the outcome"]
    assert len(best) and best["gain"].is_monotonic_decreasing and (best["gain"] > 0.05).all()
    assert 0 < len(wanted) - len(best) <= len(best) // 10 + 1
    assert not set(wanted["pair_id"]) & set(world.audit(60)["pair_id"])
    dear = clean_preferences(world.pairs, world.scores, audit=world.audit(60), call_cost=5.0)
    assert dear.wanted.empty


def test_a_dearer_wrong_label_keeps_fewer_pairs_and_righter_ones() -> None:
    world = noisy_world(600, 0.8, 0.8)
    kept = []
    for cost in (1.5, 4.0, 19.0):
        found = clean_preferences(world.pairs, world.scores, audit=world.audit(60), wrong_label_cost=cost).pairs
        stays = found["outcome"] != "dropped"
        assert (found["probability"][stays] >= cost / (1 + cost) - 1e-6).all()
        kept.append(stays.mean())
    assert kept[0] > kept[1] > kept[2]


def test_both_sides_the_same_and_an_empty_table() -> None:
    world = noisy_world(40)
    pairs = world.pairs.assign(rejected_id=world.pairs["rejected_id"].where(world.pairs.index > 0, "a0"))
    pairs = pairs.assign(chosen_id=pairs["chosen_id"].where(pairs.index > 0, "a0"))
    found = clean_preferences(pairs, world.scores).pairs
    assert found.loc[0, ["outcome", "reason"]].tolist() == ["dropped", "both sides are one response"]
    empty = clean_preferences(world.pairs[:0], world.scores[:0])
    assert len(empty.pairs) == 0 and str(empty.label_accuracy.before) == "not known"


def test_sources_of_three_pairs_and_many_sources() -> None:
    world = noisy_world(120, 0.8, 0.85)
    pairs = world.pairs.assign(source=[f"s{n // 3}" for n in range(120)])
    found = clean_preferences(pairs, world.scores, audit=world.audit(30)).pairs
    assert world.accuracy(found["outcome"]) > world.right.mean()


def broken(world: NoisyWorld, fault: str) -> dict[str, Any]:
    """Arguments of a call that must fail."""
    given: dict[str, Any] = {"pairs": world.pairs, "scores": world.scores}
    changes: dict[str, dict[str, Any]] = {
        "repeated id": {"pairs": world.pairs.assign(pair_id="p")},
        "half of the ids": {"pairs": world.pairs.drop(columns="rejected_id")},
        "scores of others": {"scores": world.scores.assign(response_id="x" + world.scores["response_id"])},
        "no side": {"audit": world.truth.assign(better_id="elsewhere")},
        "no column": {"votes": pd.DataFrame({"pair_id": ["p0"]})},
        "others": {"audit": pd.DataFrame({"pair_id": ["x"], "better_id": ["chosen"]})},
        "no number": {"scores": world.scores.assign(score="bad")},
        "dearest": {"wrong_label_cost": np.inf},
        "text": {"wrong_label_cost": "4"},
        "seed": {"seed": -1},
        "no seed": {"seed": None},
        "seed that is no number": {"seed": np.nan},
        "no cost": {"wrong_label_cost": None},
        "no price": {"call_cost": None},
        "no table": {"audit": [("p0", "a0")]},
        "one list": {"chosen_scores": ["s"]},
        "bound": {"keep_probability": 0.4},
        "cost": {"wrong_label_cost": 0.5},
        "accuracy": {"label_accuracy": 1.0},
        "text column": {"chosen": "answer"},
    }
    return given | changes[fault]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("repeated id", "39 rows repeat a pair_id"),
        ("half of the ids", "chosen_id and rejected_id go together"),
        ("scores of others", "no pair of `pairs` has finite scores of both its sides"),
        ("no side", "40 values of better_id name no side of their pair; the first, of pair p0, is 'elsewhere'"),
        ("no column", "votes: it has neither the column better_id nor verdict"),
        ("others", "audit: no pair_id is one of the table's; the first is 'x', and the table's first is 'p0'"),
        ("no number", "scores: 240 values of the column 'score' are no numbers; the first, in row 0, is 'bad'"),
        ("dearest", "wrong_label_cost must be at least 1 and at most 1,000,000, not inf"),
        ("text", "wrong_label_cost must be a number, not '4'"),
        ("seed", "seed must be a whole number from 0 on, not -1"),
        ("no seed", "seed must be a number, not None"),
        ("seed that is no number", "seed must be a whole number from 0 on, not nan"),
        ("no cost", "wrong_label_cost must be a number, not None"),
        ("no price", "call_cost must be a number, not None"),
        ("no table", "audit must be a DataFrame, not list"),
        ("one list", "chosen_scores names 1 columns and rejected_scores 0"),
        ("bound", "keep_probability must be at least 0.5"),
        ("cost", "wrong_label_cost must be at least 1"),
        ("accuracy", "label_accuracy must be at least 0.5 and below 1"),
        ("text column", r"pairs: missing columns \['answer'\]"),
    ],
)
def test_what_is_wrong_is_one_sentence(fault: str, message: str) -> None:
    with pytest.raises(CurationError, match=message):
        clean_preferences(**broken(noisy_world(40), fault))


def test_ids_are_one_whatever_their_type() -> None:
    world = noisy_world(60, 0.8, 0.9)
    numbered = {name: world.pairs[name].str[1:].astype(int) for name in ("pair_id",)}
    pairs = world.pairs.assign(**numbered)
    audit = world.audit(30).assign(pair_id=lambda rows: rows["pair_id"].str[1:].astype(float))
    found = clean_preferences(pairs, world.scores, audit=audit).pairs
    same = clean_preferences(world.pairs, world.scores, audit=world.audit(30)).pairs
    assert found["outcome"].tolist() == same["outcome"].tolist()


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_scores_of_any_size(size: float) -> None:
    world = noisy_world(200, 0.8, 0.85)
    scaled = clean_preferences(world.pairs, world.scores.assign(score=world.scores["score"] * size)).pairs
    assert scaled["outcome"].tolist() == clean_preferences(world.pairs, world.scores).pairs["outcome"].tolist()


def test_pairs_that_stay_although_unsure_are_counted() -> None:
    for seed in range(12):
        world = noisy_world(25, 0.9, 0.75, voters=1, seed=seed)
        found = clean_preferences(world.pairs, world.scores)
        unsure = (found.pairs["reason"] == "too little speaks against it").to_numpy()
        assert (found.pairs["probability"][unsure] < 0.8).all()
        if any("below the bound stay" in note for note in found.notes):
            assert unsure.any() and (found.pairs["outcome"] == "kept").all()
            return
    raise AssertionError("no world has such pairs")
