"""`benchmarks.ingest`: every step runs on a source of its own making and is measured."""

from pathlib import Path

import pytest

from benchmarks import ingest


def test_every_step_is_measured_after_the_ones_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "_BENCHMARK_IMAGES", 50)
    folder = tmp_path / "made_up"
    ingest.write_source(folder, rows=300, images=5)
    counts = {}
    for name, step in ingest.STEPS.items():
        found = ingest._measured(step(folder, 1))
        assert found["cpu"] >= found["own"] >= 0 < found["wall"] and found["peak_mib"] > 10
        counts[name] = (found["count"], found["of"])
    assert counts.pop("import images") == (5, "images")
    assert {name: count for name, (count, _) in counts.items()} == {
        "read and adapt": 303,
        "source and images": 303,
        "whole source": 303,
        "clean": 300,
        "decontaminate": 300,
    }
