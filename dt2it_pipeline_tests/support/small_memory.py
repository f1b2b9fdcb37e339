"""A worker of jobs in which memory runs out at a forward pass of more than some rows; see test_out_of_memory.py.

    python -m dt2it_pipeline_tests.support.small_memory job.json

Variables: SMALL_MEMORY_ROWS, the most rows of a pass; SMALL_MEMORY_RANK, on which rank (every one by default);
SMALL_MEMORY_AFTER, how many passes of training go well in any case; SMALL_MEMORY_KILLS, where it is set, the process is
killed in the place of an error.
"""

from __future__ import annotations

import os
import signal
from typing import Any

from dt2it_pipeline.engines.launch import worker


def shrink_memory() -> None:
    """Let memory run out in this process as the variables say."""
    import torch

    from dt2it_pipeline.reward.modeling.model import RewardNetwork

    rows, after = int(os.environ["SMALL_MEMORY_ROWS"]), int(os.environ.get("SMALL_MEMORY_AFTER", "0"))
    rank, here = os.environ.get("SMALL_MEMORY_RANK"), os.environ.get("RANK", "0")
    forward, passes = RewardNetwork.forward, 0

    def limited(self: RewardNetwork, batch: Any, *rest: Any) -> torch.Tensor:
        nonlocal passes
        passes += self.training
        if len(batch.input_ids) > rows and passes > after and rank in (None, here):
            if "SMALL_MEMORY_KILLS" in os.environ:
                os.kill(os.getpid(), signal.SIGKILL)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total of 80 GiB")
        return forward(self, batch, *rest)

    RewardNetwork.forward = limited  # type: ignore[method-assign]


def main(arguments: list[str] | None = None) -> None:
    """Run the job that the command line names."""
    shrink_memory()
    worker.main(arguments)


if __name__ == "__main__":
    main()
