from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dt2it_pipeline.evaluate.benchmarks.comparison import Change, Comparison
from dt2it_pipeline.evaluate.benchmarks.metrics import COLUMNS
from dt2it_pipeline.evaluate.grading import Grade
from dt2it_pipeline.evaluate.report.data import (
    Arm,
    Curve,
    Example,
    Funnel,
    LabelEstimate,
    Quality,
    ReportData,
    Round,
    StageCounts,
)
from dt2it_pipeline.evaluate.report.formatting import markdown_table
from dt2it_pipeline.evaluate.report.html import render_report, thumbnail, write_report
from dt2it_pipeline.evaluate.report.markdown import (
    estimates_markdown,
    headline_markdown,
    quality_markdown,
    report_markdown,
    report_text,
    without_suspects,
)
from dt2it_pipeline.evaluate.report.outcomes import Cost, SourceOutcomes, Suspect
from dt2it_pipeline.orchestrate.stage.metadata import _thumbnail
from dt2it_pipeline.style.probe import StyleProbe

EVIL = "<script>alert('x')</script><img src=http://evil.test/x onerror=alert(1)>\"'&{{ 7*7 }}$x$\x00\ud800\u202e|`*"


def image() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (300, 200), "red").save(buffer, "JPEG")
    return buffer.getvalue()


def scores(*rows: tuple[str, str, int]) -> pd.DataFrame:
    return pd.DataFrame([(m, "b", g, 100, c, 2, 1, c / 100) for m, g, c in rows], columns=COLUMNS)


def full(text: str = "plain") -> ReportData:
    in_table = text.replace("\ud800", "")  # a table cannot hold a lone surrogate; other strings can
    grade = Grade(pairs=100, graded=90, without_truth=10, correct=70, accuracy=70 / 90, flips=9, flips_right=8)
    probe = StyleProbe(0.9, 0.88, 0.92, 100, ((text, 0.5), ("words", -0.2)))
    log = pd.DataFrame({"step": [10, 20, 30], "loss": [0.7, 0.5, np.nan], "accuracy": [0.5, 0.7, 0.8]})
    example = Example(
        text, text, text, "other", [image(), b"broken"], ("other", text), "chosen", text, 1.5, text, text, text, text
    )
    return ReportData(
        scores=scores(
            (in_table, "overall", 80), (in_table, in_table, 80), ("control", "overall", 50), ("control", in_table, 40)
        ),
        title=text,
        arms=[Arm(in_table, "round", text), Arm("control", "control", text)],
        rounds=[
            Round(
                0,
                [
                    Quality(text, 100, 0.9, grade, probe, 12),
                    Quality("few", 3, None, None, StyleProbe(None, None, None, 3)),
                ],
                [StageCounts(text, 10, {text: 7}, {text: 2}, text)],
                [Curve(text, log)],
                {text: np.array([-1.0, 2.0, np.inf, np.nan]), "constant": np.zeros(3), "none": np.array([])},
                [example],
                {text: 75.0, "quick": 0.01},
                Funnel(100, 20, 60, 40, 30, {text: 9}, {text: 61, "flipped": 29}, {text: 0.75}, 80, 81, 82),
                text,
                estimate=LabelEstimate(
                    (0.7123, 0.65, 0.78),
                    (0.9456, 0.9, 0.98),
                    False,
                    [text],
                    [
                        {
                            "annotator_accuracy": 0.8,
                            "label_accuracy": 0.7321,
                            "accuracy_after": 0.9,
                            "after_low": 0.75,
                            "after_high": 1.0,
                        }
                    ],
                    [{"kind": "audited", "pairs": 40, "claimed": 0.9, "observed": 0.925}],
                    text,
                    90,
                ),
                outcomes=[SourceOutcomes(text, 61, 29, {text: 10}, 40)],
                suspects=[Suspect(text, text, text, text, text, "other", 0.0123, "flipped", text)],
            )
        ],
        quality=[Quality("pool", 100, 1.0, grade, probe)],
        examples=[example],
        group_notes={text: text},
        policy_note=f"Policy {text}",
        strength_note=f"Strength {text}",
        strength_unit=text,
        comparisons=[Comparison(text, text, [Change(text, text, 10, 3, 1, 0.2, -0.1, 0.5, 0.6, False)])],
        seconds={text: {text: 25.0}},
        costs=[Cost(text, 12, 3_000, 400, 7200.0, 3600.0, 45)],
        metadata={text: text, "recipe": text},
    )


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def tags_of(html: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = Tags()
    parser.feed(html)
    return parser.tags


def test_hostile_text_is_printed_and_never_run() -> None:
    html = render_report(full(EVIL))
    html.encode("utf-8")  # no lone surrogate is left
    assert "\x00" not in html and "\u202e" not in html
    assert "{{ 7*7 }}" in html
    figures = re.findall(r"<svg .*?</svg>", html, flags=re.DOTALL)  # letters are outlines: more text, more of these
    drawn = {tag for figure in figures for tag, _ in tags_of(figure)}
    assert len(figures) == 6 and drawn <= {"svg", "defs", "style", "g", "path", "use", "clippath", "rect"}
    harmless = tags_of(re.sub(r"<svg .*?</svg>", "", render_report(full("plain")), flags=re.DOTALL))
    hostile = tags_of(re.sub(r"<svg .*?</svg>", "", html, flags=re.DOTALL))
    assert [tag for tag, _ in hostile] == [tag for tag, _ in harmless]
    assert "script" not in {tag for tag, _ in hostile}
    for _, attributes in tags_of(html):
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "data:").startswith(("data:image/", "data:", "#"))
    assert "&lt;script&gt;alert" in html
    assert "<!--" not in html  # where Matplotlib quotes the words of labels


