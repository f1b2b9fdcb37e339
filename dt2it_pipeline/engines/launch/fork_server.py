"""Processes that share a stage's work: a fork server, which is a fresh process that forks, and pools of its children.

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
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from dt2it_pipeline.errors import WorkerError
from dt2it_pipeline.observe.cores import usable_cores

Piece = TypeVar("Piece")
Made = TypeVar("Made")
_AHEAD = 3  # pieces per process that wait or are worked on
_LOOK = 0.5  # seconds between looks at the processes of a pool
# What servers of workers import that run a model; see `ShardedJob.preloaded`.
VLLM = "dt2it_pipeline.engines.launch.vllm_imports"
TRANSFORMERS = "dt2it_pipeline.engines.launch.transformers_imports"
MOST_PROCESSES = 16  # each takes 150 to 450 MiB of memory


def context(preloaded: str) -> ForkServerContext:
    """The context that processes are started in; the server starts with the first of them.

    Args:
        preloaded: module that the server imports. The first one counts: a process has one server.
    """
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload([preloaded])
    return found


def available_processes() -> int:
    """As many processes as this one may use cores, 16 at most."""
    return min(MOST_PROCESSES, usable_cores())


class Pool:
    """Processes that work on pieces of one thing; what they make of these comes in order, whoever made it.

    Args:
        processes: how many; below 2 this process works, and `start` is not called.
        server: what they are started in, see `context`.
        lost: what to say when one of them died.
        start: is called first in each of them; it should call `end_with_parent`.
        arguments: of `start`.
    """

    def __init__(
        self,
        processes: int,
        server: Callable[[], ForkServerContext],
        lost: str,
        start: Callable[..., None] | None = None,
        arguments: tuple[Any, ...] = (),
    ) -> None:
        self._ahead, self._lost, self._pool = _AHEAD * processes, lost, None
        self._over, self._dead = threading.Event(), threading.Event()
        if processes > 1:
            started = end_with_parent if start is None else start
            self._pool = ProcessPoolExecutor(processes, server(), initializer=started, initargs=arguments)
            threading.Thread(target=_end_with_the_first, args=(self._pool, self._over, self._dead), daemon=True).start()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if self._pool is not None:
            if kind is not None and not issubclass(kind, Exception):  # somebody ends the program: nothing is waited for
                _kill(self._pool)
            try:
                self._pool.shutdown(cancel_futures=True)
            finally:
                self._over.set()

    def map(self, function: Callable[[Piece], Made], pieces: Iterable[Piece]) -> Iterator[Made]:
        """What a function of a module makes of every piece; a few pieces of each process lie in memory at a time.

        Raises:
            WorkerError: a process died, or the function calls `sys.exit`. Else what the function raises, or `pieces`;
                the first in their order.
        """
        if self._pool is None:
            yield from map(partial(_made, function), pieces)
            return
        waiting: deque[Future[Made]] = deque()
        try:
            for piece in _until_fault(pieces, waiting):
                waiting.append(self._pool.submit(_made, function, piece))
                if len(waiting) >= self._ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise WorkerError(self._lost) from error
        except OSError as error:  # of one that was being started when another one died
            if not self._dead.is_set():
                raise
            raise WorkerError(self._lost) from error


def _made(function: Callable[[Piece], Made], piece: Piece) -> Made:
    """What is made of a piece. Where that would exit, whoever waits for the piece would, without a message."""
    try:
        return function(piece)
    except SystemExit as error:
        frames = list(traceback.walk_tb(error.__traceback__))
        handlers = {getattr(signal.getsignal(number), "__code__", None) for number in signal.valid_signals()}
        if any(frame.f_code in handlers for frame, _ in frames):  # somebody ends the program
            raise
        status = error.code if isinstance(error.code, int) else 0 if error.code is None else f"1: {error.code}"
        frame, line = frames[-1]
        raise WorkerError(
            f"sys.exit in {frame.f_code.co_filename}, line {line}, ended the work (exit status {status}); "
            "that code should raise an error: report it to whoever maintains it"
        ) from error


def _end_with_the_first(pool: ProcessPoolExecutor, over: threading.Event, dead: threading.Event) -> None:
    """End all processes of a pool once one of them has died, so that the pool notices in any case.

    By itself it waits for ever where the dead one had sent a part of what it made, since others could still send the
    rest for all it knows, and where another one ignores SIGTERM, as before `end_with_parent` in a program whose caller
    ignores it. Processes that are being started meanwhile end at a later look.
    """
    results = pool._result_queue
    while not over.wait(_LOOK):
        if dead.is_set() or any(each.exitcode not in (None, 0) for each in _processes(pool)):
            dead.set()
            _kill(pool)
            # This process could send, too: now the end of what was sent is seen. Who sees it may shut down the pool,
            # which closes the same connection while this thread is in `close`; so it has no handle any more.
            writer = results._writer  # type: ignore[attr-defined]
            handle, writer._handle = writer._handle, None
            if handle is not None:
                os.close(handle)


def _processes(pool: ProcessPoolExecutor) -> list[BaseProcess]:
    return list((pool._processes or {}).values())


def _kill(pool: ProcessPoolExecutor) -> None:
    for process in _processes(pool):
        process.kill()


def table_pool(processes: int, work: str, module: str) -> Pool:
    """A pool that works on pieces of tables.

    Args:
        processes: how many; below 2 this process works.
        work: what they do, in the message where one of them dies, such as "clean pairs".
        module: whose functions they run, which their server imports.
    """
    lost = (
        f"one of {processes} processes that {work} ended before its work was done, often because memory ran out; free "
        "memory on this machine and start again: what was read is kept"
    )
    return Pool(processes, partial(context, module), lost)


def _until_fault(pieces: Iterable[Piece], waiting: Iterable[Future[Any]]) -> Iterator[Piece]:
    """The same; what is raised on the way comes behind the faults of earlier pieces, as without processes."""
    try:
        yield from pieces
    except Exception:
        for future in waiting:
            future.result()
        raise


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
