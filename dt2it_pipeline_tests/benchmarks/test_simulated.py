"""`benchmarks.simulated`: worlds of known truth, and that an audit makes nothing worse on average."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchmarks.simulated import audits, harm, rules
from benchmarks.simulated.audits import compared, drawn_world
from benchmarks.simulated.worlds import ERRORS, SHAPES, World, answers
from dt2it_pipeline.curate.joint import clean_labels, decisions, solution


@pytest.mark.parametrize("errors", ERRORS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_world_errs_as_it_is_described(shape: str, errors: str) -> None:
    world = World(4000, 2, 0.8, 0.9, shape, errors, 3)
    table, right = world.made()
    assert right.mean() == pytest.approx(0.8, abs=0.02)
    better = np.sign(table[["v0", "v1"]].to_numpy()) * np.where(right, 1, -1)[:, None]
    decided = better != 0  # rounded margins have ties
    assert (better[decided] > 0).mean() == pytest.approx(0.9, abs=0.02 if shape != "rounded" else 0.1)
    of_wrong, of_right = (better[right == found].mean() for found in (False, True))
    assert of_wrong < of_right - 0.2 if errors == "alike" else of_wrong < of_right + 0.1
    again, _ = world.made()
    pd.testing.assert_frame_equal(table, again)


def test_a_better_auditor_is_right_wherever_a_worse_one_is() -> None:
    table, right = World(500, 1, 0.7, 0.8, "normal", "even", 0).made()
    said = {auditor: answers(table["pair_id"], right, auditor, 5) for auditor in (1.0, 0.9, 0.8)}
    wrong = {name: (found["better_id"] == "chosen").to_numpy() != right for name, found in said.items()}
    assert not wrong[1.0].any() and wrong[0.8].mean() == pytest.approx(0.2, abs=0.05)
    assert (wrong[0.9] <= wrong[0.8]).all()


def test_tables_have_a_row_per_audit_and_per_kind_of_world(capsys: pytest.CaptureFixture[str]) -> None:
    audits.main(["--worlds", "1", "--pairs", "60", "--audits", "5", "20", "--auditors", "1", "0.8"])
    rows = [row for row in capsys.readouterr().out.splitlines() if row.startswith("| ") and "worlds" not in row]
    assert [row.split(" | ")[:2] for row in rows[:4]] == [
        ["| 5", "0.8"], ["| 5", "1.0"], ["| 20", "0.8"], ["| 20", "1.0"],
    ]  # fmt: skip
    found = harm.cleaned(World(60, 3, 1.0, 0.9, "normal", "even", 0), "trusted")
    assert found["before"] == 1.0 and found["flipped"] == 0.0 and not found["harm"]
    assert drawn_world(60, 7, (2,)).voters == 2


def test_rules_are_compared_on_the_same_worlds_and_put_back(capsys: pytest.CaptureFixture[str]) -> None:
    usual = decisions.SURE, decisions.TOLERABLE, clean_labels.TRANSFER
    rules.main(["--worlds", "1", "--pairs", "60", "--audits", "15", "--auditors", "1"])
    rows = [row for row in capsys.readouterr().out.splitlines() if row.startswith("| ")]
    first, second = list(rules.OF_AUDITS), list(rules.OF_TRUSTED)
    assert [row.split(" | ")[0][2:] for row in rows[1 : 1 + len(first)]] == first
    assert [row.split(" | ")[0][2:] for row in rows[2 + len(first) :]] == second
    assert usual == (decisions.SURE, decisions.TOLERABLE, clean_labels.TRANSFER)
    assert rules.OF_AUDITS["90%, 0.03 lost"] == usual[:2] and usual[2] in rules.OF_TRUSTED.values()


def test_a_rule_that_is_never_sure_changes_nothing_that_nobody_checked() -> None:
    world = drawn_world(200, 3)
    with rules.setting(decisions, SURE=1.01):
        (row,) = compared(world, (50,), (1.0,))
    assert row["others with: utility"] == row["others without: utility"]


@pytest.mark.heavy
def test_fifteen_answers_make_nothing_worse_on_average(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is one voter, decisions by the posterior's mean alone would lower label accuracy."""
    worlds = [
        World(300, 1, label, voter, "normal", "even", seed)
        for label, voter, seed in itertools.product((0.8, 0.9), (0.7, 0.8, 0.9), range(5))
    ]
    always: list[np.ndarray] = []

    def recorded(*given: Any) -> decisions.Decisions:
        if len(given) == 6 and given[5] is not None:  # what is decided without the audit
            always.append(decisions.decide(*given[:5]).outcome)
        return decisions.decide(*given)

    monkeypatch.setattr(solution, "decide", recorded)
    rows = pd.DataFrame(row for world in worlds for row in compared(world, (15,), (1.0,)))
    accuracy, utility = (rows[f"all with: {name}"] - rows[f"all without: {name}"] for name in ("right", "utility"))
    assert accuracy.mean() > -0.001 and utility.mean() > 0.01
    assert len(always) == len(worlds)
    by_mean = [
        float((world.made()[1] ^ (outcome == decisions.FLIPPED))[outcome != decisions.DROPPED].mean())
        for world, outcome in zip(worlds, always, strict=True)
    ]
    assert np.mean(by_mean - rows["all without: right"]) < -0.002
