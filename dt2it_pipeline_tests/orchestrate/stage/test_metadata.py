from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from dt2it_pipeline.orchestrate.stage.cached_stage import _line
from dt2it_pipeline.orchestrate.stage.metadata import artifact_metadata, strength_in_words, table_schema, training_curve
from dt2it_pipeline.orchestrate.stage.model_jobs import training_metadata, validation_log
from dt2it_pipeline.storage import records, schemas
from dt2it_pipeline.storage.artifacts import Artifact

LOG = [{"step": step, "loss": 1 / step, "accuracy": 0.5, "learning_rate": 0.1} for step in (1, 2, 3)]


def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[float], list[float]]]:
    """Lines that figures draw from now on: label, x and y."""
    from matplotlib.axes import Axes

    lines: list[tuple[str, list[float], list[float]]] = []
    plot = Axes.plot

    def recording(self: Axes, x: Any, y: Any, *args: Any, **kwargs: Any) -> Any:
        lines.append((kwargs["label"], list(x), list(y)))
        return plot(self, x, y, *args, **kwargs)

    monkeypatch.setattr(Axes, "plot", recording)
    return lines


def test_the_curve_shows_held_out_pairs_where_there_are_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "training_log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in LOG))
    artifact = Artifact(path=tmp_path)
    lines = drawn(monkeypatch)
    found = training_metadata(artifact)
    assert [label for label, *_ in lines] == ["loss", "accuracy"]
    assert found["loss"] == LOG[-1]["loss"] and "pairs_too_long" not in found
    known = Artifact({}, {"pairs": 248, "pairs_too_long": 123}, tmp_path)
    assert list(training_metadata(known).items())[:2] == [
        ("pairs", 248),
        ("pairs_too_long", 123),
    ]  # what it left out leads
    lines.clear()
    assert validation_log(artifact) == []

    lines.clear()
    (tmp_path / "validation_log.jsonl").write_text(json.dumps({"step": 2, "loss": 0.4, "accuracy": 0.75}) + "\n")
    training_metadata(artifact)
    assert lines[2:] == [("loss of held-out pairs", [2], [0.4]), ("accuracy of held-out pairs", [2], [0.75])]


