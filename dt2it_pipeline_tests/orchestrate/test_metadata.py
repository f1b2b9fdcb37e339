from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from dt2it_pipeline.orchestrate.heavy import training_metadata, validation_log
from dt2it_pipeline.orchestrate.metadata import training_curve
from dt2it_pipeline.store import Bundle

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
    bundle = Bundle(path=tmp_path)
    lines = drawn(monkeypatch)
    found = training_metadata(bundle)
    assert [label for label, *_ in lines] == ["loss", "accuracy"]
    assert found["loss"] == LOG[-1]["loss"]
    assert validation_log(bundle) == []

    lines.clear()
    (tmp_path / "validation_log.jsonl").write_text(json.dumps({"step": 2, "loss": 0.4, "accuracy": 0.75}) + "\n")
    training_metadata(bundle)
    assert lines[2:] == [("loss of held-out pairs", [2], [0.4]), ("accuracy of held-out pairs", [2], [0.75])]


def test_the_curve_is_a_picture() -> None:
    text = training_curve(LOG, LOG[1:]).md_str or ""
    assert base64.b64decode(text.split("base64,")[1].rstrip(")"))[:4] == b"\x89PNG"
