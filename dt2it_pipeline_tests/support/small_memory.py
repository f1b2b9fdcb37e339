"""A worker of jobs in which memory runs out at a forward pass of more than some rows; see test_restarts.py.

    python -m dt2it_pipeline_tests.support.small_memory job.json

Variables: SMALL_MEMORY_ROWS, the most rows of a pass; SMALL_MEMORY_RANK, on which rank (every one by default);
SMALL_MEMORY_AFTER, how many passes of training go well in any case; SMALL_MEMORY_KILLS, where it is set, the process is
killed in the place of an error. With SMALL_MEMORY_MIB nothing is made up: from its first pass on the kernel gives the
process that much more, and PyTorch's own allocation fails.
"""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path
from typing import Any

from dt2it_pipeline.engines.launch import worker


def shrink_memory() -> None:
    """Let memory run out in this process as the variables say."""
    import torch

    from dt2it_pipeline.reward.modeling.model import RewardNetwork

    rows, after = int(os.environ.get("SMALL_MEMORY_ROWS", "1000")), int(os.environ.get("SMALL_MEMORY_AFTER", "0"))
    rank, here = os.environ.get("SMALL_MEMORY_RANK"), os.environ.get("RANK", "0")
    forward, passes = RewardNetwork.forward, 0

    def limited(self: RewardNetwork, batch: Any, *rest: Any) -> torch.Tensor:
        nonlocal passes
        if "SMALL_MEMORY_MIB" in os.environ:
            _limit(int(os.environ.pop("SMALL_MEMORY_MIB")))
        passes += self.training
        if len(batch.input_ids) > rows and passes > after and rank in (None, here):
            if "SMALL_MEMORY_KILLS" in os.environ:
                os.kill(os.getpid(), signal.SIGKILL)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total of 80 GiB")
        return forward(self, batch, *rest)

    RewardNetwork.forward = limited  # type: ignore[method-assign]


def _limit(mebibytes: int) -> None:
    """Let this process have so much more memory of its own than it has now (Linux counts what could be written)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    has = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmData")) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (has + mebibytes * 2**20, resource.RLIM_INFINITY))


def main(arguments: list[str] | None = None) -> None:
    """Run the job that the command line names."""
    shrink_memory()
    worker.main(arguments)


if __name__ == "__main__":
    main()
