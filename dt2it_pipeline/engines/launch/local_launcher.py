"""Jobs in child processes of this machine, alone or as ranks, or in ranks that DeepSpeed starts on several machines.

A job has a session of its own: whatever ends the launch, the whole process group ends with it, and a killed launcher
takes its job along (see `worker.end_with_parent`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO

from dt2it_pipeline.engines.jobs import WORKER_ENVIRONMENT, Job, Summary
from dt2it_pipeline.engines.launch.deaths import (
    memory_kills,
    signal_in,
    signal_of_code,
    why_killed,
)
from dt2it_pipeline.engines.launch.job_fork_server import Request
from dt2it_pipeline.engines.launch.job_forks import ForkedJob, JobForks
from dt2it_pipeline.engines.launch.launcher import ONE_PROCESS, JobFailed, Resources
from dt2it_pipeline.engines.launch.rank_starter import ERROR_FILE
from dt2it_pipeline.engines.launch.ranks import (
    REMOTE_ENVIRONMENT,
    free_port,
    ranks_command,
    write_remote_environment,
)
from dt2it_pipeline.engines.launch.worker import PARENT_PID, error_file, read_summary, summary_file
from dt2it_pipeline.storage import locks

Fork = Callable[[Sequence[int]], ForkedJob | None]
"""Starts a process that gets open files: its output, its errors, and others to keep; None where it cannot."""

_GRACE_SECONDS = 10.0


@dataclass(frozen=True)
class LocalLauncher:
    """Starts jobs on this machine; with a hostfile on several, through the command `deepspeed`.

    Attributes:
        worker: module that the processes run; it calls `worker.run_file`.
        environment: variables that the module needs, on every machine.
        on_line: called with every line that the processes print; None: they print where this process does.
        forks: forks the processes of jobs that name their imports; None: all processes are fresh ones.
    """

    worker: str = "dt2it_pipeline.engines.launch.worker"
    environment: Mapping[str, str] = field(default_factory=dict)
    on_line: Callable[[str], None] | None = None
    forks: JobForks | None = None

    def launch(self, job: Job, *, work: Path, resources: Resources = ONE_PROCESS) -> Summary:
        """Run a job to its end and return its summary; see `Launcher`.

        Raises:
            JobFailed: the job ended with an error, which the message names.
        """
        path = work / "job.json"
        job.write(path)
        for left in (error_file(path), summary_file(path), *work.glob("rank-*.running")):
            left.unlink(missing_ok=True)
        environment = {
            **WORKER_ENVIRONMENT,
            **os.environ,
            **resources.environment,
            **self.environment,
            PARENT_PID: str(os.getpid()),
            ERROR_FILE: str(error_file(path)),
        }
        module = [self.worker, str(path)]
        command = [sys.executable, "-m", *module]
        if resources.processes > 1 or resources.hostfile is not None:
            command = ranks_command(module, resources.processes, hostfile=resources.hostfile)
        if resources.hostfile is not None:
            environment[REMOTE_ENVIRONMENT] = str(work / "remote_environment")
            write_remote_environment(environment[REMOTE_ENVIRONMENT], environment, self.environment)
        kills = memory_kills()
        forked = None if resources.hostfile is not None else self._forked(job, path, environment, resources.processes)
        code = run_process_group(command, environment, self.on_line, forked=forked)
        summary = read_summary(path)
        if code != 0 or summary is None:
            raise job_failed(job, path, code, command, kills)
        return summary

    def _forked(self, job: Job, path: Path, environment: dict[str, str], processes: int) -> Fork | None:
        """What starts the job in a process that is forked with its imports; None where it needs a fresh one."""
        if self.forks is None or job.imports is None:
            return None
        request = Request(
            imports=job.imports,
            worker=self.worker,
            arguments=(str(path),),
            environment=environment,
            folder=str(Path.cwd()),
            files=0,
            ranks=processes if processes > 1 else 0,
            port=free_port() if processes > 1 else 0,
        )
        return partial(self.forks.start, request)


def run_process_group(
    command: list[str],
    environment: dict[str, str],
    on_line: Callable[[str], None] | None = None,
    grace: float = _GRACE_SECONDS,
    forked: Fork | None = None,
) -> int:
    """Run a command in a session of its own and return its exit status; whatever ends the call ends the whole group.

    Args:
        command: what to run.
        environment: of its processes.
        on_line: called with every line that they print; None: they print where this process does.
        grace: seconds between SIGTERM and SIGKILL where the call is ended before the command.
        forked: tries to start what the command runs without it.
    """
    with contextlib.ExitStack() as stack:
        lines: IO[bytes] | None = None
        output = (1, 2)
        if on_line is not None:
            read, write = os.pipe()
            lines, output = stack.enter_context(os.fdopen(read, "rb")), (write, write)
        try:
            process = stack.enter_context(_process_group(command, environment, output, grace, forked))
        finally:
            if lines is not None:
                os.close(write)
        if lines is not None and on_line is not None:
            for line in lines:
                on_line(line.decode("utf-8", "replace"))
        return process.wait()


def job_failed(job: Job, path: Path, code: int, command: list[str], kills: tuple[int, ...]) -> JobFailed:
    """The error of a job that did not end well: how its process ended, and what it or one of its ranks named.

    Args:
        job: that was run.
        path: of its file.
        code: exit status of the command.
        command: that ran it.
        kills: what `memory_kills` said when it was started.
    """
    words = _error(path)
    # Of several ranks the launcher's code may be that of a survivor.
    ended = signal_in(words) or signal_of_code(code)
    why = _why(code, ended, words, kills)
    return JobFailed(f"{job.entry_point} {why}", -ended if ended else code, " ".join(command), path)


def _error(job: Path) -> str:
    """The error that a job or one of its ranks named; empty where none did."""
    try:
        return error_file(job).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _why(code: int, ended_by: int | None, words: str, kills: tuple[int, ...]) -> str:
    """How a job's process ended, in words."""
    ended = f"ended with code {code}"
    if ended_by is not None:
        ended += f" ({why_killed(ended_by, kills)})"
    return f"{ended}: {words}" if words else f"{ended}; its output in this step's log may say why"


@contextlib.contextmanager
def _process_group(
    command: list[str], environment: dict[str, str], output: tuple[int, int], grace: float, forked: Fork | None
) -> Iterator[subprocess.Popen[bytes] | ForkedJob]:
    """Start a command in a session of its own; whatever ends the block, the whole group ends with it.

    It keeps the locks of the stage: where this process is killed, the next one waits until the group has ended, too.
    """
    held = locks.held_here()
    process: subprocess.Popen[bytes] | ForkedJob | None = None if forked is None else forked([*output, *held])
    if process is None:
        stdout, stderr = (None, None) if output == (1, 2) else output  # None: even where one of them is closed
        process = subprocess.Popen(
            command, env=environment, start_new_session=True, pass_fds=held, stdout=stdout, stderr=stderr
        )
    try:
        yield process
    finally:
        _end_group(process, grace)


def _end_group(process: subprocess.Popen[bytes] | ForkedJob, grace: float) -> None:
    with contextlib.suppress(ProcessLookupError):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=grace)
        os.killpg(process.pid, signal.SIGKILL)  # ranks may outlive the launcher
    process.wait()
