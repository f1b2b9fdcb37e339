"""Claims without an anchor against what they assume, and baselines that know what trusted pairs show."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.real_noise import baselines, duel, policies
from benchmarks.real_noise.evidence import Evidence, NotApplicable
from benchmarks.real_noise.measures import under_assumptions
from benchmarks.real_noise.report import claims_under_assumptions
from benchmarks.real_noise.sets import evidence_of, load_set
from benchmarks.real_noise.sets import scenarios as scenarios_of
from dt2it_pipeline_tests.support.noisy_set import write_set

TABLE = pd.DataFrame({"annotator_accuracy": [0.5, 0.7, 0.9], "accuracy_after": [0.6, 0.8, 0.95]})
SIDES = np.array([1] * 6 + [-1] * 3 + [0])  # for the label, against it, open
RIGHT = np.array([True] * 4 + [False] * 2 + [True] + [False] * 2 + [True])
CLAIMED = np.array([0.9] * 6 + [0.4] * 3 + [0.5])


def test_assumed_and_observed_shares_by_hand() -> None:
    """Annotators err on three of nine pairs, of whose labels one is right."""
    stays = SIDES > 0
    found = under_assumptions((0.8, 0.6), SIDES, TABLE, CLAIMED, RIGHT, stays)
    assert found is not None
    assert found.accuracy == (0.8, pytest.approx(6 / 9)) and found.beside == (0.6, pytest.approx(1 / 3))
    assert found.first_holds and found.second_holds  # by 1.0 and 0.9 standard errors
    assert found.nearest == pytest.approx(0.8 - 4 / 6)  # 70% is nearer to 67 than 50 is
    assert found.corrected == pytest.approx(0.0, abs=1e-6)  # all claims are alike where annotators agree with the label


def test_an_assumption_that_does_not_hold_is_seen_with_many_pairs() -> None:
    many = [np.tile(each, 40) for each in (SIDES, CLAIMED, RIGHT, SIDES > 0)]
    first = under_assumptions((0.8, 1 / 3), many[0], TABLE, many[1], many[2], many[3])
    second = under_assumptions((6 / 9, 0.6), many[0], TABLE, many[1], many[2], many[3])
    assert first is not None and second is not None
    assert (first.first_holds, first.second_holds) == (False, True)
    assert (second.first_holds, second.second_holds) == (True, False)


def test_claims_that_are_too_high_within_a_group_stay_so() -> None:
    """Of the pairs whose label annotators agree with, those that stay are claimed to be better, and are worse."""
    claimed = np.where(np.arange(10) < 3, 0.6, CLAIMED)
    stays = np.array([False, False, False, True, True, True] + [False] * 4)
    found = under_assumptions((0.8, 0.6), SIDES, TABLE, claimed, RIGHT, stays)
    assert found is not None and found.corrected > 0.3


def test_nothing_is_measured_where_nothing_stays_or_annotators_are_silent() -> None:
    none, every = np.zeros(10, dtype=bool), np.ones(10, dtype=bool)
    assert under_assumptions((0.8, 0.6), SIDES, TABLE, CLAIMED, RIGHT, none) is None
    assert under_assumptions((0.8, 0.6), 0 * SIDES, TABLE, CLAIMED, RIGHT, every) is None
    perfect = under_assumptions((0.8, 0.6), np.where(RIGHT, 1, -1), TABLE, CLAIMED, RIGHT, every)
    assert perfect is not None and math.isnan(perfect.beside[1]) and perfect.second_holds


def test_table_of_claims_and_what_they_assume() -> None:
    held = {"accuracy": (0.8, 0.7), "beside": (0.6, 0.3), "first_holds": True, "second_holds": False}
    rows = [
        {"method": "ours", "overclaim": 0.1, "assumed": held | {"nearest": 0.06, "corrected": 0.01}},
        {
            "method": "ours",
            "overclaim": 0.0,
            "assumed": held | {"nearest": 0.0, "corrected": -0.02, "second_holds": True},
        },
        {"method": "ours", "overclaim": 0.9},
    ]
    found = claims_under_assumptions(rows).splitlines()
    cells = "80.0, 70.0 | 10.0 | 60.0, 30.0 | 30.0 | 1 of 2 | 1 of 2 | 0 of 1 | 1 of 2 | 0 of 2 | +1.0 |"
    assert found[2:] == [f"| ours | 2 | {cells}"]


def test_records_of_a_run_have_what_claims_assume(tmp_path: Path) -> None:
    plan = duel.Plan([None], 1, methods=["clean_preferences"], audited=20)
    records, _ = duel.run([load_set(write_set(tmp_path / "s", 80))], plan)
    assumed = {record["scenario"]: record.get("assumed") for record in records}
    without = assumed["all voters"]
    assert without is not None and 0.5 < without["accuracy"][0] < 1 and -0.1 < without["corrected"] < 0.1
    assert assumed["all voters, audit"] is None
    kinds = {record["scenario"]: set(record["against"]) for record in records}
    assert "that see no checked label" in kinds["all voters, audit"]
    assert kinds["all voters"] == {"all", "that do not relabel"}


def test_too_few_trusted_pairs_are_no_anchor_and_sides_are_those_of_the_other_pairs(tmp_path: Path) -> None:
    given = load_set(write_set(tmp_path / "s", 100))
    (scenario,) = [each for each in scenarios_of(given) if each.name == "all voters, audit"]
    evidence = evidence_of(given, scenario, 0, 20)
    made = policies.clean_preferences_trusted(evidence)
    _, sides, _ = made.attrs["assumed"]
    assert len(sides) == 100 and not sides[evidence.audited].any() and sides[~evidence.audited].all()
    for_label = sides[~evidence.audited] > 0
    assert made["probability"][~evidence.audited][for_label].mean() > made["probability"][~evidence.audited].mean()


def test_side_regression_knows_sides_and_no_labels(tmp_path: Path) -> None:
    given = load_set(write_set(tmp_path / "s", 200))
    (scenario,) = [each for each in scenarios_of(given) if each.name == "all voters, audit"]
    evidence = evidence_of(given, scenario, 0)
    made = baselines.side_regression(evidence)
    assert (given.right ^ made["flip"].to_numpy()).mean() > given.right.mean() and made["keep"].all()
    # The same pairs with the other side labelled chosen: the same sides are preferred.
    other = evidence.pairs.assign(chosen_id=evidence.pairs["rejected_id"], rejected_id=evidence.pairs["chosen_id"])
    if {"chosen", "rejected"} <= set(other.columns):
        other = other.assign(chosen=evidence.pairs["rejected"], rejected=evidence.pairs["chosen"])
    turned = baselines.side_regression(Evidence(other, evidence.scores, evidence.votes, evidence.audit))
    assert (turned["flip"] != made["flip"]).all()
    with pytest.raises(NotApplicable, match="needs an audit"):
        baselines.side_regression(Evidence(given.pairs, given.scores, given.votes))
