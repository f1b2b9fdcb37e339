"""Jobs whose shards the tests of ray_shards.py and local_shards.py share out; they leave marks in a folder."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from dt2it_pipeline.engines.jobs import ShardedJob
from dt2it_pipeline.engines.launch.launcher import WorkerPlace


class SquaresJob(ShardedJob):
    """Squares numbers; `deadly` ends its worker the first `times` times, `faulty` is an error."""

    entry_point: ClassVar[str] = "dt2it_pipeline_tests.support.ray_jobs:nothing"
    shard_worker: ClassVar[str] = "dt2it_pipeline_tests.support.ray_jobs:squares"

    folder: Path
    deadly: int | None = None
    times: int = 0
    faulty: int | None = None


class PreloadedJob(SquaresJob):
    """A job whose workers are forked by a server that has imported a module; it gives what a worker sees."""

    shard_worker: ClassVar[str] = "dt2it_pipeline_tests.support.ray_jobs:sights"

    orphaned: int | None = None  # a worker kills the server then, and works on

    @property
    def preloaded(self) -> str:
        return "dt2it_pipeline_tests.support.preloaded_module"


class UnloadableJob(SquaresJob):
    """A job whose workers cannot load what they need."""

    shard_worker: ClassVar[str] = "dt2it_pipeline_tests.support.ray_jobs:unloadable"


def squares(job: SquaresJob, shared: Any, place: WorkerPlace) -> Callable[[int], int]:
    """Squares a number, leaves a mark per try, and dies on the job's `deadly` number until it has done so `times`."""

    def do(number: int) -> int:
        mark(job.folder, number)
        if number == job.deadly and tries(job.folder, number) <= job.times:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == job.faulty:
            raise ValueError(f"{number} is no good")
        return number * number + (0 if shared is None else shared.num_rows)

    return do


def sights(job: PreloadedJob, shared: Any, place: WorkerPlace) -> Callable[[int], dict[str, Any]]:
    """What a worker sees; it leaves the marks of `squares`."""
    from dt2it_pipeline_tests.support import preloaded_module

    do = squares(job, shared, place)

    def see(number: int) -> dict[str, Any]:
        do(number)
        if number == job.orphaned:
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(900)
        return {
            "parent": os.getppid(),
            "imported_by": preloaded_module.IMPORTED_BY,
            "variable": os.environ.get("A_VARIABLE"),
            "openmp": os.environ["OMP_NUM_THREADS"],
        }

    return see


def unloadable(job: SquaresJob, shared: Any, place: WorkerPlace) -> Callable[[int], int]:
    """Cannot load what it needs."""
    raise OSError("no such checkpoint")


def mark(folder: Path, number: int) -> None:
    """Leave one more mark of a number."""
    (folder / f"{number}-{tries(folder, number)}").write_text(str(os.getpid()))


def tries(folder: Path, number: int) -> int:
    """Marks of a number so far."""
    return len(list(folder.glob(f"{number}-*")))
