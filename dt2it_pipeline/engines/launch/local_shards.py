"""Shards of a job in this process, or shared out among worker processes of this machine."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn

from dt2it_pipeline.engines.jobs import ShardedJob, load_function
from dt2it_pipeline.engines.launch.deaths import memory_kills, signal_of_code, why_killed
from dt2it_pipeline.engines.launch.launcher import Resources, ShardsError, WorkerPlace
from dt2it_pipeline.observe.logs import configure_logs

_GRACE = 5.0  # seconds that a worker has to end by itself

Do = Callable[[Any], Any]
Load = Callable[[Any, Any, WorkerPlace], Do]  # what a job's `shard_worker` names


@dataclass(frozen=True)
class InThisProcess:
    """One worker, which is this process.

    Attributes:
        load: stands in for the function that the job names; None: that function.
        gpus: as many as the worker takes of those that this process sees.
    """

    load: Load | None = None
    gpus: int = 1

    def run(
        self, job: ShardedJob, shards: Mapping[int, Any], finished: Callable[[int, Any], None], shared: Any = None
    ) -> float:
        """Do all shards, one after the other; see `ShardLauncher`. Errors of a shard are raised as they are."""
        if not shards:
            return 0
        load: Load = self.load or load_function(job.shard_worker)
        do = load(job, shared, WorkerPlace("auto"))
        for number, shard in shards.items():
            finished(number, do(shard))
        return min(self.gpus, len(visible_gpus())) if "torch" in sys.modules else 0


@dataclass(frozen=True)
class LocalShards:
    """Worker processes on this machine, each with its share of cores and GPUs. One alone is this process itself.

    Attributes:
        resources: how many workers, and the GPUs of each.
        fork: whether what a worker loads survives a fork, where there is no GPU and torch has not been imported yet. It
            is then loaded once, before the workers are made, which spares each of them its start-up.
    """

    resources: Resources
    fork: bool = False

    def run(
        self, job: ShardedJob, shards: Mapping[int, Any], finished: Callable[[int, Any], None], shared: Any = None
    ) -> float:
        """Do all shards, by whichever worker is free; see `ShardLauncher`.

        Raises:
            ShardsError: a worker died, a shard failed in one, or there are too few GPUs.
        """
        if min(self.resources.processes, len(shards)) <= 1:
            return InThisProcess(gpus=max(1, self.resources.gpus)).run(job, shards, finished, shared)
        # A process whose thread pool has started must not be forked; one that has yet to import torch has started none.
        forkable = self.fork and "torch" not in sys.modules
        gpus = visible_gpus()
        fork = forkable and not gpus
        count, threads = min(self.resources.processes, len(shards)), share_of_cores(self.resources.processes)
        masks = [self._gpus_of(index, count, gpus) for index in range(count)]
        context: Any = multiprocessing.get_context("fork" if fork else "spawn")
        do = None
        if fork:  # on one thread: loading must not start the thread pool either
            do = load_function(job.shard_worker)(job, shared, WorkerPlace("cpu", 1))
        with _workers(context, masks, (threads, job, None if fork else shared, do)) as workers:
            _share_out(workers, shards, finished)
        return len({gpu for mask in masks if mask for gpu in mask.split(",")})

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

    if not torch.cuda.is_available():
        return []
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named or [str(number) for number in range(torch.cuda.device_count())]


def share_of_cores(processes: int) -> int:
    """Threads for each of so many processes on this machine."""
    return max(1, (os.cpu_count() or 1) // processes)


@contextlib.contextmanager
def _workers(context: Any, masks: list[str | None], given: tuple[Any, ...]) -> Iterator[dict[Connection, Any]]:
    """Processes by the connection to each; whatever ends the block, none of them outlives it."""
    workers: dict[Connection, Any] = {}
    try:
        for mask in masks:
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, mask, *given))
            process.start()
            theirs.close()
            workers[ours] = process
        yield workers
        for connection in workers:
            connection.send(None)
        for process in workers.values():
            process.join()
    finally:
        for process in workers.values():
            process.terminate()
        for process in workers.values():
            process.join(_GRACE)
            process.kill()  # one that ignores SIGTERM, as children of a run in the background may
            process.join()


def _share_out(
    workers: Mapping[Connection, Any], shards: Mapping[int, Any], finished: Callable[[int, Any], None]
) -> None:
    """Give every worker a shard, and another when it is done with that."""
    todo = iter(shards.items())
    in_hand: dict[Connection, int] = {}
    kills = memory_kills()

    def give(connection: Connection) -> None:
        following = next(todo, None)
        if following is not None:
            in_hand[connection] = following[0]
            with contextlib.suppress(BrokenPipeError):  # it has died, which its sentinel says
                connection.send(following[1])

    for connection in workers:
        give(connection)
    sentinels = {process.sentinel: connection for connection, process in workers.items()}
    while in_hand:
        ready = wait([*in_hand, *sentinels])
        for connection in [item for item in ready if isinstance(item, Connection)]:
            try:
                failed, value = connection.recv()
            except (EOFError, ConnectionResetError):
                _died(workers[connection], in_hand[connection], kills)
            number = in_hand.pop(connection)
            if failed:
                raise ShardsError(f"shard {number} failed in a worker process: {value}")
            finished(number, value)
            give(connection)
        if not any(isinstance(item, Connection) for item in ready):  # what a worker sent before its end comes first
            for connection in [sentinels.pop(item) for item in ready if isinstance(item, int)]:
                if connection in in_hand:
                    _died(workers[connection], in_hand[connection], kills)


def _died(process: Any, number: int, kills: tuple[int, ...]) -> NoReturn:
    process.join()
    ended = signal_of_code(process.exitcode)
    why = "" if ended is None else f" ({why_killed(ended, kills)})"
    raise ShardsError(f"a worker process ended with exit code {process.exitcode} at shard {number}{why}")


def _work(connection: Connection, gpus: str | None, threads: int, job: ShardedJob, shared: Any, do: Do | None) -> None:
    """A worker process: does what it is handed until it is handed None."""
    _end_with_parent()
    configure_logs()
    if gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus
    if do is None:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # read when torch is imported
    else:
        import torch

        torch.set_num_threads(threads)  # of a fork: what it inherits was loaded on one
    while (shard := connection.recv()) is not None:
        try:
            if do is None:
                do = load_function(job.shard_worker)(job, shared, WorkerPlace("auto", threads))
            value = do(shard)
        except Exception as error:
            traceback.print_exc()
            connection.send((True, "".join(traceback.format_exception_only(error)).strip()))
            return
        connection.send((False, value))


def _end_with_parent() -> None:
    """End this process when the one that started it is gone, be it killed: nobody would take in what it does then."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
