"""What a report says where the truth of labels is known, and where it is not."""

from dataclasses import replace

from dt2it_pipeline.evaluate.grading import Grade
from dt2it_pipeline.evaluate.report.data import (
    HELD_OUT,
    Quality,
    ReportData,
    StageCounts,
)
from dt2it_pipeline.evaluate.report.html import render_report
from dt2it_pipeline.evaluate.report.markdown import (
    estimates_markdown,
    report_markdown,
)
from dt2it_pipeline.style.probe import StyleProbe
from dt2it_pipeline_tests.support.report_data import full, scores


def with_known_truth(after: float, without: int = 0) -> ReportData:
    """`full`, with 77.8% right labels before and a share of right ones after, which the estimate puts at 90 to 98%."""
    data = full()
    grade = Grade(pairs=90, graded=90, without_truth=0, correct=70, accuracy=70 / 90)
    one = replace(data.rounds[0], quality=[Quality("curated", 90, 0.9, replace(grade, accuracy=after))])
    return replace(
        data, rounds=[one], quality=[Quality("pool", 100, 1.0, replace(grade, without_truth=without))], scores=scores()
    )


def test_where_truth_is_known_no_second_figure_stands_beside_it() -> None:
    summary = report_markdown(with_known_truth(0.99))["summary"]
    assert "Curation raised label accuracy from 77.8% to 99.0%" in summary
    assert "round 0 keeps 61 as they came, flips 29 and drops 10." in summary and "expected to be right" not in summary


def test_a_known_truth_outside_the_interval_of_its_estimate_is_named() -> None:
    high = (
        "Round 0: the known truth, 99.0% of the labels right after curation, lies above the interval of the estimate, "
        "90.0% to 98.0%."
    )
    assert f"- {high}" in report_markdown(with_known_truth(0.99))["label accuracy, estimated"]
    assert render_report(with_known_truth(0.99)).count(high) == 1
    low = report_markdown(with_known_truth(0.5))["label accuracy, estimated"]
    assert "50.0% of the labels right after curation, lies below the interval" in low and "before curation" not in low
    assert "the known truth," not in render_report(with_known_truth(0.95))
    assert "the known truth," not in render_report(without_truth())
    # 77.8% of the graded pairs, which lies within 65 to 78%; where others have no truth, nothing is compared.
    data = with_known_truth(0.95)
    estimate = data.rounds[0].estimate
    assert estimate is not None
    narrow = replace(data.rounds[0], estimate=replace(estimate, before=(0.6, 0.5, 0.7)))
    assert "right before curation, lies above" in render_report(replace(data, rounds=[narrow]))
    partly = with_known_truth(0.95, without=10)
    assert "the known truth," not in render_report(replace(partly, rounds=[narrow]))


def without_truth() -> ReportData:
    """A report of data without hidden truth and without a benchmark."""
    data = full()
    probe = StyleProbe(0.6, 0.55, 0.65, 90)
    one = data.rounds[0]
    quality = [Quality("curated", 90, 0.9, None, probe)]
    return replace(
        data,
        scores=scores(),
        arms=[],
        comparisons=[],
        group_notes={},
        quality=[Quality("pool", 100, 1.0, None, StyleProbe(0.9, 0.88, 0.92, 100))],
        rounds=[replace(one, quality=quality, funnel=None)],
    )


def test_without_truth_and_benchmark_the_page_says_what_is_known_and_nothing_else() -> None:
    html, parts = render_report(without_truth()), report_markdown(without_truth())
    assert "An estimated 71.2% (95% interval 65.0% to 78.0%) of the labels are right as they came, and 94.6%" in html
    assert "The estimate rests on plain." in html
    assert "Of 100 pairs, round 0 keeps 61 as they came, flips 29 and drops 10; of the 90 that stay, about 85" in html
    assert "an AUC of 0.90 before curation and 0.60 after" in html
    for absent in ('id="accuracy"', "flips right", "truly better; it needs", "<b>control", "No benchmark"):
        assert absent not in html, absent
    assert "label accuracy %" not in parts["data quality"] and "judge calls" not in parts["data quality"]
    assert "accuracy" not in parts and "71.2 (65.0 to 78.0)" in parts["label accuracy, estimated"]
    assert list(parts)[-4:] == ["outcomes", "suspicious pairs", "cost", "curation"]


def test_the_assumption_is_explained_only_where_there_is_one() -> None:
    assert "What if the voters and judges are better or worse than assumed?" in render_report(full())
    data = full()
    estimate = data.rounds[0].estimate
    assert estimate is not None
    anchored = replace(estimate, anchored=True, sensitivity=[])
    html = render_report(replace(data, rounds=[replace(data.rounds[0], estimate=anchored)]))
    assert "than assumed?" not in html and "can be off by more" not in html
    markdown = estimates_markdown(replace(data, rounds=[replace(data.rounds[0], estimate=anchored)]))
    assert markdown and "if voters and judges" not in markdown
    assert estimates_markdown(ReportData(scores())) == ""


def test_markdown_has_the_notes_of_the_model_and_what_an_assumption_changes() -> None:
    data = full()
    estimate = data.rounds[0].estimate
    assert estimate is not None
    notes = ["let a person check fifty pairs", "voters agree with 46% of 80 labels"]
    rounds = [
        replace(data.rounds[0], estimate=replace(estimate, notes=notes)),
        replace(data.rounds[0], number=1, estimate=replace(estimate, notes=notes[:1])),
    ]
    part = estimates_markdown(replace(data, rounds=rounds))
    assert part.count("fifty pairs.") == 1 and "- Round 0 and round 1: let a person check fifty pairs." in part
    assert "- Round 0: voters agree with 46% of 80 labels." in part
    assert "dt2it review sample --round 1 --output audit" in part
    assert [cell.strip() for cell in part.splitlines()[-1].split("|")][1:-1] == [
        "80.0",
        "73.2",
        "90.0",
        "75.0 to 100.0",
    ]


def test_the_summary_reports_style_bias_that_rises_beyond_chance() -> None:
    def with_probes(before: StyleProbe, after: StyleProbe) -> str:
        data = without_truth()
        one = replace(data.rounds[0], quality=[Quality("curated", 90, 0.9, None, after)])
        return render_report(replace(data, quality=[Quality("pool", 100, 1.0, None, before)], rounds=[one]))

    raised = "raised the style bias by more than chance"
    assert raised in with_probes(StyleProbe(0.88, 0.84, 0.92, 300), StyleProbe(0.98, 0.96, 0.99, 250))
    assert raised not in with_probes(StyleProbe(0.88, 0.84, 0.92, 300), StyleProbe(0.93, 0.9, 0.96, 250))
    assert raised not in with_probes(StyleProbe(0.2, 0.1, 0.3, 300), StyleProbe(0.45, 0.4, 0.5, 250))


def test_the_summary_reports_a_round_that_trains_on_too_few_pairs() -> None:
    def trained_on(pairs: int) -> str:
        data = without_truth()
        stage = StageCounts(
            "training_pairs", pairs + 51, {"original": pairs - 1, "t2i": 1, HELD_OUT: 50}, {"contaminated": 1}
        )
        return report_markdown(replace(data, rounds=[replace(data.rounds[0], stages=[stage])]))["summary"]

    assert "Round 0 trains its reward model on 19 pairs" in trained_on(19)
    assert "trains its reward model" not in trained_on(20)
