"""GPU hours of a stage: of all its jobs, those before a kill included."""

from pathlib import Path

import dagster as dg

from dt2it_pipeline.orchestrate.gpu_time import gpu_seconds, note_gpu_seconds
from dt2it_pipeline.orchestrate.stage.cached_stage import run_stage
from dt2it_pipeline.storage.artifacts import Artifact, Store


def metadata_of(store: Store, jobs: list[dict[str, float]], fail: bool = False) -> dict[str, object] | None:
    made: list[Artifact] = []

    @dg.asset(name="made", code_version="1")
    def asset(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        def compute(work: Path) -> Artifact:
            for number, job in enumerate(jobs):
                folder = work / f"voter{number}"
                folder.mkdir(exist_ok=True)
                note_gpu_seconds(folder, job)
            if fail:
                raise ValueError("killed")
            return Artifact({}, {"rows_in": 1, "gpu_seconds": 1.0})

        made.append(run_stage(context, store, compute, inputs={}, settings={}))
        return dg.MaterializeResult()

    dg.materialize([asset], raise_on_error=False)
    return dict(made[0].metadata) if made else None


def test_all_jobs_of_a_stage_count_and_those_before_a_kill(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert metadata_of(store, [{"gpu_seconds": 30.0}, {"gpu_seconds": 10.5}], fail=True) is None
    found = metadata_of(store, [{"seconds": 3.0}, {"gpu_seconds": 2.0}])
    assert found is not None and found["gpu_seconds"] == 42.5


def test_a_stage_without_gpus_says_nothing_of_them(tmp_path: Path) -> None:
    found = metadata_of(Store(tmp_path), [{"seconds": 3.0}, {"gpu_seconds": 0.0}])
    assert found is not None and "gpu_seconds" not in found


def test_a_note_that_was_cut_short_or_damaged_counts_nothing_and_joins_no_other(tmp_path: Path) -> None:
    (tmp_path / "voter").mkdir()
    file = tmp_path / "voter" / "gpu_seconds.txt"
    note_gpu_seconds(tmp_path / "voter", {"gpu_seconds": 3600.0})
    whole = file.read_bytes()
    assert gpu_seconds(tmp_path) == 3600.0
    for length in range(len(whole) - 1):  # all but the line break at the end
        file.write_bytes(whole[:length])
        note_gpu_seconds(tmp_path / "voter", {"gpu_seconds": 10.5})
        assert gpu_seconds(tmp_path) == 10.5, whole[:length]
    for damage in (b"nan s", b"inf s", b"-5.0 s", b"1e999 s", b"1.2.3 s", b"\xff\x00 s"):
        file.write_bytes(damage)
        note_gpu_seconds(tmp_path / "voter", {"gpu_seconds": 10.5})
        assert gpu_seconds(tmp_path) == 10.5, damage
    file.unlink()
    for seconds in (float("nan"), float("inf"), -1.0, 0.0, None):
        note_gpu_seconds(tmp_path / "voter", {"gpu_seconds": seconds})
    assert not file.exists()
