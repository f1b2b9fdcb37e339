"""`benchmarks.ingest`: every step runs on a source of its own making and is measured."""

from pathlib import Path

import pytest
from PIL import Image

from benchmarks import ingest
from benchmarks.watched import put_aside


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


def test_stores_of_former_turns_are_put_aside_and_not_removed(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store/image.jpg").touch()
    put_aside(tmp_path / "store")
    put_aside(tmp_path / "store")  # there is none
    assert [file.name for file in tmp_path.glob("store.*/*")] == ["image.jpg"]
    assert not (tmp_path / "store").exists()


def test_photographs_become_files_that_all_differ(tmp_path: Path) -> None:
    (tmp_path / "photographs").mkdir()
    Image.effect_noise((300, 200), 80).convert("RGB").save(tmp_path / "photographs/one.jpg")
    ingest.write_source(tmp_path / "made_up", rows=1, images=60, photographs=tmp_path / "photographs")
    assert len({file.read_bytes() for file in (tmp_path / "made_up/images").iterdir()}) == 60
