from __future__ import annotations

import pandas as pd

from dt2it_pipeline.evaluate.benchmarks.comparison import Change, Comparison
from dt2it_pipeline.evaluate.benchmarks.metrics import COLUMNS, MACRO, OVERALL
from dt2it_pipeline.evaluate.grading import Grade
from dt2it_pipeline.evaluate.report.data import Arm, Quality, ReportData, Round, headline
from dt2it_pipeline.evaluate.report.estimates import all_sentences
from dt2it_pipeline.evaluate.report.text import curation_note, guessing_notes, round_sentence, summary_sentences
from dt2it_pipeline.storage import records, schemas


def change(group: str, difference: float, beyond_chance: bool = False) -> Change:
    return Change("b", group, 100, 0, 0, difference, difference - 0.05, difference + 0.05, 0.01, beyond_chance)


def summary(accuracy: dict[str, int], *comparisons: Comparison, right: tuple[float, float] = (0.7, 0.7)) -> str:
    rows = [(model, "b", OVERALL, 100, count, 0, 0, count / 100) for model, count in accuracy.items()]
    grades = [Grade(100, 100, 0, 70, share) for share in right]
    data = ReportData(
        scores=pd.DataFrame(rows, columns=COLUMNS),
        arms=[Arm(model, "control" if model == "control" else "round") for model in accuracy],
        rounds=[Round(1, [Quality("curated", 100, 1.0, grades[1])])],
        quality=[Quality("pool", 100, 1.0, grades[0])],
        comparisons=comparisons,
    )
    return " ".join(summary_sentences(data, headline(data)))


def test_what_a_limit_left_out_ends_the_summary() -> None:
    data = ReportData(
        scores=pd.DataFrame(columns=list(COLUMNS)), left_out=["Round 0 trained without 123 of 371 pairs."]
    )
    assert all_sentences(data, headline(data)) == ["Round 0 trained without 123 of 371 pairs."]


def test_rises_and_falls_come_with_their_intervals() -> None:
    made = Comparison("round 0", "round 1", [change("up", 0.052, True), change("down", -0.06), change("little", 0.01)])
    assert round_sentence(made) == (
        "From round 0 to round 1: “up” rose by 5.2 points (95% interval +0.2 to +10.2), beyond chance; "
        "“down” fell by 6.0 points (95% interval −11.0 to −1.0), within chance; "
        "the rise of “little” (+1.0) is within chance."
    )
    assert round_sentence(Comparison("round 0", "round 1", [change("g", 0.0)])) == (
        "From round 0 to round 1 no group changed."
    )


def test_no_difference_is_reported_as_such() -> None:
    text = summary({"round 0": 80, "round 1": 80, "control": 80}, Comparison("control", "round 1", [change("g", 0.0)]))
    assert text == (
        "The reward model of round 1 prefers the right answer in 80.0% of 100 held-out pairs, as many as in round 0. "
        "Trained on the uncurated data instead (the control), it gets 80.0%, the same; no group differs beyond chance. "
        "Label accuracy after curation is what it was before, 70.0%, keeping 100.0% of the pairs."
    )


def test_the_control_is_named_where_it_is_better() -> None:
    made = Comparison("control", "round 1", [change("a", 0.5, True), change("b", -0.1, True), change("c", -0.2)])
    text = summary({"round 0": 80, "round 1": 82, "control": 60}, made, right=(0.7, 0.6))
    assert "gains most on “a” (+50.0 points), and it loses on “b” (−10.0), beyond chance." in text
    assert "“c”" not in text
    assert "against 80.0% in round 0." in text
    assert "Curation lowered label accuracy from 70.0% to 60.0%" in text


def test_a_summary_says_what_is_no_better_than_chance() -> None:
    assert "held-out pairs. 54.0% is no better than guessing (95% interval 44.3% to 63.4%)." in summary({"round 0": 54})
    assert "0.0% is worse than guessing (95% interval 0.0% to 3.7%)." in summary({"round 0": 0})
    assert "guessing" not in summary({"round 0": 61})


def test_models_with_the_same_weakness_share_a_line_and_means_of_groups_have_none() -> None:
    counts = {"g": (50, 0, 0, 60), "h": (50, 50, 50, 60), OVERALL: (59, 61, 61, 61), MACRO: (40, 40, 40, 40)}
    rows = [
        (model, "b", group, 100 if right[place] else 20, right[place], 0, 0, right[place] / 100)
        for place, model in enumerate(("round 0", "round 1", "control", "ceiling"))
        for group, right in counts.items()
    ]
    table = headline(ReportData(pd.DataFrame(rows, columns=COLUMNS)))
    assert guessing_notes(table)[1:] == [
        "round 0: no better than guessing on “g”, “h” and “all pooled”.",
        "round 1 and control: worse than guessing on “g”; no better than guessing on “h”.",
    ]
    assert guessing_notes(headline(ReportData(pd.DataFrame(rows[-4:], columns=COLUMNS)))) == []


def curated(*rows: tuple[str, str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["pair_id", "chosen_id"])


def test_why_a_round_curates_as_the_one_before() -> None:
    same = curated(("p0", "a"), ("p1", "b"))
    votes = [[{"voter": "reward_model/0", "margin": 1.0}], [{"voter": "reward_model/1", "margin": 1.0}]]
    rows = [records.make_pair("q", f"c{i}", "r", source="s", votes=votes[i], pair_id=f"p{i}") for i in range(2)]
    voted = schemas.table(rows, "pairs")
    asked = curation_note(1, same, same, voted, {"p0", "elsewhere"})
    assert asked.startswith("Round 1 curates exactly as round 0 did: the same 2 pairs with the same labels.")
    assert "trained on 1 of the 2; its votes on the other 1 changed none of them." in asked
    silent = curation_note(1, same, same, voted.slice(0, 1), {"p0"})
    assert "trained on 1 of the 1; none was left for it." in silent
    unchanged = curation_note(1, same, same, voted, None)
    assert "the votes of its new reward model changed none: " in unchanged
    for note in (asked, silent, unchanged):
        assert note.endswith(" one round of curation is enough here.")
    assert curation_note(3, same, same, voted, None).endswith(": 3 rounds of curation are enough here.")


def test_what_changes_between_rounds_is_counted() -> None:
    rows = schemas.table([], "pairs")
    note = curation_note(
        2, curated(("p0", "a"), ("p1", "b"), ("p2", "c")), curated(("p1", "x"), ("p2", "c")), rows, None
    )
    assert note == (
        "Against round 1: 0 pairs joined the curated set, 1 left it, and of the others 1 label changed sides. "
        "That is 66.7% of the pairs of either round."
    )
    before = [(f"p{place}", "a") for place in range(1000)]
    note = curation_note(1, curated(*before), curated(*before[1:], ("q", "a")), rows, None)
    assert note.endswith("That is 0.2% of the pairs of either round: one round of curation is enough here.")
