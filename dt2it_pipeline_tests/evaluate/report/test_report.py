from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dt2it_pipeline.evaluate.benchmarks.comparison import Change, Comparison
from dt2it_pipeline.evaluate.report.data import (
    Arm,
    Example,
    Funnel,
    ReportData,
    Round,
)
from dt2it_pipeline.evaluate.report.formatting import markdown_table
from dt2it_pipeline.evaluate.report.html import render_report, thumbnail, write_report
from dt2it_pipeline.evaluate.report.markdown import (
    headline_markdown,
    quality_markdown,
    report_markdown,
    report_text,
    without_suspects,
)
from dt2it_pipeline.orchestrate.stage.metadata import _thumbnail
from dt2it_pipeline_tests.support.report_data import full, image, scores

EVIL = "<script>alert('x')</script><img src=http://evil.test/x onerror=alert(1)>\"'&{{ 7*7 }}$x$\x00\ud800\u202e|`*"


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
        for small in (thumbnail(tmp_path / f"{name}.png"), _thumbnail(tmp_path / f"{name}.png")):
            assert small is not None and pixel(small) == (grey,) * 3


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


def test_figures_stand_in_the_page_with_ids_and_words_of_their_own() -> None:
    tags = tags_of(render_report(full()))
    ids = [attributes["id"] for tag, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    words = [attributes["aria-label"] for tag, attributes in tags if attributes.get("role") == "img"]
    assert len(words) == len(set(words)) == 6
    for tag, attributes in tags:
        if tag == "svg":
            assert "viewbox" in attributes and "width" not in attributes and "height" not in attributes
