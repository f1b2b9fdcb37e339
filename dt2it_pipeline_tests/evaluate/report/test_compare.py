"""Runs side by side, from homes as finished rounds leave them."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dt2it_pipeline.cli import app
from dt2it_pipeline.cli.terminal import show_markdown
from dt2it_pipeline.curate.tables import to_frame, to_table
from dt2it_pipeline.evaluate.benchmarks.metrics import score_items
from dt2it_pipeline.evaluate.report.compare import (
    CompareError,
    compared,
    compared_html,
    compared_markdown,
    read_runs,
    recipe_differences,
)
from dt2it_pipeline.evaluate.report.facts import FACTS_FILE, RunFacts
from dt2it_pipeline.evaluate.report.formatting import markdown_table
from dt2it_pipeline.storage import schemas
from dt2it_pipeline.storage.artifacts import Artifact, Store

PAIRS = 40


def facts(**changes: Any) -> RunFacts:
    given: dict[str, Any] = {
        "name": "mine", "settings": {"seed": 0, "curation": {"policy": "joint"}}, "preferences": "abc", "round": 1,
        "kept": 80, "flipped": 15, "dropped": 5, "contested": 30, "estimated_before": (0.7, 0.6, 0.8),
        "estimated_after": (0.9, 0.85, 0.95), "rests_on": "an audit of 50 pairs", "style_before": (0.9, 0.88, 0.92),
        "style_after": (0.6, 0.55, 0.65), "judge_calls": 1200, "hours": 1.5,
    }  # fmt: skip
    return RunFacts(**given | changes)


def home(folder: Path, right: int, found: RunFacts, pairs: int = PAIRS) -> Path:
    """A home whose last reward model answers the first `right` of its benchmark pairs."""
    items = schemas.table(
        [
            {
                "item_id": f"i{n}", "benchmark": "b", "group": "g", "pair_id": f"q{n}", "prompt_id": f"p{n}",
                "chosen_id": f"c{n}", "rejected_id": f"r{n}", "chosen": "yes", "rejected": "no",
            }
            for n in range(pairs)
        ],
        "benchmark_items",
    )  # fmt: skip
    sides = [(f"c{n}", float(n < right)) for n in range(pairs)] + [(f"r{n}", 0.5) for n in range(pairs)]
    scores = schemas.table([{"response_id": key, "voter": "v", "score": s} for key, s in sides], "scores")
    table = to_table(
        score_items(to_frame(items), to_frame(scores), model="round 1").benchmark_scores, "benchmark_scores"
    )
    store, work = Store(folder), folder.parent / f"{folder.name}-work"
    work.mkdir(parents=True)
    (work / FACTS_FILE).write_text(json.dumps(found.model_dump(mode="json")), encoding="utf-8")
    store.write("raw_benchmarks", Artifact({"benchmark_items": items}), "key")
    store.write("benchmark_scores", Artifact({"benchmark_scores": table, "scores": scores}), "key", "1")
    store.write("round_report", Artifact({"benchmark_scores": table}, {}, work), "key", "1")
    return folder


def test_what_differs_and_what_came_of_it(tmp_path: Path) -> None:
    other = facts(settings={"seed": 0, "curation": {"policy": "paper"}}, estimated_before=None, estimated_after=None)
    homes = [home(tmp_path / "a", 20, facts()), home(tmp_path / "b", 32, other.model_copy(update={"rests_on": ""}))]
    text = " ".join(compared_markdown(compared(read_runs(homes))).split())
    for expected in (
        "| curation.policy | joint | paper |",
        "| estimated label accuracy after, % | 90.0 (85.0 to 95.0) | – |",
        "| pairs kept | 80 (80.0%) | 80 (80.0%) |",
        "| style AUC after | 0.60 (0.55 to 0.65) | 0.60 (0.55 to 0.65) |",
        "| judge calls | 1,200 | 1,200 |",
        "| b: all pooled | 50.0 (35.2 to 64.8) | 80.0 (65.2 to 89.5) |",
        "## Difference on benchmarks: b against a",
        "| b: g | +30.0 | ",
        "| yes |",
    ):
        assert expected in text, expected
    for absent in ("seed", "true label accuracy", "GPU hours", "tokens"):
        assert absent not in text, absent


def test_other_benchmark_pairs_are_not_compared(tmp_path: Path) -> None:
    homes = [home(tmp_path / "x" / "run", 20, facts()), home(tmp_path / "y" / "run", 9, facts(), pairs=10)]
    text = compared_markdown(compared(read_runs(homes)))
    assert "do not hold the same pairs" in text and "beyond chance" not in text
    assert "x/run" in text and "y/run" in text  # folders of one name are told apart
    assert "What differs" not in text


def test_the_page_escapes_what_stands_in_recipes(tmp_path: Path) -> None:
    evil = facts(settings={"name": "<script>alert(1)</script>"})
    html = compared_html(compared(read_runs([home(tmp_path / "a", 20, facts()), home(tmp_path / "<b>", 20, evil)])))
    assert "<script>" not in html and "<b>" not in html and "&lt;script&gt;alert(1)" in html


def test_recipes_of_different_shape() -> None:
    one, two = {"a": {"b": 1}, "same": [1]}, {"a": None, "same": [1], "new": True}
    assert recipe_differences([one, two]) == [["a.b", "1", "–"], ["a", "–", "null"], ["new", "–", "true"]]


def test_what_cannot_be_compared_is_named(tmp_path: Path) -> None:
    good = home(tmp_path / "a", 20, facts())
    with pytest.raises(CompareError, match="two artifact homes or more"):
        read_runs([good])
    with pytest.raises(CompareError, match="given twice"):
        read_runs([good, tmp_path / "a" / ".." / "a"])
    with pytest.raises(CompareError, match="no finished round"):
        read_runs([good, tmp_path / "empty"])
    old = home(tmp_path / "old", 20, facts())
    Store(old).write("round_report", Artifact(), "without", "1")
    with pytest.raises(CompareError, match=r"old.*facts\.json is not there: .* run the round again"):
        read_runs([good, old])


def test_the_command(tmp_path: Path) -> None:
    homes = [str(home(tmp_path / name, 20, facts())) for name in "ab"]
    shown = CliRunner().invoke(app, ["report", "--compare", *homes])
    assert shown.exit_code == 0 and "# Runs side by side" in shown.stdout
    page = tmp_path / "out.html"
    assert CliRunner().invoke(app, ["report", "--compare", *homes, "--output", str(page)]).exit_code == 0
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert CliRunner().invoke(app, ["report", "--compare", *homes, "--output", "x.pdf"]).exit_code == 2
    assert CliRunner().invoke(app, ["report", *homes]).exit_code == 2
    (tmp_path / "a" / "report.md").write_text("# Mine\n", encoding="utf-8")
    assert CliRunner().invoke(app, ["report", homes[0]]).stdout.startswith("# Mine")
    assert CliRunner().invoke(app, ["report", homes[1]]).exit_code == 1
    assert CliRunner().invoke(app, ["report", "--brief", "--compare", *homes]).exit_code == 2
    suspects = markdown_table(["suspicious pair", "why"], [["p1", "x"]])
    long = f"# Mine\n\n## The most suspicious pairs\n\n{suspects}\n\n## Cost\n\n| a |\n| --- |\n"
    (Path(homes[0]) / "report.md").write_text(long)
    short = CliRunner().invoke(app, ["report", "--brief", homes[0]]).stdout
    assert short.startswith("# Mine\n\n## Cost\n\n| a |") and "p1" not in short


def test_tables_fit_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    show_markdown(markdown_table(["set", "why"], [["a", "word " * 40]]))
    said = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    assert said.count("word") == 40 and max(len(line) for line in said.splitlines()) <= 60 and "|" not in said
