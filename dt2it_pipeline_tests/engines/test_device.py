"""The number format that suits a device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dt2it_pipeline.engines import device
from dt2it_pipeline.engines.device import DeviceError, driver_fault, finds_gpu, found_device, weight_type
from dt2it_pipeline.engines.launch.local_shards import visible_gpus

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class Card:
    """What torch reports of a GPU that computes in bfloat16, or of one that does not."""

    def __init__(self, able: bool) -> None:
        self.major, self.minor = (8, 0) if able else (7, 5)


@pytest.mark.parametrize(("precision", "able", "expected"), [
    ("auto", True, torch.bfloat16), ("auto", False, torch.float32),
    ("float32", True, torch.float32), ("bfloat16", True, torch.bfloat16),
])  # fmt: skip
def test_precision_on_a_gpu(monkeypatch: pytest.MonkeyPatch, precision: str, able: bool, expected: torch.dtype) -> None:
    second = torch.device("cuda:1")  # while the first is the current one, which is another card
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda place: Card(able == (place == second)))
    assert weight_type(precision, second) is expected


def test_precision_that_the_gpu_cannot_do_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Old Card")
    with pytest.raises(DeviceError, match=r"bfloat16 does not run on Old Card.*set float32"):
        weight_type("bfloat16", CUDA)


OF_NVIDIA = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023"
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54  Release Build  (dvs-builder@U16)"
COMPILER = "GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)\n"


@pytest.fixture
def old_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with a driver under which a CUDA build of PyTorch finds nothing."""
    file = tmp_path / "version"
    file.write_text(f"{OF_NVIDIA}\n{COMPILER}")
    monkeypatch.setattr(device, "_DRIVER", file)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return file


@pytest.mark.parametrize(("line", "number"), [
    (OF_NVIDIA, "the NVIDIA driver 535.104.05,"), (OPEN, "the NVIDIA driver 550.54,"), ("", "of an unknown version,"),
])  # fmt: skip
def test_a_driver_that_pytorch_cannot_use_is_an_error(old_driver: Path, line: str, number: str) -> None:
    old_driver.write_text(f"{line}\n{COMPILER}")
    fault = driver_fault()
    assert fault is not None and number in fault
    assert "built for CUDA 13.0" in fault and "newer driver" in fault and "CUDA_VISIBLE_DEVICES= " in fault
    for ask in (finds_gpu, found_device, visible_gpus):
        with pytest.raises(DeviceError, match=r"NVIDIA driver .*built for CUDA 13\.0"):
            ask()


@pytest.mark.parametrize("hidden", ["", " ", "-1", "-1,0"])
def test_gpus_that_are_hidden_on_purpose_leave_the_cpu(
    old_driver: Path, monkeypatch: pytest.MonkeyPatch, hidden: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert driver_fault() is not None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert driver_fault() is None and found_device() == CPU


def test_no_driver_a_cpu_build_or_a_gpu_that_works_is_no_fault(
    old_driver: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert driver_fault() is None and found_device() == CUDA
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert driver_fault() is None and found_device() == CPU
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert driver_fault() is not None
    old_driver.unlink()
    assert driver_fault() is None and found_device() == CPU


def test_precision_on_a_cpu() -> None:
    assert weight_type("auto", CPU) is torch.float32
    assert weight_type("bfloat16", CPU) is torch.bfloat16
