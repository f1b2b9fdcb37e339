"""How many threads torch computes with in the tests: no more than the environment says, whatever the machine has."""

from __future__ import annotations

import os


def tested_threads() -> int:
    """OMP_NUM_THREADS, or one thread where it is not set: several tests share the machine."""
    return int(os.environ.get("OMP_NUM_THREADS") or 1)


def use_tested_threads() -> None:
    """Let torch compute in this process with `tested_threads`."""
    import torch

    torch.set_num_threads(tested_threads())
