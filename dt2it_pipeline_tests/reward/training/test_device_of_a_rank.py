"""The device that a rank of a training gets, by what the machine reports."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dt2it_pipeline.engines import device
from dt2it_pipeline.engines.device import DeviceError
from dt2it_pipeline.reward.training.distributed import Group


def test_a_rank_without_a_gpu_of_its_own_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in {"MASTER_ADDR": "localhost", "RANK": "2", "LOCAL_RANK": "2", "WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DeviceError, match=r"training\.processes: rank 2 .* 2 GPU\(s\) .*set training\.processes to 2"):
        Group()
    assert not torch.distributed.is_initialized()


def test_a_driver_that_pytorch_cannot_use_ends_a_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "version"
    file.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.57.02  Tue Jul 13 16:14:05 UTC 2021\n")
    monkeypatch.setattr(device, "_DRIVER", file)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(DeviceError, match=r"NVIDIA driver 470\.57\.02"):
        Group()
