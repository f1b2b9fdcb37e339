"""How vLLM is started: what it took is free again when nobody holds it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from dt2it_pipeline.engines.device import DeviceError
from dt2it_pipeline.engines.vllm_start import weight_format
from dt2it_pipeline_tests.support.tiny import make_tiny

_ENGINES = """
import gc, json, sys, weakref
from dt2it_pipeline.engines.vllm_engine import VllmEngine

def made(found):
    engine = VllmEngine(sys.argv[1], 512, 1)  # the first one imports vLLM, with this function on the stack
    found += [weakref.ref(engine._llm), weakref.ref(engine._llm.llm_engine.engine_core)]
    return engine

first, others = [], []
made(first)
held = [made(others), made(others)]  # one is there while the other one starts
del held[:]
gc.collect()
print(json.dumps([[each() is None for each in found] for found in (first, others)] + [gc.get_freeze_count()]))
"""


_ASKED = """
import os, torch
seen = []
torch.cuda.is_available = lambda: bool(seen.append(os.environ.get("PYTORCH_NVML_BASED_CUDA_CHECK")))
from dt2it_pipeline.engines.vllm_start import prepare_environment
assert prepare_environment()
print(seen, os.environ["VLLM_LOGGING_LEVEL"])
"""


def test_whether_there_is_a_gpu_is_asked_without_starting_cuda_and_vllm_logs_errors_alone() -> None:
    """In a process that is no worker of ours, too."""
    own = ("PYTORCH_NVML_BASED_CUDA_CHECK", "VLLM_LOGGING_LEVEL")
    environment = {name: value for name, value in os.environ.items() if name not in own}
    done = subprocess.run(
        [sys.executable, "-c", _ASKED], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.splitlines()[-1] == "['1'] ERROR"


@pytest.mark.heavy
def test_an_engine_that_nobody_holds_is_gone(tmp_path: Path) -> None:
    """Else it keeps its memory, and ends the process groups of a later one when it goes."""
    model = make_tiny(tmp_path / "model", hidden=128)
    done = subprocess.run(
        [sys.executable, "-c", _ENGINES, str(model)], capture_output=True, text=True, check=True, timeout=600
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [[True] * 2, [True] * 4, 0]


class OldCard:
    """A GPU that does not compute in bfloat16, as vLLM describes it."""

    supported_dtypes: ClassVar = [torch.float16, torch.float32]

    def get_device_name(self) -> str:
        return "Old Card"


@pytest.mark.parametrize(("precision", "on_cpu", "expected"), [
    ("auto", True, "float32"), ("bfloat16", True, "bfloat16"), ("float32", True, "float32"),
    ("auto", False, "float32"), ("float32", False, "float32"),
])  # fmt: skip
def test_precision_does_not_start_cuda_before_vllm(
    monkeypatch: pytest.MonkeyPatch, precision: str, on_cpu: bool, expected: str
) -> None:
    platforms = pytest.importorskip("vllm.platforms")
    monkeypatch.setattr(platforms, "current_platform", OldCard(), raising=False)

    def starts_cuda(*_: object, **__: object) -> bool:
        raise AssertionError("PyTorch was asked, which starts CUDA")

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", starts_cuda)
    assert weight_format(precision, on_cpu) == expected


def test_precision_that_vllm_finds_the_gpu_cannot_do_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    platforms = pytest.importorskip("vllm.platforms")
    monkeypatch.setattr(platforms, "current_platform", OldCard(), raising=False)
    with pytest.raises(DeviceError, match=r"bfloat16 does not run on Old Card.*set float32"):
        weight_format("bfloat16", on_cpu=False)


def test_vllm_says_what_this_machine_computes_in() -> None:
    platforms = pytest.importorskip("vllm.platforms")
    able = torch.bfloat16 in platforms.current_platform.supported_dtypes
    assert weight_format("auto", on_cpu=False) == ("bfloat16" if able else "float32")