def test_everything_in_the_data_is_in_the_page() -> None:
    html = render_report(full("plain"))
    for expected in (
        "✗ 1 unaccounted",
        "image could not be read",
        "✓ truly better",
        "0.88–0.92",
        "1 min 15 s",
        "77.8",
        "<p>Policy plain</p>",
        "How certain the voters are.</b> Strength plain plain<",
        "strength 1.50 plain",
        "rose, within chance",
        "−10.0 to +50.0",
        '61 <span class="soft">(75.0% right)</span>',
        '<th scope="row">judge calls</th><td>81</td>',
        '<th scope="row">cached replies of judges</th><td>82</td>',
        "✗ 1 unaccounted",
        "under 0.1 s each: quick",
        "8 of 9",
        '71.2<span class="ci">65.0–78.0</span>',
        '94.6<span class="ci">90.0–98.0</span>',
        '<td data-label="right labels kept">about 85</td>',
        '<th scope="row">80.0%</th><td>73.2%</td><td>90.0%</td>',
        '<td data-label="right">1.2%</td>',
        "<td>12</td><td>45</td><td>3,000</td><td>400</td><td>2.00</td><td>1.00</td>",
        '61<span class="ci">61.0%</span>',
        "Claimed against observed.",
    ):
        assert expected in html, expected
    assert html.count("<svg ") == html.count('<div role="img" aria-label="') == 6
    assert html.count("✗ 1 unaccounted") == 2  # of a stage, and of the funnel
    assert "control: 2 ties and 1 pair without a score, all wrong." in html
    assert ">1 min 40 s<" in html  # 75 s of the round and 25 s before it, together


def test_a_balanced_funnel_says_so() -> None:
    funnel = Funnel(1000, 20, 60, 40, 30, {"votes are tied": 10}, {"original": 900, "flipped": 90})
    html = render_report(ReportData(scores(("round 0", "overall", 80)), rounds=[Round(0, funnel=funnel)]))
    assert "✓ 1,000 = 990 + 10" in html
    assert "% right)" not in html


