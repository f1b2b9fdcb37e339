"""Where the processes that encode rows and read images come from: a fork server, a fresh process that forks.

A fork of the training process itself would share its CUDA context, its threads (of torch, NCCL and the tokenizer) and
their locks, and copy its memory page by page as it is written. Processes that start from nothing import torch and
transformers each for themselves (5 s of a core). The server imports them once, has neither threads nor CUDA, and ends
with the training process.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from multiprocessing.context import ForkServerContext

_PRELOADED = "dt2it_pipeline.reward.data.fork_server_imports"
_LOOKS = 2.0  # seconds between two looks whether the server still lives


def context() -> ForkServerContext:
    """The context that processes are started in; the server starts with the first of them."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload([_PRELOADED])
    return found


def end_with_server() -> None:
    """Let this process end when the server has, however the training process ended. Call it in a started process."""
    import torch

    torch.set_num_threads(1)  # there is one such process for every core
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOKS)
    os._exit(1)
