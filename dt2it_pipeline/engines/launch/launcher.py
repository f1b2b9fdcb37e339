"""Where jobs run: two protocols that a stage and the graph speak, and what a job asks for.

- `Launcher` starts a whole job in processes of its own and brings its summary back. `local_launcher.py` has this
  machine's, `clusters/` those of Slurm and Kubernetes.
- `ShardLauncher` shares the shards of a running job out among workers. `local_shards.py` has this machine's,
  `ray_shards.py` those of a Ray cluster; `shards.py` chooses by the recipe's section `ray`.

A further place is one more class for either protocol; no stage changes for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from dt2it_pipeline.engines.jobs import Job, ShardedJob, Summary
from dt2it_pipeline.errors import UserError, WorkerError


@dataclass(frozen=True)
class Resources:
    """What a job, or the workers of its shards, ask for.

    Attributes:
        processes: ranks of a job on each machine, or workers on this machine.
        gpus: GPUs that each process needs to itself; 0: processes share what there is.
        hostfile: machines of a multi-node job, in DeepSpeed's format (`host slots=n` per line); None: this machine.
        environment: variables of the processes, beside those of this one.
        settings: keys of the recipe that ask for this, for messages.
    """

    processes: int = 1
    gpus: int = 0
    hostfile: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    settings: str = ""


@dataclass(frozen=True)
class WorkerPlace:
    """Where a worker of shards computes.

    Attributes:
        device: "cuda" or "cpu"; a worker with GPUs of its own sees no others.
        threads: to compute with; None: as many as the process has by default.
    """

    device: str
    threads: int | None = None


ONE_PROCESS = Resources()


class JobFailed(WorkerError):
    """A launched job ended with an error.

    Attributes:
        code: exit status of its process; -n: ended by signal n.
        command: what was started.
        job_file: the job.
    """

    def __init__(self, message: str, code: int, command: str, job_file: Path) -> None:
        super().__init__(message, code, command, job_file)
        self.message, self.code, self.command, self.job_file = message, code, command, job_file

    def __str__(self) -> str:
        return self.message

    @property
    def was_killed(self) -> bool:
        """Whether a signal ended it (memory ran out, say): the work so far is kept, so that a new try goes on."""
        return self.code < 0


class LauncherError(UserError, ValueError):
    """A launcher cannot give what a job asks for; the message names the settings."""

    help_page: ClassVar[str] = "troubleshooting#job"


class ShardsError(WorkerError):
    """Shards cannot be done by workers; the message says why."""


class Launcher(Protocol):
    """Starts jobs in processes of their own."""

    def launch(self, job: Job, *, work: Path, resources: Resources = ONE_PROCESS) -> Summary:
        """Run a job to its end and return its summary.

        Args:
            job: is written to `work`/job.json.
            work: folder that the job's processes can reach, too.
            resources: what the job asks for.

        Raises:
            JobFailed: the job ended with an error, which the message names.
        """
        ...


class ShardWorkers(Protocol):
    """Workers that have been started. Each loads what it needs with its first shard, and keeps it."""

    @property
    def gpus(self) -> float:
        """How many GPUs the workers have."""
        ...

    def do(self, shards: Mapping[int, Any]) -> Iterator[tuple[int, Any]]:
        """Do shards; may be called again when they are done.

        Args:
            shards: number -> what the workers' function is handed, in the order in which shards are begun.

        Yields:
            The number of each shard as it is done, and what the worker returned.

        Raises:
            ShardsError: a worker died, or could not be started, or a shard failed in another process.
            Exception: whatever a shard raises in this process.
        """
        ...


class ShardLauncher(Protocol):
    """Shares the shards of a job out among workers, each of which loads what it needs once."""

    def workers(self, job: ShardedJob, most: int, shared: Any = None) -> AbstractContextManager[ShardWorkers]:
        """Start workers, which end with the block.

        Args:
            job: names the workers' function (`shard_worker`) and is handed to it.
            most: more workers than this would have nothing to do.
            shared: a table that all workers read.

        Raises:
            ShardsError: they cannot be had.
        """
        ...

    def run(
        self,
        job: ShardedJob,
        shards: Mapping[int, Any],
        finished: Callable[[int, Any], None],
        shared: Any = None,
    ) -> float:
        """Do all shards; returns when the last is done, and at once where there is none.

        Args:
            job: names the workers' function (`shard_worker`) and is handed to it.
            shards: number -> what the function is handed, in the order in which shards are begun.
            finished: called here with the number of each shard that is done, and what the worker returned.
            shared: a table that all workers read.

        Returns:
            How many GPUs the workers had.

        Raises:
            ShardsError: a worker died, or could not be started, or a shard failed in another process.
            Exception: whatever a shard raises in this process.
        """
        if not shards:
            return 0
        with self.workers(job, len(shards), shared) as workers:
            for number, value in workers.do(shards):
                finished(number, value)
            return workers.gpus
