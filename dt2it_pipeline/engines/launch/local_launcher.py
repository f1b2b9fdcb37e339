"""Jobs in child processes of this machine, or in ranks that the DeepSpeed launcher starts here and on others.

A job has a session of its own: whatever ends the launch, the whole process group ends with it, and a killed launcher
takes its job along (see `worker.end_with_parent`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dt2it_pipeline.engines.jobs import WORKER_ENVIRONMENT, Job, Summary
from dt2it_pipeline.engines.launch.deepspeed_launcher import (
    REMOTE_ENVIRONMENT,
    deepspeed_command,
    write_remote_environment,
)
from dt2it_pipeline.engines.launch.launcher import ONE_PROCESS, JobFailed, Resources
from dt2it_pipeline.engines.launch.worker import PARENT_PID, error_file, read_summary, summary_file
from dt2it_pipeline.storage import locks

_GRACE_SECONDS = 10.0


@dataclass(frozen=True)
class LocalLauncher:
    """Starts jobs on this machine; several ranks, and a hostfile, go through the DeepSpeed launcher.

    Attributes:
        worker: module that the processes run; it calls `worker.run_file`.
        environment: variables that the module needs, on every machine.
        on_line: called with every line that the processes print; None: they print where this process does.
    """

    worker: str = "dt2it_pipeline.engines.launch.worker"
    environment: Mapping[str, str] = field(default_factory=dict)
    on_line: Callable[[str], None] | None = None

    def launch(self, job: Job, *, work: Path, resources: Resources = ONE_PROCESS) -> Summary:
        """Run a job to its end and return its summary; see `Launcher`.

        Raises:
            JobFailed: the job ended with an error, which the message names.
        """
        path = work / "job.json"
        job.write(path)
        for left in (error_file(path), summary_file(path)):
            left.unlink(missing_ok=True)
        environment = {
            **WORKER_ENVIRONMENT,
            **os.environ,
            **resources.environment,
            **self.environment,
            PARENT_PID: str(os.getpid()),
        }
        module = [self.worker, str(path)]
        command = [sys.executable, "-m", *module]
        if resources.processes > 1 or resources.hostfile is not None:
            command = deepspeed_command(module, resources.processes, hostfile=resources.hostfile)
        if resources.hostfile is not None:
            environment[REMOTE_ENVIRONMENT] = str(work / "remote_environment")
            write_remote_environment(environment[REMOTE_ENVIRONMENT], environment, self.environment)
        with _process_group(command, environment, piped=self.on_line is not None) as process:
            if self.on_line is not None:
                assert process.stdout is not None
                for line in process.stdout:
                    self.on_line(line.decode("utf-8", "replace"))
            code = process.wait()
        summary = read_summary(path)
        if code != 0 or summary is None:
            raise JobFailed(f"{job.entry_point} {_why(code, path)}", code, " ".join(command), path)
        return summary


def _why(code: int, job: Path) -> str:
    """How a job's process ended, and the error that it or one of its ranks named."""
    try:
        words = error_file(job).read_text(encoding="utf-8").strip()
    except OSError:
        words = ""
    ended = f"ended with code {code}"
    if code < 0:
        ended += f" (signal {signal.Signals(-code).name}; where it was not you, memory may have run out)"
    return f"{ended}: {words}" if words else f"{ended}; its output in this step's log may say why"


@contextlib.contextmanager
def _process_group(command: list[str], environment: dict[str, str], piped: bool) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command in a session of its own; whatever ends the block, the whole group ends with it.

    It keeps the locks of the stage: where this process is killed, the next one waits until the group has ended, too.
    """
    process = subprocess.Popen(
        command,
        env=environment,
        start_new_session=True,
        pass_fds=locks.held_here(),
        stdout=subprocess.PIPE if piped else None,
        stderr=subprocess.STDOUT if piped else None,
    )
    try:
        yield process
    finally:
        _end_group(process)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=_GRACE_SECONDS)
        os.killpg(process.pid, signal.SIGKILL)  # ranks may outlive the launcher
    process.wait()
