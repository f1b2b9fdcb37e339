"""A state to resume from is read only where nobody else could have written it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import torch

from dt2it_pipeline.reward.errors import TrainingError
from dt2it_pipeline.reward.training import checkpointing
from dt2it_pipeline.reward.training.distributed import Alone


class Engine:
    """As DeepSpeed's, of which this writes and reads one file."""

    checkpoint_engine = None

    def __init__(self) -> None:
        self.read: list[Path] = []

    def save_checkpoint(self, folder, tag, **options):
        (Path(folder) / tag).mkdir(parents=True)
        (Path(folder) / tag / "states.pt").write_bytes(b"pickle")

    def load_checkpoint(self, folder, tag, **options):
        self.read.append(Path(folder) / tag)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a saved state, in a folder that its group may write."""
    before = os.umask(0o002)
    checkpointing.save(Engine(), tmp_path, "digest", {"step": 3}, Alone(), 0)
    os.umask(before)
    return tmp_path / "checkpoints"


def test_ones_own_state_is_for_oneself_and_is_read(folder):
    engine = Engine()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert checkpointing.load(engine, folder.parent, "digest", Alone(), lambda state: None)["step"] == 3
    assert engine.read == [folder / "step-00000003"]


def _open_to_others(folder: Path) -> None:
    folder.chmod(0o775)


def _linked_file(folder: Path) -> None:
    file = folder / "step-00000003/states.pt"
    file.rename(folder.parent / "states.pt")
    file.symlink_to(folder.parent / "states.pt")


def _linked_folder(folder: Path) -> None:
    folder.rename(folder.parent / "elsewhere")
    folder.symlink_to(folder.parent / "elsewhere")


def _of_another_user(folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(folder / "step-00000003/states.pt", 12345, -1)


@pytest.mark.parametrize("change", [_open_to_others, _linked_file, _linked_folder, _of_another_user])
def test_a_state_that_another_user_could_have_written_is_not_read(folder, change):
    change(folder)
    engine = Engine()
    with pytest.raises(TrainingError, match=r"state to resume from is not read: .* remove .*checkpoints to train"):
        checkpointing.load(engine, folder.parent, "digest", Alone(), lambda state: None)
    assert engine.read == []


def test_a_folder_that_another_rank_removed_is_a_failed_write(tmp_path):
    """PyTorch's own error of a file whose folder has gone, which is no OSError."""
    gone = tmp_path / "step-00000002"
    with (
        pytest.raises(TrainingError, match=r"cannot write the state .*another rank could not write.*from step 1$"),
        checkpointing.writing("the state to resume from", gone, 1),
    ):
        torch.save({"a": torch.zeros(1)}, gone / "file.pt")
