"""`dt2it clean` by the joint model: the same as `clean_preferences`, on files of several formats."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dt2it_pipeline import clean_preferences
from dt2it_pipeline_tests.support.commands import dt2it, failing, invoke
from dt2it_pipeline_tests.support.noisy_world import NoisyWorld, noisy_world


@pytest.fixture(scope="module")
def world() -> NoisyWorld:
    """Pairs of which 30% are labelled wrongly, three voters and a judge."""
    return noisy_world(300, 0.7, 0.9, judges=1)


@pytest.fixture
def folder(world: NoisyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tables of `world` as files, in the working directory."""
    monkeypatch.chdir(tmp_path)
    world.pairs.assign(source="s", mine=range(300)).to_parquet("pairs.parquet")
    world.scores.to_csv("scores.csv.gz", index=False)
    world.votes.to_json("votes.jsonl", orient="records", lines=True)
    world.audit(50).to_csv("audit.csv", index=False)
    return tmp_path


GIVEN = ("clean", "pairs.parquet", "--scores", "scores.csv.gz", "--votes", "votes.jsonl", "--output", "out")


def test_files_end_as_the_function_says(world: NoisyWorld, folder: Path) -> None:
    summary = json.loads(dt2it(*GIVEN, "--audit", "audit.csv", "--json"))
    found = clean_preferences(world.pairs.assign(source="s"), world.scores, world.votes, world.audit(50))
    outcomes, pairs = pd.read_parquet("out/outcomes.parquet"), pd.read_parquet("out/pairs.parquet")
    pd.testing.assert_frame_equal(outcomes.drop(columns="source"), found.pairs, check_dtype=False, rtol=1e-3)
    assert pairs["mine"].tolist() == outcomes.index[outcomes["outcome"] != "dropped"].tolist()
    better = pairs.merge(world.truth, on="pair_id")
    assert (better["better_id"] == better["chosen_id"]).mean() > 0.93
    counts = {name: int((outcomes["outcome"] == name).sum()) for name in ("kept", "flipped", "dropped")}
    assert counts == {name: summary[name] for name in counts} and counts["flipped"] > 30
    assert summary["label_accuracy"]["before"]["low"] < 0.7 < summary["label_accuracy"]["before"]["high"]
    assert summary["assumption"] is None
    wanted = pd.read_parquet("out/wanted.parquet")
    assert len(wanted) == summary["wanted"] and set(wanted) == {"pair_id", "gain", "why"}


def test_what_is_assumed_is_two_numbers_in_the_summary(world: NoisyWorld, folder: Path) -> None:
    found = clean_preferences(world.pairs.assign(source="s"), world.scores, world.votes)
    assert found.assumption is not None
    assert json.loads(dt2it(*GIVEN, "--json"))["assumption"] == {
        "annotator_accuracy": pytest.approx(found.assumption.annotator_accuracy, abs=1e-3),
        "right_where_they_err": pytest.approx(found.assumption.right_where_they_err, abs=1e-3),
    }


def test_without_checked_pairs_the_terminal_says_what_is_assumed(folder: Path) -> None:
    printed = dt2it(*GIVEN)
    assert "0 flipped" in printed
    accuracy = next(line for line in printed.splitlines() if line.startswith("estimated label accuracy: "))
    assert accuracy.count("%") == 7  # two estimates with their intervals, and what these are
    assert accuracy.endswith("(in brackets: 95% intervals of the joint model; they hold if its assumptions do)")
    assert "too little is known to be true, so this is assumed. What follows from other assumptions:" in printed
    assert "voters and judges right in 80%: labels right in" in printed


