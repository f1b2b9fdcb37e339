"""Where processes come from that share a stage's work: a fork server, a fresh process that forks.

A fork of the stage's own process would share its threads and their locks, its connections and its CUDA context.
Processes that start from nothing import their modules each for themselves. The server imports them once, has no
threads, and ends when the last of them has.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Mapping
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext

# What servers of workers import that run a model; see `ShardedJob.preloaded`.
VLLM = "dt2it_pipeline.engines.launch.vllm_imports"
TRANSFORMERS = "dt2it_pipeline.engines.launch.transformers_imports"


def context(preloaded: str) -> ForkServerContext:
    """The context that processes are started in; the server starts with the first of them.

    Args:
        preloaded: module that the server imports. The first one counts: a process has one server.
    """
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload([preloaded])
    return found


def start(variables: Mapping[str, str]) -> None:
    """Start the server with these environment variables beside those of this process, where it does not run yet."""
    own = dict(os.environ)
    os.environ.update(variables)
    try:
        forkserver.ensure_running()
    finally:
        for name in variables:
            if name in own:
                os.environ[name] = own[name]
            else:
                del os.environ[name]


def is_safe() -> bool:
    """Whether processes that a server forks can compute with torch: on Linux, where there is no device.

    What a device's library sets up while modules are imported does not survive a fork. Imports torch.
    """
    import torch

    return sys.platform == "linux" and not torch.accelerator.is_available()


def end_at_once() -> None:
    """Let this process, a server, end without taking modules apart; call it when all is imported.

    Whoever reads what it prints would wait for that, and for torch and vLLM it takes seconds.
    """
    atexit.register(_leave, os.getpid())


def _leave(server: int) -> None:
    if os.getpid() == server:  # what it has forked has inherited this
        os._exit(0)


def end_with_parent() -> None:
    """Let this process end when the one that started it has, in whatever way, since nobody would take its work then.

    Call it in a process that `multiprocessing` has started, by whichever method.
    """
    if threading.current_thread() is threading.main_thread():
        # By it a pool ends its processes when one has died; whoever started this one may have ignored it.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    # Of a fork server's child this is not the server, which lives as long as its children.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
