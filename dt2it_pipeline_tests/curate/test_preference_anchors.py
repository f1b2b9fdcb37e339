"""`clean_preferences` and anchors: audits, trusted pairs, a known label accuracy, and what holds without any."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from dt2it_pipeline import clean_preferences
from dt2it_pipeline.curate.joint.sensitivity import COLUMNS
from dt2it_pipeline.curate.voters.margins import CurationError
from dt2it_pipeline_tests.support.noisy_world import noisy_world


def test_fifty_checks_correct_labels_and_make_the_claims_true() -> None:
    gaps, gains, flips = [], [], 0
    for seed in range(4):
        world = noisy_world(600, 0.7, 0.88, judges=1, judge=0.9, seed=seed)
        audit = world.audit(50, seed)
        found = clean_preferences(world.pairs, world.scores, world.votes, audit)
        outcome = found.pairs["outcome"]
        flips += (outcome == "flipped").sum()
        stays = (outcome != "dropped").to_numpy()
        gaps.append(found.pairs["probability"][stays].mean() - world.accuracy(outcome))
        gains.append(world.accuracy(outcome) - world.right.mean())
        for estimate, true in (
            (found.label_accuracy.before, world.right.mean()),
            (found.label_accuracy.after, world.accuracy(outcome)),
        ):
            assert estimate.low <= true <= estimate.high
    assert flips > 300 and abs(np.mean(gaps)) < 0.03
    assert min(gains) > 0.15


def test_without_an_anchor_the_range_of_assumptions_holds_the_truth() -> None:
    world = noisy_world(600, 0.85, 0.8)
    found = clean_preferences(world.pairs, world.scores)
    table = found.sensitivity
    assert list(table.columns) == list(COLUMNS) and table["annotator_accuracy"].tolist() == [
        0.5,
        0.6,
        0.7,
        0.8,
        0.9,
        0.99,
    ]
    kept = (found.pairs["outcome"] == "kept").to_numpy()
    true = float(world.right[kept].mean())
    assert all(table["after_low"] <= table["accuracy_after"]) and all(table["accuracy_after"] <= table["after_high"])
    assert table["after_low"].iloc[3] <= true <= table["after_high"].iloc[3]  # voters together are right in 80%
    assert any("no label was flipped" in sentence for sentence in found.notes)
    (assumed,) = [sentence for sentence in found.notes if "assumed, not measured" in sentence]
    row = table.iloc[2]
    assert f"in 70%, between {row['after_low']:.0%} and {row['after_high']:.0%} of the labels that stay" in assumed
    assert "Fifty pairs that a person checks" in assumed
    assert found.assumption is not None
    right, beside = found.assumption.annotator_accuracy, found.assumption.right_where_they_err
    assert (
        f"the better one in {right:.0%} of the pairs" in assumed and f"{beside:.0%} of the labels are right" in assumed
    )
    # With both shares, and how often annotators agree with labels, the label accuracy is arithmetic.
    agree = float((found.assumption.sides > 0).mean())
    assert set(np.unique(found.assumption.sides)) == {-1, 1}
    wrong_of_both = (1 - right) * (1 - beside)
    claimed = (agree - wrong_of_both) + (1 - right) * beside
    assert claimed == pytest.approx(found.label_accuracy.before.estimate, abs=0.002)
    audited = clean_preferences(world.pairs, world.scores, audit=world.audit(50))
    assert audited.sensitivity.empty and audited.assumption is None
    assert clean_preferences(world.pairs).assumption is None


def test_beside_trusted_pairs_labels_at_chance_stay_and_the_note_says_what_would_help() -> None:
    world, known = noisy_world(400, 0.5, 0.9), noisy_world(100, 1.0, 0.9, seed=1)
    trusted = known.pairs.replace(r"^([abp])", r"t\1", regex=True)
    scores = pd.concat([world.scores, known.scores.assign(response_id="t" + known.scores["response_id"])])
    found = clean_preferences(world.pairs, scores, trusted=trusted)
    assert (found.pairs["outcome"] == "kept").all()
    assert any("no more than chance" in note and "let a person check 15 or more" in note for note in found.notes)
    checked = clean_preferences(world.pairs, scores, audit=world.audit(60), trusted=trusted)
    assert (checked.pairs["outcome"] == "flipped").mean() > 0.2 and world.accuracy(checked.pairs["outcome"]) > 0.8


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


def test_checked_pairs_end_as_they_were_answered() -> None:
    world = noisy_world(60, 0.6, 0.7)
    answered = np.where(world.right, "kept", "flipped")
    found = clean_preferences(world.pairs, world.scores, audit=world.truth).pairs
    opposed = (found["outcome"] == "dropped").to_numpy()
    assert (found["outcome"] == answered)[~opposed].all() and 0 < opposed.sum() < 9
    assert set(found["reason"][~opposed]) == {"checked"}
    assert set(found["reason"][opposed]) == {"what was answered and the other evidence are against each other"}
    # A second person who says the same settles it, whatever voters say.
    twice = clean_preferences(world.pairs, world.scores, audit=pd.concat([world.truth, world.truth])).pairs
    assert (twice["outcome"] == answered).all() and set(twice["reason"]) == {"checked"}
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
    assert any("1 row of audit is about a pair that is not in the table, for example 'gone'" in n for n in notes)
    assert any("1 audited pair has answers that contradict each other" in n and "'p20'" in n for n in notes)
    assert any("1 audited pair has no better side" in n for n in notes)


def test_trusted_pairs_are_an_anchor() -> None:
    both = noisy_world(900, 0.7, 0.9)
    world, trusted = both.with_trusted(600)
    found = clean_preferences(world.pairs, both.scores, trusted=trusted)
    assert (found.pairs["outcome"] == "flipped").sum() > 60
    assert world.accuracy(found.pairs["outcome"]) > 0.9
    assert found.label_accuracy.before.estimate == pytest.approx(0.7, abs=0.06)
    assert any("on 300 trusted pairs" in note and "is assumed" in note for note in found.notes)


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
    flips = (found.pairs["outcome"] == "flipped").any()
    assert flips != any("no other side is sure enough for a flip" in note for note in found.notes)


def test_a_known_label_accuracy_that_flips_nothing_says_so() -> None:
    world = noisy_world(400, 0.8, 0.95)
    found = clean_preferences(world.pairs, world.scores, label_accuracy=0.8)
    assert not (found.pairs["outcome"] == "flipped").any()
    assert any("how many labels are wrong, and not which" in note for note in found.notes)
