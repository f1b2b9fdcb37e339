"""The device that a process computes on: the number format that suits it, and what is read while it computes.

Pillow and PyTorch let go of Python's lock while they work, so that threads suffice and nothing is copied between
processes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ClassVar, TypeVar

import torch

from dt2it_pipeline.errors import UserError
from dt2it_pipeline.observe.cores import usable_cores

_MOST_THREADS = 4
_Item = TypeVar("_Item")
_Read = TypeVar("_Read")
_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class DeviceError(UserError, ValueError):
    """The device cannot do what a setting asks for."""

    help_page: ClassVar[str] = "troubleshooting#gpu"


def found_device() -> torch.device:
    """The GPU that this process sees first, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def weight_type(precision: str, device: torch.device) -> torch.dtype:
    """Type of the weights; the head and the scores are float32 in any case.

    Args:
        precision: float32, bfloat16, or auto: bfloat16 on a GPU that computes in it, float32 elsewhere.
        device: where the model lies.

    Raises:
        DeviceError: the GPU does not compute in bfloat16.
    """
    able = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
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
