"""`clean_preferences`: no harm, honest claims, audits that help, and any table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dt2it_pipeline import clean_preferences
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


def test_rows_that_are_no_pairs_are_refused() -> None:
    lists = pd.DataFrame({"prompt": ["q"], "responses": [["a", "b"]], "ratings": [[1.0, 2.0]]})
    with pytest.raises(CurationError, match=r"missing columns \['best'\]"):  # what is named is what is missed
        clean_preferences(lists, chosen="best", rejected="worst")
    with pytest.raises(
        CurationError,
        match=r"nothing says that its rows are pairs: .*it has prompt, responses, ratings\. "
        r"Name .*--chosen COLUMN --rejected COLUMN \(in Python chosen= and rejected=\)",
    ):
        clean_preferences(lists)
    assert len(clean_preferences(pd.DataFrame({"good": ["a"], "bad": ["b"]}), chosen="good", rejected="bad").pairs) == 1


def test_a_voter_against_the_labels_is_left_out_and_named() -> None:
    world = noisy_world(300, 0.9, 0.9)
    turned = world.scores[world.scores["voter"] == "v0"].assign(voter="turned", score=lambda rows: -rows["score"])
    found = clean_preferences(world.pairs, pd.concat([world.scores, turned]))
    assert any("voter turned (1" in note and "right way round" in note for note in found.notes)
    pd.testing.assert_frame_equal(found.pairs, clean_preferences(world.pairs, world.scores).pairs)


def test_a_voter_of_doubtful_pairs_alone_is_not_said_to_be_the_wrong_way_round() -> None:
    """As the model of a later round, which is trained on the pairs that were kept and speaks about the others."""
    world = noisy_world(300, 0.8, 0.9)
    doubtful = world.pairs[~world.right]
    heard = world.scores[world.scores["voter"] == "v0"].assign(voter="late")
    heard = heard[heard["response_id"].isin({*doubtful["chosen_id"], *doubtful["rejected_id"]})]
    found = clean_preferences(world.pairs, pd.concat([world.scores, heard]))
    (said,) = [note for note in found.notes if "voter late (" in note]
    assert "a part of the pairs alone" in said and "look whether" not in said


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


def test_a_table_in_another_order_is_matched_by_pair_id() -> None:
    world = noisy_world(200, 0.7, 0.9)
    found = clean_preferences(world.pairs, world.scores, audit=world.audit(80))
    assert {"flipped", "kept"} <= set(found.pairs["outcome"])
    expected = found.apply(world.pairs).sort_values("pair_id", ignore_index=True)
    shuffled = world.pairs.sample(frac=1, random_state=0)
    made = found.apply(shuffled)
    assert made["pair_id"].tolist() == [each for each in shuffled["pair_id"] if each in set(expected["pair_id"])]
    pd.testing.assert_frame_equal(made.sort_values("pair_id", ignore_index=True), expected)
    with pytest.raises(CurationError, match=r"200 values of pair_id are not those .* the first is 'xp0'"):
        found.apply(world.pairs.assign(pair_id="x" + world.pairs["pair_id"]))
    with pytest.raises(CurationError, match=r"199 values of pair_id are not those .* twice; the first is 'p0'"):
        found.apply(world.pairs.assign(pair_id="p0"))
    with pytest.raises(CurationError, match="had the column 'pair_id'"):
        found.apply(world.pairs.drop(columns="pair_id"))


@pytest.mark.parametrize("by", ["texts", "messages", "scores"])
def test_without_pair_id_rows_in_another_order_are_an_error(by: str, tmp_path: Path) -> None:
    good = [float(n % 7) / 3 for n in range(40)]
    pairs = pd.DataFrame({"good": good, "bad": [0.5] * 40})
    if by != "scores":
        texts = pd.DataFrame({"chosen": [f"a{n}" for n in range(40)], "rejected": ["", *(f"b{n}" for n in range(39))]})
        pairs = pairs.join(texts if by == "texts" else texts.map(lambda text: [{"role": "user", "content": text}]))
    found = clean_preferences(pairs, chosen_scores=["good"], rejected_scores=["bad"])
    expected = found.apply(pairs)
    pairs.to_csv(tmp_path / "pairs.csv", index=False)
    assert len(found.apply(pd.read_csv(tmp_path / "pairs.csv"))) == len(expected)
    swapped = pairs.iloc[[1, 0, *range(2, 40)]]
    with pytest.raises(CurationError, match="2 rows differ from those of the table that was cleaned, in "):
        found.apply(swapped)
    with pytest.raises(CurationError, match="had the column"):
        found.apply(pairs[[]])


def test_a_flip_swaps_every_form_of_side_columns_once() -> None:
    wrong = np.arange(100) % 5 == 0
    names = ["chosen{}", "{}chosen", "chosen_{}", "{}_chosen", "n_chosen_{}"]
    columns = {name.format("x"): "c" for name in names}
    pairs = pd.DataFrame(columns | {name.replace("chosen", "rejected"): "r" for name in columns}, index=range(100))
    pairs["rejected_s"], pairs["chosen_s"] = np.where(wrong, -2.0, 2.0), 0.0  # named the wrong way round
    audit = pd.DataFrame({"pair_id": range(100), "better_id": np.where(wrong, "rejected", "chosen")})
    found = clean_preferences(pairs, audit=audit, chosen_scores=["rejected_s"], rejected_scores=["chosen_s"])
    made = found.apply(pairs)
    assert (found.pairs["outcome"] == np.where(wrong, "flipped", "kept")).all()
    for name in columns:
        assert (made[name] == np.where(wrong, "r", "c")).all(), name
    assert (made["rejected_s"] == np.where(wrong, 0.0, 2.0)).all()


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
    world = noisy_world(600, 0.65, 0.9)
    kept = []
    for cost in (1.5, 4.0, 19.0):
        cleaned = clean_preferences(world.pairs, world.scores, audit=world.audit(100), wrong_label_cost=cost)
        assert not any("decided as without them" in note for note in cleaned.notes)  # the audit decides
        found = cleaned.pairs
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


def test_where_no_pair_stays_nothing_is_said_of_the_labels_that_stay() -> None:
    world = noisy_world(40)
    pairs = world.pairs.assign(good=[1.0, 1.0, 1.0, -1.0] * 10, bad=0.0, rejected_id=world.pairs["chosen_id"])
    found = clean_preferences(pairs, chosen_scores=["good"], rejected_scores=["bad"])
    assert (found.pairs["outcome"] == "dropped").all() and found.sensitivity.empty
    assert str(found.label_accuracy.after) == "not known" != str(found.label_accuracy.before)
    assert any("is assumed, not measured" in note for note in found.notes)
    assert not any("nan" in note or "that stay would be right" in note for note in found.notes)


def test_infinite_scores_are_counted() -> None:
    world = noisy_world(40)
    pairs = world.pairs.assign(good=np.inf, bad=[-np.inf, *[0.0] * 39])
    notes = clean_preferences(pairs, chosen_scores=["good"], rejected_scores=["bad"]).notes
    assert "40 scores of the column 'good' are infinite and not used" in notes
    assert "1 score of the column 'bad' is infinite and not used" in notes
    scores = world.scores.assign(score=world.scores["score"].where(world.scores.index > 2, -np.inf))
    assert "3 scores are infinite and not used" in clean_preferences(world.pairs, scores).notes


def test_one_label_is_in_the_singular() -> None:
    for seed in range(13, 60):
        world = noisy_world(60, 0.95, 0.9, voters=1, seed=seed)
        notes = clean_preferences(world.pairs, world.scores, audit=world.audit(30)).notes
        single = [note for note in notes if note.startswith("1 ") and "dropped, not flipped" in note]
        if single:
            assert single[0].startswith("1 label is more probably wrong than right")
            return
    raise AssertionError("no world has such a label")


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
