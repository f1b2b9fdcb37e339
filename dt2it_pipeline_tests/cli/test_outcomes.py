"""`dt2it outcomes`: a CSV file that a spreadsheet program takes for text."""

from __future__ import annotations

import csv
from pathlib import Path

import pyarrow as pa
import pytest

from dt2it_pipeline.cli import curation
from dt2it_pipeline.curate import outcomes
from dt2it_pipeline.human_review.spreadsheet import cell_text
from dt2it_pipeline_tests.support.commands import dt2it

TEXTS = ["=1+1", "+1", "-2", "@SUM(A1)", "\tx", "\rx", "plain", "'quoted", "a, b", '=HYPERLINK("https://evil.example")']


def test_cells_are_no_formulas_and_give_the_same_texts_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = len(TEXTS)
    table = pa.table(
        {"source": TEXTS, "outcome": ["kept"] * count, "reason": TEXTS, "weight": [-1.5] * count, "row": range(count)}
    )
    monkeypatch.setattr(curation, "round_store", lambda home, number: None)
    monkeypatch.setattr(outcomes, "outcomes_of_round", lambda store, number: table)
    dt2it("outcomes", "--round", 0, "--output", tmp_path / "outcomes.csv")
    with (tmp_path / "outcomes.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert not [row for row in rows if row["source"].startswith(("=", "+", "-", "@", "\t", "\r"))]
    assert [cell_text(row["source"]) for row in rows] == [cell_text(row["reason"]) for row in rows] == TEXTS
    assert [float(row["weight"]) for row in rows] == [-1.5] * count
