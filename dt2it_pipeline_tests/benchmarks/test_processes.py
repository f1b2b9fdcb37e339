"""`benchmarks.processes`: each stage shares the work on tables of its size."""

from pathlib import Path

import pytest

from benchmarks import ingest, processes


@pytest.mark.parametrize("name", processes.STAGES)
def test_a_stage_runs_at_a_size_with_the_work_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(ingest, "_BENCHMARK_IMAGES", 5)
    stage = processes.STAGES[name]
    source, folder = tmp_path / "source", tmp_path / "tables"
    folder.mkdir()
    if stage.write is not processes.write_responses:
        ingest.write_source(source, 60, 3)
        ingest.whole_source(source, 1).run()
    stage.write(source, folder, 60)
    monkeypatch.setattr(stage.module, stage.threshold, 0)  # as the command does; it raises where there is none
    step = stage.step(folder, 2)
    assert step.count == {"form pairs": 150}.get(name, 60)  # of the pairs of six responses
    step.run()
