"""The device that a process computes on: the number format that suits it, and what is read while it computes.

Pillow and PyTorch let go of Python's lock while they work, so that threads suffice and nothing is copied between
processes.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar, TypeVar

import torch

from dt2it_pipeline.errors import UserError
from dt2it_pipeline.observe.cores import usable_cores

_MOST_THREADS = 4
_DRIVER = Path("/proc/driver/nvidia/version")  # of the Linux kernel's module; it is there where the driver is loaded
_Item = TypeVar("_Item")
_Read = TypeVar("_Read")
_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class DeviceError(UserError, ValueError):
    """The device cannot do what a setting asks for, or PyTorch cannot use it."""

    help_page: ClassVar[str] = "troubleshooting#gpu"


def found_device() -> torch.device:
    """The GPU that this process sees first, else the CPU.

    Raises:
        DeviceError: the machine has a GPU's driver, and PyTorch cannot use the GPU.
    """
    return torch.device("cuda" if finds_gpu() else "cpu")


def finds_gpu() -> bool:
    """Whether this process computes on a GPU.

    Raises:
        DeviceError: the machine has a GPU's driver, and PyTorch cannot use the GPU: it would take days on the CPU.
    """
    if torch.cuda.is_available():
        return True
    if fault := driver_fault():
        raise DeviceError(fault)
    return False


def driver_fault() -> str | None:
    """Why PyTorch uses no GPU on a machine with NVIDIA's driver, and what to do; None where that is as wanted.

    It is as wanted where PyTorch is a CPU build, or `CUDA_VISIBLE_DEVICES` hides all GPUs (empty, or -1 first).
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip().partition(",")[0] in ("", "-1")
    if torch.version.cuda is None or hidden or torch.cuda.is_available():
        return None
    try:
        first = _DRIVER.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
    except OSError:
        return None
    number = re.search(r"\b\d{3,}(?:\.\d+)+\b", first)
    return (
        f"this machine has the NVIDIA driver {number.group() if number else 'of an unknown version'}, but PyTorch "
        f"{torch.__version__}, built for CUDA {torch.version.cuda}, finds no GPU that it can use: install a newer "
        "driver or a PyTorch built for an older CUDA, or give the container its GPUs; set CUDA_VISIBLE_DEVICES= "
        "(empty) to compute on the CPU"
    )


def _has_bfloat16(device: torch.device) -> bool:
    """As torch.cuda.is_bf16_supported without emulation, which looks at the current GPU and not at this one."""
    if torch.version.hip or not torch.cuda.is_available():
        return bool(torch.version.hip)
    return torch.cuda.get_device_capability(device) >= (8, 0)


def weight_type(precision: str, device: torch.device) -> torch.dtype:
    """Type of the weights; the head and the scores are float32 in any case.

    Args:
        precision: float32, bfloat16, or auto: bfloat16 on a GPU that computes in it, float32 elsewhere.
        device: where the model lies.

    Raises:
        DeviceError: the GPU does not compute in bfloat16.
    """
    able = device.type != "cuda" or _has_bfloat16(device)
    if precision == "auto":
        return torch.bfloat16 if device.type == "cuda" and able else torch.float32
    if precision == "bfloat16" and not able:
        raise DeviceError(
            f"precision: bfloat16 does not run on {torch.cuda.get_device_name(device)}, which has no such "
            "arithmetic; set float32 (or auto)"
        )
    return _TYPES[precision]


def copied(value: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`value` on `device`. To a GPU it goes from page-locked memory, so that nobody waits for what was computed before.

    From other memory, the copy may begin only when everything that the GPU was given before is done.
    """
    if device.type != "cuda" or value.device.type != "cpu":
        return value.to(device)
    return value.pin_memory().to(device, non_blocking=True)


def threads_for(device: torch.device) -> int:
    """Threads that read ahead: none on a CPU, which has nothing to wait for."""
    return 0 if device.type == "cpu" else min(_MOST_THREADS, usable_cores())


def read_ahead(items: Iterable[_Item], read: Callable[[_Item], _Read], threads: int) -> Iterator[tuple[_Item, _Read]]:
    """Items with what `read` makes of each, in their order, up to `threads` + 1 of them ahead of whoever takes them.

    An error of `read` comes where its item would. Results do not depend on `threads`; with 0 nothing is read ahead.
    """
    if not threads:
        for item in items:
            yield item, read(item)
        return
    waiting: deque[tuple[_Item, Future[_Read]]] = deque()
    with ThreadPoolExecutor(threads, "read-ahead") as pool:
        try:
            for item in items:
                waiting.append((item, pool.submit(read, item)))
                if len(waiting) > threads:
                    first, made = waiting.popleft()
                    yield first, made.result()
            while waiting:
                first, made = waiting.popleft()
                yield first, made.result()
        finally:
            for _, made in waiting:
                made.cancel()
