from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from dt2it_pipeline.curate.annotation.budget import within_budget
from dt2it_pipeline.curate.published_algorithm import resolve_annotations
from dt2it_pipeline.evaluate.report.call_curve import POINTS, CurateWith, call_curve
from dt2it_pipeline.evaluate.report.data import CallCurve, ReportData, Round
from dt2it_pipeline.evaluate.report.figures import call_figure
from dt2it_pipeline.evaluate.report.html import render_report
from dt2it_pipeline.evaluate.report.text import call_sentence


def pairs(*rows: tuple[str, float]) -> pd.DataFrame:
    """Pairs whose chosen side is the response NAME+, with a strength."""
    frame = pd.DataFrame(rows, columns=["pair_id", "strength"])
    return frame.assign(chosen_id=frame["pair_id"] + "+", rejected_id=frame["pair_id"] + "-", label="original")


def verdicts(**given: tuple[str, str]) -> pd.DataFrame:
    rows = [
        (pair, judge, "given", word) for pair, words in given.items() for judge, word in zip("xy", words, strict=True)
    ]
    return pd.DataFrame(rows, columns=["pair_id", "judge", "order", "verdict"])


def curate_with(kept: pd.DataFrame, asked: pd.DataFrame, votes: pd.DataFrame) -> CurateWith:
    """The kept pairs, then the asked ones that so many calls reach, as two judges decide them."""

    def curated(calls: int) -> pd.DataFrame:
        reached, _ = within_budget(asked, calls, 2)
        return pd.concat([kept, resolve_annotations(reached, votes).annotated])

    return curated


def curve_of(name: str, asked: pd.DataFrame, truth: pd.DataFrame | None) -> CallCurve:
    return call_curve(name, curate_with(KEPT, asked, VOTES), len(asked), 2, 10, truth)


# Verified: a, b. Asked, the least certain first: d (flipped, rightly), c (a tie), e (kept, wrongly).
KEPT = pairs(("a", 3.0), ("b", 3.0))
ASKED = pairs(("c", 0.2), ("d", -0.1), ("e", 0.9))
VOTES = verdicts(c=("chosen", "rejected"), d=("rejected", "rejected"), e=("chosen", "chosen"))
TRUTH = pd.DataFrame({"pair_id": list("abcde"), "chosen_id": ["a+", "b-", "c+", "d-", "e-"]})


def test_judges_see_the_least_certain_pairs_first() -> None:
    curve = curve_of("paper", ASKED, TRUTH)
    assert curve.calls == (0, 2, 4, 6)
    assert curve.kept == pytest.approx((0.2, 0.3, 0.3, 0.4))
    assert curve.right == pytest.approx((1 / 2, 2 / 3, 2 / 3, 2 / 4))


def test_without_truth_only_what_is_kept_is_reported() -> None:
    curve = curve_of("paper", ASKED, None)
    assert curve.right is None and curve.kept[-1] == pytest.approx(0.4)
    sentence = call_sentence([Round(0, call_curves=[curve])])
    assert sentence == "Round 0 keeps 20.0% of the pairs without a call; 30.0% after 4 calls; 40.0% after all 6."
    assert call_figure([(0, [curve])]) is not None


def test_the_axis_of_calls_counts_in_whole_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dt2it_pipeline.evaluate.report.figures._svg", lambda figure, name: figure)
    figure: Any = call_figure([(0, [curve_of("paper", ASKED, None)])])
    ticks = [float(tick) for tick in figure.axes[0].get_xticks()]
    assert len(ticks) > 2 and all(tick == round(tick) for tick in ticks)


def test_many_pairs_are_looked_at_in_a_few_budgets_with_none_and_all_among_them() -> None:
    many = pairs(*((f"p{n:03d}", float(n)) for n in range(100)))
    votes = verdicts(**{name: ("chosen", "chosen") for name in many["pair_id"]})
    curve = call_curve("paper", curate_with(KEPT, many, votes), 100, 2, 102, None)
    assert len(curve.calls) == POINTS and (curve.calls[0], curve.calls[-1]) == (0, 200)
    assert curve.kept[-1] == 1.0


def test_where_no_judge_was_called_there_is_no_curve() -> None:
    curve = curve_of("paper", ASKED.iloc[:0], TRUTH)
    assert curve == CallCurve("paper", (0,), (0.2,), (0.5,))
    rounds = [Round(0, call_curves=[curve])]
    assert call_sentence(rounds) == "" and call_figure([(0, [curve])]) is None
    page = render_report(ReportData(pd.DataFrame(columns=["model", "benchmark", "group"]), rounds=rounds))
    assert "What judge calls change" not in page


def test_the_page_shows_the_curve_and_rounds_with_the_same_lines_once() -> None:
    curve = curve_of("paper", ASKED, TRUTH)
    data = ReportData(
        pd.DataFrame(columns=["model", "benchmark", "group"]),
        rounds=[Round(number, call_curves=[curve, curve]) for number in (0, 1)],
    )
    page = render_report(data)
    assert "What judge calls change." in page
    assert "keeps 20.0% of the pairs, label accuracy 50.0%, without a call; 30.0% and 66.7% after 4" in page
    assert "40.0% and 50.0% after all 6." in page
    assert "Round 0 has the same lines." in page
    assert "Dashed: if the judges" in page


def test_calls_that_add_no_pair_are_reported() -> None:
    curve = CallCurve("r", (0, 2, 4, 6), (0.5, 0.5, 0.5, 0.7), (0.9, 0.9, 0.9, 0.95))
    text = call_sentence([Round(0, call_curves=[curve])])
    assert "The first 4 add none: one verdict is too little for the least certain pairs." in text
    rising = CallCurve("r", (0, 2, 4), (0.5, 0.6, 0.5), (0.9, 0.9, 0.9))
    assert "add none" not in call_sentence([Round(0, call_curves=[rising])])
