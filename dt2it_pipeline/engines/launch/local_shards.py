"""Shards of a job in this process, or shared out among worker processes of this machine."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, NoReturn

from dt2it_pipeline.engines.jobs import ShardedJob, import_for, load_function
from dt2it_pipeline.engines.launch import fork_server
from dt2it_pipeline.engines.launch.deaths import memory_kills, signal_of_code, why_killed
from dt2it_pipeline.engines.launch.launcher import Resources, ShardLauncher, ShardsError, ShardWorkers, WorkerPlace
from dt2it_pipeline.engines.lean_processes import leave
from dt2it_pipeline.errors import UserError
from dt2it_pipeline.observe.cores import usable_cores
from dt2it_pipeline.observe.logs import configure_logs

_SERVER_LOST = 255  # `multiprocessing`'s status of a process whose fork server was killed; it may still run
_GRACE = 5.0  # seconds that a worker has to end by itself

Do = Callable[[Any], Any]
Load = Callable[[Any, Any, WorkerPlace], Do]  # what a job's `shard_worker` names


@dataclass(frozen=True)
class InThisProcess(ShardLauncher):
    """One worker, which is this process. Errors of a shard are raised as they are.

    Attributes:
        load: stands in for the function that the job names; None: that function.
        gpus: as many as the worker takes of those that this process sees.
    """

    load: Load | None = None
    gpus: int = 1

    @contextlib.contextmanager
    def workers(self, job: ShardedJob, most: int, shared: Any = None) -> Iterator[ShardWorkers]:
        """See `ShardLauncher`."""
        yield _Here(self.load or load_function(job.shard_worker), job, shared, self.gpus)


@dataclass(frozen=True)
class LocalShards(ShardLauncher):
    """Worker processes on this machine, each with its share of cores and GPUs. One alone is this process itself.

    Attributes:
        resources: how many workers, and the GPUs of each.
        fork: whether what a worker loads survives a fork, where there is no GPU and torch has started no threads yet.
            It is then loaded once, before the workers are made, which spares each of them its start-up.
    """

    resources: Resources
    fork: bool = False

    @contextlib.contextmanager
    def workers(self, job: ShardedJob, most: int, shared: Any = None) -> Iterator[ShardWorkers]:
        """See `ShardLauncher`. Whichever worker is free does the next shard.

        Raises:
            ShardsError: there are too few GPUs; in the block, a worker died, or a shard failed in one.
        """
        if min(self.resources.processes, most) <= 1:
            with InThisProcess(gpus=max(1, self.resources.gpus)).workers(job, most, shared) as here:
                yield here
            return
        # A process whose thread pool has started must not be forked; one that has yet to import torch has started none.
        forkable = self.fork and ("torch" not in sys.modules or not _has_native_threads())
        gpus = visible_gpus()
        fork = forkable and not gpus
        count, threads = min(self.resources.processes, most), share_of_cores(self.resources.processes)
        masks = [self._gpus_of(index, count, gpus) for index in range(count)]
        context: Any = multiprocessing.get_context("fork" if fork else "spawn")
        do = None
        if fork:  # on one thread: loading must not start the thread pool either
            do = load_function(job.shard_worker)(job, shared, WorkerPlace("cpu", 1))
        elif job.preloaded is not None and not gpus and fork_server.is_safe():
            context = fork_server.context(job.preloaded)
            fork_server.start({"OMP_NUM_THREADS": str(threads)})  # of the workers, whom OpenMP is loaded for there
        with _processes(context, masks, (threads, job, None if fork else shared, do)) as processes:
            yield _Processes(processes, len({gpu for mask in masks if mask for gpu in mask.split(",")}))

    def _gpus_of(self, index: int, count: int, gpus: list[str]) -> str | None:
        """Value of CUDA_VISIBLE_DEVICES for a worker; None where the machine has no GPU."""
        own = self.resources.gpus
        if own * count > len(gpus) > 0:
            asked = f" ({self.resources.settings})" if self.resources.settings else ""
            raise ShardsError(
                f"{count} workers with {own} GPUs each need {own * count} GPUs, and this machine shows {len(gpus)}: "
                f"ask for fewer{asked}"
            )
        if not gpus:
            return None
        return ",".join(gpus[index * own : (index + 1) * own]) if own else gpus[index % len(gpus)]


def visible_gpus() -> list[str]:
    """GPUs that this process sees, as CUDA_VISIBLE_DEVICES names them. Imports torch, and does not start CUDA."""
    import torch

    from dt2it_pipeline.engines.device import finds_gpu

    if not finds_gpu():
        return []
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named or [str(number) for number in range(torch.cuda.device_count())]


def share_of_cores(processes: int) -> int:
    """Threads for each of so many processes on this machine."""
    return max(1, usable_cores() // processes)


def _has_native_threads() -> bool:
    """Whether libraries run threads in this process, beside those of Python; taken for so where nobody can say."""
    try:
        return len(list(Path("/proc/self/task").iterdir())) > threading.active_count()
    except OSError:
        return True


class _Here:
    """The only worker, which is this process."""

    def __init__(self, load: Load, job: ShardedJob, shared: Any, gpus: int) -> None:
        self._load, self._job, self._shared, self._gpus = load, job, shared, gpus
        self._do: Do | None = None

    @property
    def gpus(self) -> float:
        """See ShardWorkers. A process that has not imported torch uses none."""
        return min(self._gpus, len(visible_gpus())) if "torch" in sys.modules else 0

    def do(self, shards: Mapping[int, Any]) -> Iterator[tuple[int, Any]]:
        """See ShardWorkers: one shard after the other."""
        for number, shard in shards.items():
            if self._do is None:
                self._do = self._load(self._job, self._shared, WorkerPlace("auto"))
            yield number, self._do(shard)


class _Processes:
    """Worker processes by the connection to each."""

    def __init__(self, workers: Mapping[Connection, Any], gpus: float) -> None:
        self._workers, self.gpus = workers, gpus
        self._in_hand: dict[Connection, int] = {}

    def do(self, shards: Mapping[int, Any]) -> Iterator[tuple[int, Any]]:
        """See ShardWorkers: give every worker a shard, and another when it is done with that."""
        if self._in_hand:  # what those workers send would be taken for the results of other shards
            raise ShardsError(f"shards {sorted(self._in_hand.values())} were left to the workers, which can do no more")
        todo = iter(shards.items())
        kills = memory_kills()
        for connection in self._workers:
            self._give(connection, todo)
        sentinels = {process.sentinel: connection for connection, process in self._workers.items()}
        while self._in_hand:
            ready = wait([*self._in_hand, *sentinels])
            for connection in [item for item in ready if isinstance(item, Connection)]:
                number = self._in_hand[connection]
                try:
                    failed, value = connection.recv()
                except (EOFError, ConnectionResetError):
                    _died(self._workers[connection], number, kills)
                if failed:
                    raise ShardsError(f"shard {number} failed in a worker process: {value}")
                del self._in_hand[connection]
                self._give(connection, todo)
                yield number, value
            if not any(isinstance(item, Connection) for item in ready):  # what a worker sent before its end comes first
                for connection in [sentinels.pop(item) for item in ready if isinstance(item, int)]:
                    if connection in self._in_hand:
                        _died(self._workers[connection], self._in_hand[connection], kills)

    def _give(self, connection: Connection, todo: Iterator[tuple[int, Any]]) -> None:
        following = next(todo, None)
        if following is not None:
            self._in_hand[connection] = following[0]
            with contextlib.suppress(BrokenPipeError):  # it has died, which its sentinel says
                connection.send(following[1])


@contextlib.contextmanager
def _processes(context: Any, masks: list[str | None], given: tuple[Any, ...]) -> Iterator[dict[Connection, Any]]:
    """Processes by the connection to each; whatever ends the block, none of them outlives it."""
    workers: dict[Connection, Any] = {}
    environment = dict(os.environ)
    try:
        for mask in masks:
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, mask, environment, *given))
            try:
                process.start()
            except (EOFError, ConnectionError) as error:  # of a fork server
                raise ShardsError("no worker can be started: the process that was to fork it has ended") from error
            theirs.close()
            workers[ours] = process
        yield workers
        for connection in workers:
            with contextlib.suppress(BrokenPipeError):  # one that has died when it had nothing to do
                connection.send(None)
        for process in workers.values():
            process.join()
    finally:
        for process in workers.values():
            process.terminate()
            if isinstance(process, ForkServerProcess) and process.exitcode == _SERVER_LOST and process.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
        for process in workers.values():
            process.join(_GRACE)
            process.kill()  # one that ignores SIGTERM, as children of a run in the background may
            process.join()


def _died(process: Any, number: int, kills: tuple[int, ...]) -> NoReturn:
    process.join()
    ended = signal_of_code(process.exitcode)
    why = "" if ended is None else f" ({why_killed(ended, kills)})"
    raise ShardsError(
        f"the worker process {process.pid} ended with exit code {process.exitcode} at shard {number}{why}"
    )


def _work(
    connection: Connection,
    gpus: str | None,
    environment: Mapping[str, str],
    threads: int,
    job: ShardedJob,
    shared: Any,
    do: Do | None,
) -> None:
    """A worker process: does what it is handed until it is handed None, and ends."""
    fork_server.end_with_parent()
    os.environ.clear()  # a fork server has the variables of its start
    os.environ.update(environment)
    configure_logs()
    if gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus
    forked = do is not None
    if not forked:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # read when torch is imported
    if "torch" in sys.modules:  # of a fork: what it inherits was imported, or loaded on one thread
        import torch

        torch.set_num_threads(threads)
    while (shard := connection.recv()) is not None:
        try:
            if do is None:
                import_for(job)
                do = load_function(job.shard_worker)(job, shared, WorkerPlace("auto", threads))
            value = do(shard)
        except Exception as error:
            if isinstance(error, UserError):  # its sentence says it all
                words = str(error)
            else:
                traceback.print_exc()
                words = "".join(traceback.format_exception_only(error)).strip()
            connection.send((True, words))
            return
        connection.send((False, value))
    if not forked:  # what is registered for the end of a process that was forked is its parent's
        leave()