def test_what_is_no_better_than_chance_is_marked_beside_the_number_and_below_the_table() -> None:
    found = scores(("round 0", "overall", 80), ("control", "overall", 45), ("round 0", "g", 52), ("control", "g", 0))
    data = ReportData(found, arms=[Arm("round 0"), Arm("control", "control")])
    html = render_report(data)
    assert html.count('<span class="ci">guessing</span>') == 2
    assert html.count('<span class="ci fall">worse than guessing</span>') == 1
    assert "control: worse than guessing on “g”; no better than guessing on “all pooled”.</p>" in html
    assert "- round 0: no better than guessing on “g”.\n- control: worse" in report_markdown(data)["guessing"]
    good = ReportData(scores(("round 0", "overall", 80)))
    assert "guessing</span>" not in render_report(good) and "guessing" not in report_markdown(good)


def test_the_outcomes_of_the_pool_are_in_words_beside_its_labels() -> None:
    funnel = Funnel(100, 20, 60, 40, 30, {}, {"original": 70, "flipped": 20, "annotated": 10}, {"flipped": 0.75})
    html = render_report(ReportData(scores(("round 0", "overall", 80)), rounds=[Round(0, funnel=funnel)]))
    for words, cell in (
        ("label as it came (original)", "70"),
        (
            "chosen and rejected exchanged by the vote, no judge asked (flipped)",
            '20 <span class="soft">(75.0% right)</span>',
        ),
        ("label decided by judges (annotated)", "10"),
    ):
        assert f'<td class="in">{words}</td><td>{cell}</td>' in html


def test_changes_beyond_chance_and_zero_changes() -> None:
    changes = [
        Change("b", "up", 100, 20, 0, 0.2, 0.1, 0.3, 1e-6, True),
        Change("b", "down", 100, 0, 20, -0.2, -0.3, -0.1, 1e-6, True),
        Change("b", "still", 100, 2, 2, 0.0, -0.1, 0.1, 1.0, False),
    ]
    both = scores(("round 0", "overall", 80), ("round 1", "overall", 80))
    made = [Comparison("round 0", "round 1", changes), Comparison("control", "round 1", changes)]
    html = render_report(ReportData(both, arms=[Arm("round 0"), Arm("round 1")], comparisons=made))
    for expected in (
        "▲ rose, beyond",
        "▼ fell, beyond",
        "▲ higher, beyond",
        "▼ lower, beyond",
        "no change",
        "≤0.001",
    ):
        assert expected in html, expected


def test_long_texts_are_cut_and_markers_are_words() -> None:
    sides = "<script>" + "x" * 5000 + "END", "y" * 5000 + "END"
    example = Example("k", "<image>\nWhat?", *sides, source="mine", row_id="line 7")
    html = render_report(ReportData(scores(("round 0", "overall", 80)), examples=[example]))
    assert "[image] What?" in html
    assert "from mine, row &ldquo;line 7&rdquo;" in html
    assert "END" not in html
    assert "&lt;script&gt;xxx" in html and "<script" not in html
    assert max(len(run) for run in re.findall(r"x+|y+", html)) <= 700


def test_the_same_data_gives_the_same_page() -> None:
    assert render_report(full()) == render_report(full())


def test_a_report_of_nothing_but_scores_and_of_nothing() -> None:
    html = render_report(ReportData(scores((("round 0"), "overall", 80))))
    assert "80.0" in html and html.count("<h2") == 1
    empty = render_report(ReportData(scores()))
    assert "<h2" not in empty and "<table" not in empty and "<figure" not in empty
    nan = scores(("m", "overall", 0)).assign(accuracy=np.nan, pairs=0)
    assert "–" in render_report(ReportData(nan))


def test_written_by_a_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_report(full(), tmp_path / "new folder" / "report.html")
    first = path.read_text(encoding="utf-8")
    assert first.startswith("<!DOCTYPE html>")

    def fail(self: Path, target: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(full("other"), path)
    assert path.read_text(encoding="utf-8") == first
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_thumbnails_are_small_and_decoded_afresh(tmp_path: Path) -> None:
    file = tmp_path / "p.jpg"
    file.write_bytes(image())
    uri = thumbnail(file)
    assert uri is not None and uri == thumbnail(image())
    with Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))) as small:
        assert (small.format, small.size) == ("PNG", (144, 96))
    assert thumbnail(tmp_path / "absent.png") is None
    assert thumbnail(b"") is None