def test_pairs_per_second_are_those_of_the_training_and_not_of_its_last_step(tmp_path: Path) -> None:
    rows = [row | {"pairs_per_second": 42.44} for row in LOG]
    (tmp_path / "training_log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert training_metadata(Artifact({}, {"pairs_per_second": 41.59}, tmp_path))["pairs_per_second"] == 41.59


def test_the_curve_is_an_image() -> None:
    text = training_curve(LOG, LOG[1:]).md_str or ""
    assert base64.b64decode(text.split("base64,")[1].rstrip(")"))[:4] == b"\x89PNG"


def pairs_artifact(tmp_path: Path, **metadata: Any) -> Artifact:
    """Pairs of four labels, ten originals first, and the strengths of each in their own unit."""
    vote = [{"voter": "v", "margin": 1.0}]
    kinds = [("original", 2.0, vote)] * 10 + [
        ("flipped", 3.0, vote),
        ("constructed", 6.5, []),
        ("annotated", 2.0, vote),
    ]
    rows = [
        records.make_pair(
            "p", f"<script>{label} {i}", "no | yes", source="s", label=label, strength=strength, votes=votes
        )
        for i, (label, strength, votes) in enumerate(kinds)
    ]
    prompt = {
        "prompt_id": "p",
        "source": "s",
        "system": "",
        "turns": [{"role": "user", "text": "<image>\nWhat?"}],
        "media": [{"kind": "image", "sha256": "0", "path": "absent.png"}],
        "reference": None,
        "language": "en",
        "meta": "{}",
    }
    return Artifact(
        {"pairs": schemas.table(rows, "pairs"), "prompts": schemas.table([prompt], "prompts")}, metadata, tmp_path
    )


def test_every_label_has_examples_and_every_strength_its_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    labels: list[str] = []
    monkeypatch.setattr(Axes, "set_xlabel", lambda self, text: labels.append(text))
    found = artifact_metadata(pairs_artifact(tmp_path, policy="joint"), tmp_path, {}, "pairs")
    assert labels == [
        "probability that the label is right (log-odds scale)",
        "strength, judge's points (0 to 10)",
    ]
    rows = found["examples"].md_str.splitlines()[2:]
    assert [row.split(" | ")[-2] for row in rows] == ["original"] * 3 + ["flipped", "constructed", "annotated"]
    assert rows[0].endswith("88% likely right \\(2.00 log-odds\\) |")
    assert rows[-2].endswith("6.50 judge's points \\(0 to 10\\) |")
    assert "\\[image\\] What?" in rows[0]
    assert "<script" not in found["examples"].md_str
    assert "(no image)" in rows[0]


def test_metadata_are_shown_to_four_digits_and_small_mappings_as_tables(tmp_path: Path) -> None:
    found = artifact_metadata(
        pairs_artifact(tmp_path, accuracy=0.9479166666, steps=12345678, weights={"m/0": 3.4}), tmp_path, {}, "pairs"
    )
    assert (found["accuracy"], found["steps"]) == (0.9479, 12345678)
    assert "| m/0 | 3.4 |" in found["weights"].md_str


def test_a_stage_without_anything_to_train_says_so_instead_of_its_seconds() -> None:
    metadata = {"not_trained": "the policy `joint` has no verifier", "seconds": 0.0}
    assert _line("verifier_model", Artifact({}, metadata), "0.0 s") == (
        "verifier_model: not trained, the policy `joint` has no verifier"
    )
    assert _line("voted_pairs", Artifact({}, {"rows_in": 2000}), "0.1 s") == "voted_pairs: 2,000 in, 0.1 s"


def test_contested_pairs_are_counted_apart_from_what_is_dropped() -> None:
    rows = [records.quarantine_row(f"r{i}", "s", reason) for i, reason in enumerate(["contested"] * 3 + ["no score"])]
    counts = {"rows_in": 9, "rows_out": 5, "rows_contested": 3, "rows_dropped": 1}
    verified = Artifact({"quarantine": schemas.table(rows, "quarantine")}, counts)
    line = "verified_pairs: 9 in, 5 out, 3 contested, 1 dropped (no score: 1), 0.1 s"
    assert _line("verified_pairs", verified, "0.1 s") == line


def test_what_is_looked_for_first_stands_first(tmp_path: Path) -> None:
    given = {"seconds": 2.0, "steps": 3, "rows_in": 15, "estimated_verdict_accuracy": 0.9, "weights": {"m/0": 3.4}}
    found = list(artifact_metadata(pairs_artifact(tmp_path, **given), tmp_path, {"auc": 0.5}, "pairs"))
    assert found[:5] == ["auc", "estimated_verdict_accuracy", "rows_in", "steps", "dagster/row_count"]
    assert found.index("weights") > found.index("prompts_rows")
    assert found[-1] == "path" and found.index("seconds") > found.index("examples")


def test_rows_of_the_main_table_are_the_row_count(tmp_path: Path) -> None:
    found = artifact_metadata(pairs_artifact(tmp_path), tmp_path, {}, "pairs")
    assert (found["dagster/row_count"], found["prompts_rows"], "pairs_rows" in found) == (13, 1, False)
    assert "dagster/row_count" not in artifact_metadata(pairs_artifact(tmp_path), tmp_path, {})


@pytest.mark.parametrize(
    ("strength", "unit", "words"),
    [
        (2.49, "log-odds of a right label (nats)", "92% likely right (2.49 log-odds)"),
        (-1.0, "log-odds of a right label (nats)", "27% likely right (-1.00 log-odds)"),
        (9.0, "log-odds of a right label (nats)", "over 99% likely right (9.00 log-odds)"),
        (2.0, "judge votes ahead (of 2)", "2.00 judge votes ahead (of 2)"),
    ],
)
def test_log_odds_are_a_probability_first(strength: float, unit: str, words: str) -> None:
    assert strength_in_words(strength, unit) == words


def test_a_schema_for_the_ui_has_every_column_with_its_type_and_description() -> None:
    shown = {column.name: column for column in table_schema("pairs").columns}
    assert list(shown) == schemas.SCHEMAS["pairs"].names
    assert all(column.description for column in shown.values())
    assert (shown["strength"].type, shown["strength"].constraints.nullable) == ("float64", True)
    assert (shown["votes"].type, shown["votes"].constraints.nullable) == ("list", False)
