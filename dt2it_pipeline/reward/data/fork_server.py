"""Where the processes that encode rows and read images come from: the fork server (engines/launch/fork_server.py).

A fork of the training process itself would share its CUDA context, its threads (of torch, NCCL and the tokenizer) and
their locks, and copy its memory page by page as it is written. Processes that start from nothing import torch and
transformers each for themselves (5 s of a core). The server imports them once and has neither threads nor CUDA.
"""

from __future__ import annotations

from multiprocessing.context import ForkServerContext

from dt2it_pipeline.engines.launch import fork_server

_PRELOADED = "dt2it_pipeline.reward.data.fork_server_imports"


def context() -> ForkServerContext:
    """The context that processes are started in; the server starts with the first of them."""
    return fork_server.context(_PRELOADED)


def end_with_parent() -> None:
    """Let this process end when the training process has, in whatever way. Call it in a started process."""
    import torch

    torch.set_num_threads(1)  # there is one such process for every core
    fork_server.end_with_parent()
