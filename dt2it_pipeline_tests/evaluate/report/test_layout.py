"""The report and the comparison of runs in a real browser: on a desktop, on a phone and on paper."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dt2it_pipeline.evaluate.benchmarks.metrics import COLUMNS
from dt2it_pipeline.evaluate.report.compare import Table, compared_html
from dt2it_pipeline.evaluate.report.data import LabelEstimate, ReportData, Round
from dt2it_pipeline.evaluate.report.html import render_report
from dt2it_pipeline.evaluate.report.outcomes import SourceOutcomes, Suspect
from dt2it_pipeline_tests.support.browser import browser_page

pytestmark = pytest.mark.heavy
LONG = "a_name_without_a_space_" * 6
PAPER = 672  # pixels of a page of A4 between its margins
# Boxes of tables that are narrower than what stands in them, and texts of tables that begin or end outside the window.
CUT = """[...document.querySelectorAll('.wide')].filter(box => box.scrollWidth > box.clientWidth).length"""
OUTSIDE = """[...document.querySelectorAll('tbody th, tbody td, tbody .said')].filter(each => {
    const box = each.getBoundingClientRect();
    return box.left < 0 || box.right > innerWidth || box.width < 20 || each.scrollWidth > each.clientWidth + 1;
}).map(each => each.innerText.slice(0, 60))"""
LABELS = """[...document.querySelectorAll('.suspect tbody tr:first-child td')].map(
    each => getComputedStyle(each, '::before').content.replaceAll('"', ''))"""


def report() -> str:
    """A report of tables with long words: estimates, outcomes and suspicious pairs, one of them without a row's id."""
    estimate = LabelEstimate((0.7, 0.6, 0.8), (0.9, 0.8, 0.95), False, rests_on=LONG, kept=90)
    suspects = [
        Suspect(32 * "f", LONG, row, "What is it? " * 20, f"{LONG} {text}", text, 0.01, "flipped", "3 of 3 voters")
        for row, text in ((LONG, "It is a long answer. " * 20), ("", "short"))
    ]
    outcomes = [SourceOutcomes(LONG, 61_000, 29_000, {"the evidence is against the label": 10_000}, 40_000)]
    one = Round(0, estimate=estimate, outcomes=outcomes, suspects=suspects)
    return render_report(ReportData(scores=pd.DataFrame(columns=list(COLUMNS)), rounds=[one]))


def comparison() -> str:
    """Four runs whose settings have long names and values."""
    runs = ["setting", *(f"runs/{LONG}{number}" for number in range(4))]
    return compared_html([Table("What differs", "Settings.", runs, [[f"curation.{LONG}", "1", LONG, "2", "[1, 2]"]])])


@pytest.fixture
def page() -> Iterator[Any]:
    """A page that asks nobody for anything but its own file."""
    with browser_page("file://") as made:
        yield made


def shown(page: Any, folder: Path, html: str, width: int) -> Any:
    (folder / "page.html").write_text(html, encoding="utf-8")
    page.set_viewport_size({"width": width, "height": 850})
    page.goto(f"file://{folder / 'page.html'}")
    return page


def test_suspicious_pairs_fit_a_desktop_a_phone_and_paper(page: Any, tmp_path: Path) -> None:
    html = report()
    for width, media in ((1280, "screen"), (1000, "screen"), (390, "screen"), (320, "screen"), (PAPER, "print")):
        page.emulate_media(media=media)
        shown(page, tmp_path, html, width)
        assert (page.evaluate(CUT), page.evaluate(OUTSIDE)) == (0, []), (width, media)
        cards = width < 640
        heads = ["right", "outcome", "why", "question", "came as chosen", "came as rejected"]
        assert page.evaluate(LABELS) == (heads if cards else ["none"] * 6)
        assert page.is_visible(".suspect thead") is not cards
        # Of a pair without a row's id the hash is the only name; that of others is there to be pointed at.
        assert [each.is_visible() for each in page.query_selector_all(".suspect .id")] == [cards, True]
    assert page.get_attribute(".suspect tbody th", "title") == f"pair {32 * 'f'}"


def test_values_of_compared_runs_are_in_view(page: Any, tmp_path: Path) -> None:
    for width in (390, 1280):
        shown(page, tmp_path, comparison(), width)
        assert (page.evaluate(CUT), page.evaluate(OUTSIDE)) == (0, []), width
        assert all(each.is_visible() for each in page.query_selector_all("tbody td"))
