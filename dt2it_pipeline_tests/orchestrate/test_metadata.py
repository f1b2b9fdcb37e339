from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from dt2it_pipeline.orchestrate.cached_stage import _told
from dt2it_pipeline.orchestrate.metadata import artifact_metadata, training_curve
from dt2it_pipeline.orchestrate.model_jobs import training_metadata, validation_log
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
    assert found["loss"] == LOG[-1]["loss"]
    assert validation_log(artifact) == []

    lines.clear()
    (tmp_path / "validation_log.jsonl").write_text(json.dumps({"step": 2, "loss": 0.4, "accuracy": 0.75}) + "\n")
    training_metadata(artifact)
    assert lines[2:] == [("loss of held-out pairs", [2], [0.4]), ("accuracy of held-out pairs", [2], [0.75])]


def test_the_curve_is_a_image() -> None:
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
    found = artifact_metadata(pairs_artifact(tmp_path, policy="posterior"), tmp_path)
    assert labels == [
        "strength, log-odds of a right label (nats)",
        "strength, judge's points (0 to 10)",
    ]
    rows = found["examples"].md_str.splitlines()[2:]
    assert [row.split(" | ")[-2] for row in rows] == ["original"] * 3 + ["flipped", "constructed", "annotated"]
    assert rows[-2].endswith("6.50 judge's points \\(0 to 10\\) |")
    assert "\\[image\\] What?" in rows[0]
    assert "<script" not in found["examples"].md_str
    assert "(no image)" in rows[0]


def test_facts_are_shown_to_four_digits_and_small_mappings_as_tables(tmp_path: Path) -> None:
    found = artifact_metadata(
        pairs_artifact(tmp_path, accuracy=0.9479166666, steps=12345678, weights={"m/0": 3.4}), tmp_path
    )
    assert (found["accuracy"], found["steps"]) == (0.9479, 12345678)
    assert "| m/0 | 3.4 |" in found["weights"].md_str


def test_a_stage_without_anything_to_train_says_so_instead_of_its_seconds() -> None:
    metadata = {"not_trained": "the policy `posterior` has no verifier", "seconds": 0.0}
    assert _told("verifier_model", Artifact({}, metadata), "0.0 s") == (
        "verifier_model: not trained, the policy `posterior` has no verifier"
    )
    assert _told("voted_pairs", Artifact({}, {"rows_in": 2000}), "0.1 s") == "voted_pairs: 2,000 in, 0.1 s"
