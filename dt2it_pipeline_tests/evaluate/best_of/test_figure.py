from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

from dt2it_pipeline.evaluate.best_of.curve import best_of_curve
from dt2it_pipeline.evaluate.best_of.figure import curve_markdown, curve_svg


def test_table_and_figure_show_every_model_and_what_is_left_out() -> None:
    quality: Any = [[0.0, 1.0, 0.0, 1.0, 0.0]] * 10 + [[1.0, 0.0]]
    scores: Any = {"round $1$": [[1.0, 2.0, 0.0, 0.5, None]] * 10 + [[1.0, 0.0]], "control": quality}
    curve = best_of_curve(scores, quality, repeats=50)
    lines = curve_markdown(curve).splitlines()
    assert lines[0] == "| model | n = 1 | n = 2 | n = 4 | n = 5 | n = 5, less round $1$ |"
    assert [line.split(" | ")[0] for line in lines[2:5]] == ["| round $1$", "| control", "| oracle"]
    assert lines[2].endswith("|  |") and "+0.000" in lines[3]
    assert "Left out: 1 prompts with fewer than 5 answers." in lines
    assert "10 answers have no score of round $1$; they rank last." in lines
    figure = curve_svg(curve)
    assert ElementTree.fromstring(figure).tag.endswith("svg") and figure == curve_svg(curve)


def test_a_curve_of_one_answer_can_be_drawn() -> None:
    assert "<svg" in curve_svg(best_of_curve({"m": [[1.0]]}, [[1.0]], repeats=10))
