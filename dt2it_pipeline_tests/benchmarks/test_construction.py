"""`benchmarks.construction`: every step runs on judgements of its own making and is measured."""

from pathlib import Path

from benchmarks import construction, ingest


def test_every_step_is_measured_after_the_one_before_it(tmp_path: Path) -> None:
    construction.write_judged(tmp_path, 30)
    found = {name: ingest._measured(step(tmp_path, 1)) for name, step in construction.STEPS.items()}
    assert found["form pairs"]["count"] == 30 * 15 and 30 <= found["balance style"]["count"] <= 120
    assert all(each["cpu"] > 0 for each in found.values())
