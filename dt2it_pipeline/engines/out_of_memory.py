"""Which errors say that memory ran out."""

from __future__ import annotations

import re

# How libraries word a failed allocation where its error has no class of its own: PyTorch on a CPU and on a GPU, in an
# error of torch.compile too, cuBLAS, cuDNN, NCCL.
_WORDS = re.compile(
    "can't allocate memory|CUDA error: out of memory|CUDA out of memory|CUBLAS_STATUS_ALLOC_FAILED"
    r"|CUDNN_STATUS_ALLOC_FAILED|Failed to CUDA [mc]alloc|Cuda failure (?:\d+ )?'out of memory'"
)


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory could not be had, on a GPU or on the host.

    >>> ran_out(MemoryError()), ran_out(RuntimeError("DefaultCPUAllocator: can't allocate memory")), ran_out(OSError())
    (True, True, False)
    """
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and _WORDS.search(str(error)) is not None
