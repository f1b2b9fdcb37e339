"""The number format that suits a device."""

from __future__ import annotations

import pytest
import torch

from dt2it_pipeline.engines.device import DeviceError, weight_type

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(("precision", "able", "expected"), [
    ("auto", True, torch.bfloat16), ("auto", False, torch.float32),
    ("float32", True, torch.float32), ("bfloat16", True, torch.bfloat16),
])  # fmt: skip
def test_precision_on_a_gpu(monkeypatch: pytest.MonkeyPatch, precision: str, able: bool, expected: torch.dtype) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: able)
    assert weight_type(precision, CUDA) is expected


def test_precision_that_the_gpu_cannot_do_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Old Card")
    with pytest.raises(DeviceError, match=r"bfloat16 does not run on Old Card.*set float32"):
        weight_type("bfloat16", CUDA)


def test_precision_on_a_cpu() -> None:
    assert weight_type("auto", CPU) is torch.float32
    assert weight_type("bfloat16", CPU) is torch.bfloat16
