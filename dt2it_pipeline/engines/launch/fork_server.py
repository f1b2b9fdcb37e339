"""Where processes come from that share a stage's work: a fork server, a fresh process that forks.

A fork of the stage's own process would share its threads and their locks, its connections and its CUDA context.
Processes that start from nothing import their modules each for themselves. The server imports them once, has no
threads, and ends with the stage's process.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from multiprocessing.context import ForkServerContext

_LOOKS = 2.0  # seconds between two looks whether the server still lives


def context(preloaded: str) -> ForkServerContext:
    """The context that processes are started in; the server starts with the first of them.

    Args:
        preloaded: module that the server imports. The first one counts: a process has one server.
    """
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload([preloaded])
    return found


def end_with_server() -> None:
    """Let this process end when the server has, however the stage's process ended. Call it in a started process."""
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOKS)
    os._exit(1)