def test_without_evidence_the_terminal_says_which_options_would_help(world: NoisyWorld, folder: Path) -> None:
    alone = ["clean", "pairs.parquet", "--output", "out"]
    nothing = "NOTHING WAS DECIDED, and every label stays as it was: "
    for more in ([], ["--label-accuracy", "0.9"]):
        first, counts, *_ = dt2it(*alone, *more).splitlines()
        assert first.startswith(f"{nothing}no scores, votes or ") and first.endswith("--votes or --audit")
        assert counts.endswith("300 kept, 0 flipped, 0 dropped")
    assert json.loads(dt2it(*alone, "--json"))["notes"][0] == first
    world.scores.assign(score=1.0).to_parquet("none.parquet")
    assert dt2it(*alone, "--scores", "none.parquet").startswith(f"{nothing}no score and no verdict can be used\n")
    for call in (alone, [*alone, "--scores", "none.parquet"]):
        shown = invoke(*call).output  # as on a terminal: both streams
        assert shown.startswith(nothing) and "all labels stay as they are" in shown.splitlines()[-1]
    for decided in (GIVEN, [*alone, "--audit", "audit.csv"]):
        assert nothing not in invoke(*decided).output


def test_a_wide_csv_needs_no_ids(world: NoisyWorld, folder: Path) -> None:
    by_id = world.scores[world.scores["voter"] == "v0"].set_index("response_id")["score"]
    wide = pd.DataFrame({"answer": "good one", "other": "bad one"}, index=range(300))
    wide["up"], wide["down"] = (by_id.loc[world.pairs[f"{side}_id"]].to_numpy() for side in ("chosen", "rejected"))
    wide.to_csv("wide.csv", index=False)
    rows = np.arange(0, 300, 6)
    side = np.where(world.right[rows], "chosen", "rejected")
    pd.DataFrame({"pair_id": rows, "better_id": side}).to_csv("checked.csv", index=False)
    named = ("--chosen", "answer", "--rejected", "other", "--chosen-score", "up", "--rejected-score", "down")
    dt2it("clean", "wide.csv", *named, "--audit", "checked.csv", "--output", "out")
    outcomes, pairs = pd.read_parquet("out/outcomes.parquet"), pd.read_parquet("out/pairs.parquet")
    assert outcomes["pair_id"].tolist() == list(range(300))
    flipped = (outcomes["outcome"] == "flipped")[outcomes["outcome"] != "dropped"].to_numpy()
    assert flipped.any() and (pairs["answer"] == np.where(flipped, "bad one", "good one")).all()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--trusted", "none.csv"), "there is no file none.csv"),
        (("--trusted", "notes.txt"), "notes.txt: the format is not known by the name; use .parquet, .csv"),
        (("--trusted", "empty.csv"), "empty.csv cannot be read: "),
        (("--trusted", "torn.parquet"), "torn.parquet cannot be read: "),
        (("--audit", "empty.csv"), "empty.csv has no column pair_id, better_id"),
        (("--judge", "x"), "votes: there is no judge 'x'; there are: j0"),
        (("--chosen-score", "up"), "chosen_scores names 1 columns and rejected_scores 0"),
    ],
)
def test_what_is_wrong_is_one_line(folder: Path, more: tuple[str, ...], message: str) -> None:
    (folder / "notes.txt").write_text("mine")
    (folder / "empty.csv").write_text("")
    (folder / "torn.parquet").write_bytes((folder / "pairs.parquet").read_bytes()[:200])
    assert message in failing(*GIVEN, *more)
    assert not (folder / "out").exists()


def test_rows_of_an_audit_that_cannot_be_used_are_reported(folder: Path) -> None:
    rows = pd.read_csv("audit.csv").drop(columns="better_id")
    sides = {f"{place}_id": side + rows["pair_id"].str[1:] for place, side in (("first", "a"), ("second", "b"))}
    rows.assign(**sides, better=["first", *["frist"] * 49]).to_csv("sheet.csv", index=False)
    notes = json.loads(dt2it(*GIVEN, "--audit", "sheet.csv", "--json"))["notes"]
    assert any(note.startswith("sheet.csv: 49 rows cannot be used; the first, ") for note in notes)


def test_options_of_other_policies_are_refused(folder: Path) -> None:
    assert "--audit: for --policy joint" in failing(*GIVEN, "--policy", "paper", "--audit", "audit.csv", code=2)
    assert "--policy paper needs --scores" in failing(
        "clean", "pairs.parquet", "--output", "out", "--policy", "paper", code=2
    )
