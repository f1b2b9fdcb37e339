"""A training state that is not as it was written is never used: an older one is, or the training starts anew."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from dt2it_pipeline.reward.errors import TrainingError
from dt2it_pipeline.reward.training import checkpointing
from dt2it_pipeline.reward.training.distributed import Alone
from dt2it_pipeline.reward.training.job import TrainJob
from dt2it_pipeline.reward.training.train import run, weights_digest
from dt2it_pipeline.reward.training.validation import BestWeights
from dt2it_pipeline.storage import atomic
from dt2it_pipeline_tests.support.training_jobs import changed


class Engine:
    """Writes a state as DeepSpeed lays it out, and remembers which one it was asked to load."""

    checkpoint_engine = None

    def __init__(self) -> None:
        self.loaded: str | None = None

    def save_checkpoint(self, root: str, tag: str, **_: object) -> None:
        folder = Path(root) / tag
        folder.mkdir(parents=True)
        for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"):
            (folder / name).write_bytes(os.urandom(4000))

    def load_checkpoint(self, root: str, tag: str, **_: object) -> None:
        self.loaded = tag


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def load(engine: Engine, work: Path) -> dict[str, Any] | None:
    return checkpointing.load(engine, work, "job", Alone(), lambda state: None)


@pytest.mark.parametrize(
    "name", ["mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt", "complete.json"]
)
@pytest.mark.parametrize("harm", [flip, cut, os.truncate, Path.unlink], ids=["a bit", "cut", "empty", "missing"])
def test_a_damaged_state_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, harm: Callable[..., Any]
) -> None:
    engine = Engine()
    checkpointing.save(engine, tmp_path, "job", {"step": 2}, Alone(), 0)
    older = tmp_path / "checkpoints" / "step-00000002"
    shutil.copytree(older, tmp_path / "kept")
    checkpointing.save(engine, tmp_path, "job", {"step": 4}, Alone(), 2)
    assert not older.exists() and (load(engine, tmp_path) or {})["step"] == 4
    shutil.copytree(tmp_path / "kept", older)  # as where the process died before it was removed
    victim = tmp_path / "checkpoints" / "step-00000004" / name
    harm(victim, *([0] if harm is os.truncate else []))
    engine.loaded = None
    assert (load(engine, tmp_path) or {})["step"] == 2 and engine.loaded == "step-00000002"
    lines = [record.getMessage() for record in caplog.records]
    if (name, harm) == ("complete.json", Path.unlink):  # it was being written when the process died
        assert not lines
    else:
        assert len(lines) == 1 and str(victim) in lines[0] and "is not used" in lines[0]
    flip(older / "mp_rank_00_model_states.pt")
    engine.loaded = None
    assert load(engine, tmp_path) is None and engine.loaded is None
    assert checkpointing.load(engine, tmp_path, "another job", Alone(), lambda state: None) is None


def test_files_are_on_the_disk_before_the_marker_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    real_sync, real_replace = atomic.os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        order.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        real_sync(descriptor)

    def replace(self: Path, target: Path) -> Path:
        order.append(f"-> {Path(target).name}")
        return real_replace(self, target)

    monkeypatch.setattr(atomic.os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    checkpointing.save(Engine(), tmp_path, "job", {"step": 2}, Alone(), 0)
    assert order[:3] == ["mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt", "step-00000002"]
    assert order[3].startswith(".complete.json.")
    assert order[4:] == ["-> complete.json", "step-00000002", "checkpoints"]


def test_best_weights_that_are_damaged_are_never_made_the_checkpoint(tmp_path: Path) -> None:
    best, history = BestWeights(tmp_path, wanted=True), [{"step": 2.0, "loss": 0.5}, {"step": 4.0, "loss": 0.6}]
    best.save(2, lambda folder: (folder / "model.safetensors").write_bytes(b"weights"))
    (tmp_path / "out").mkdir()
    best.copy(history, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == b"weights"
    flip(best.folder(2) / "model.safetensors")
    with pytest.raises(TrainingError, match=r"model.safetensors: its content is not what was written\); start again"):
        best.copy(history, tmp_path / "out")
    engine = Engine()
    checkpointing.save(engine, tmp_path, "job", {"step": 4, "evaluations": history}, Alone(), 2)
    assert checkpointing.load(engine, tmp_path, "job", Alone(), best.check) is None
    shutil.rmtree(best.folder(2))
    assert checkpointing.load(engine, tmp_path, "job", Alone(), best.check) is None


def test_a_training_starts_anew_beside_a_damaged_state(
    job: TrainJob, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def stop(progress: Mapping[str, Any]) -> None:
        if progress.get("unit") == "steps" and progress["done"] == 6:
            raise KeyboardInterrupt

    whole, stopped = (changed(job, name, tmp_path) for name in ("whole", "stopped"))
    run(whole, [].append)
    with pytest.raises(KeyboardInterrupt):
        run(stopped, stop)
    (state,) = (tmp_path / "work-stopped" / "checkpoints").glob("step-*")
    flip(next(state.glob("*optim_states.pt")))
    assert run(stopped, [].append)["resumed_from_step"] == 0
    assert [str(state) in record.getMessage() for record in caplog.records].count(True) == 1
    assert weights_digest(stopped.output) == weights_digest(whole.output)