def pixel(uri: str) -> tuple[int, ...]:
    with Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1].rstrip(")")))) as image:
        return tuple(image.convert("RGB").getpixel((0, 0)))


def test_thumbnails_show_what_the_models_see(tmp_path: Path) -> None:
    """Transparency on white, and 16 bits scaled to 8: not black, and not white throughout."""
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("I;16", (8, 8), 128 * 257).save(tmp_path / "deep.png")
    for name, grey in (("clear", 255), ("deep", 128)):
        for image in (thumbnail(tmp_path / f"{name}.png"), _thumbnail(tmp_path / f"{name}.png")):
            assert image is not None and pixel(image) == (grey,) * 3


def test_markdown() -> None:
    text = markdown_table(["a", "b"], [["x|y\nz", 1], ["<b>", 22]])
    assert "\\|" in text and "&lt;b" in text and len(text.splitlines()) == 4
    assert len({len(line) for line in text.splitlines()}) == 1
    table = headline_markdown(full())
    assert [re.sub(r"\s+", "", line) for line in table.splitlines()] == [
        "|model|plain|allpooled|",
        "|-------|----:|---------:|",
        "|plain|80.0|80.0|",
        "|control|40.0|50.0|",
    ]
    parts = report_markdown(full(EVIL))
    assert list(parts) == [
        *("head", "summary", "accuracy", "guessing", f"{EVIL} to {EVIL}", "chance", "data quality"),
        *("label accuracy, estimated", "outcomes", "suspicious pairs", "cost", "curation"),
    ]
    assert "<script" not in "".join(parts.values())
    assert "| pool" in quality_markdown(full()) and "| round 0: few" in quality_markdown(full())


def test_the_document_has_a_title_and_a_heading_for_every_part_that_has_one() -> None:
    data = full()
    said = report_text(data)
    assert [line for line in said.splitlines() if line.startswith("#")] == [
        "# plain",
        *("## Accuracy on benchmarks, %", "## Rises and falls", "## Data quality", "## Estimated label accuracy"),
        *("## Outcomes of pairs", "## The most suspicious pairs", "## Cost", "## Curated pairs from round to round"),
    ]
    for part in report_markdown(data).values():
        assert f"\n\n{part}" in said
    # Each part under its own heading: what a comparison's p means stands with the comparisons.
    sections = dict(part.split("\n\n", 1) for part in said.split("\n\n## ")[1:])
    assert "95% interval" in sections["Rises and falls"] and "- p: how often" in sections["Rises and falls"]
    assert "No better than guessing" in sections["Accuracy on benchmarks, %"]
    evil = report_text(full("x\n\n## Cost\n\n# y"))
    assert len(re.findall("^#", evil, re.MULTILINE)) == 9 and evil.startswith("# x ## Cost # y\n\n")


def test_a_brief_document_is_without_the_suspicious_pairs_and_their_heading() -> None:
    said = report_text(full("x\n\n## The most suspicious pairs\n\n# y"))
    short = without_suspects(said)
    gone = said.split("\n\n## The most suspicious pairs\n\n")[1].split("\n\n## ")[0]
    assert gone.startswith("| suspicious pair ") and short == said.replace(
        f"\n\n## The most suspicious pairs\n\n{gone}", ""
    )
    assert without_suspects(short) == short


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
    assert estimates_markdown(ReportData(scores())) == ""


def test_figures_stand_in_the_page_with_ids_and_words_of_their_own() -> None:
    tags = tags_of(render_report(full()))
    ids = [attributes["id"] for tag, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    words = [attributes["aria-label"] for tag, attributes in tags if attributes.get("role") == "img"]
    assert len(words) == len(set(words)) == 6
    for tag, attributes in tags:
        if tag == "svg":
            assert "viewbox" in attributes and "width" not in attributes and "height" not in attributes
