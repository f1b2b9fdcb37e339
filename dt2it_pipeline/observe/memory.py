"""How much memory this process has taken, and which errors say that it ran out."""

from __future__ import annotations

import contextlib
import ctypes
import re
import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
# How libraries word a failed allocation where its error has no class of its own: PyTorch on a CPU and on a GPU, in an
# error of torch.compile too, cuBLAS, cuDNN, NCCL.
_WORDS = re.compile(
    "can't allocate memory|CUDA error: out of memory|CUDA out of memory|CUBLAS_STATUS_ALLOC_FAILED"
    r"|CUDNN_STATUS_ALLOC_FAILED|Failed to CUDA [mc]alloc|Cuda failure (?:\d+ )?'out of memory'"
)


def peak_memory() -> int:
    """The most memory that this process has had at once (resident set size), in bytes.

    `getrusage` counts what the parent had when it started this process, too, so the kernel's own mark of this program
    comes first where there is one.

    Examples:
        >>> peak_memory() > 1_000_000
        True
    """
    try:
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024
    except (OSError, ValueError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory could not be had, on a GPU or on the host.

    Examples:
        >>> cpu = RuntimeError("DefaultCPUAllocator: can't allocate memory")
        >>> ran_out(MemoryError()), ran_out(cpu), ran_out(OSError())
        (True, True, False)
    """
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and _WORDS.search(str(error)) is not None


def give_back() -> None:
    """Give memory that this process has freed back to the system, where its allocators can (glibc, and Arrow's pool).

    Trainings have glibc keep it, for the next step; what a long preparation has freed would count for as long.
    """
    import pyarrow as pa

    pa.default_memory_pool().release_unused()
    with contextlib.suppress(AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
