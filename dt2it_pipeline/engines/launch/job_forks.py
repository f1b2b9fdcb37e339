"""One process for the jobs of a run that has imported what they import, and forks for each of them.

A process that trains or scores imports torch, transformers and DeepSpeed for 5 to 8 s of a core, longer than a small
job takes. The server (job_fork_server.py) imports them once, has no threads of theirs and no device, and a forked
process begins where a fresh one would begin to work. It is in a session of its own, has the environment, the files and
the exit status of a fresh one, and ends with whoever asked for it.

Only on Linux and without a GPU: what CUDA sets up while modules are imported does not survive a fork. There, and for
jobs that name no imports, every process is a fresh one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, Pipe
from multiprocessing.reduction import send_handle
from pathlib import Path

from dt2it_pipeline.engines.launch.job_fork_server import UNFIT, Request
from dt2it_pipeline.observe.logs import FILE, FORM

_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg", "/dev/davinci_manager")  # NVIDIA, AMD, either in WSL, Ascend
_ROOM = 512  # characters of a command line; a job's takes the place of the server's
_END = 1.0  # seconds that a server has to end by itself
_LOST = -int(signal.SIGKILL)  # status of a job whose server is gone


class JobForks:
    """The server of this process, which starts with the first job that can use it.

    Args:
        environment: of the server, where this process has no such variable. Where the variables of this process have
            changed since, there is a new server: modules read them while they are imported.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._own = dict(environment)
        self._begun_with: dict[str, str] = {}
        self._server: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._usable = sys.platform == "linux" and not any(Path(device).exists() for device in _DEVICES)
        # Where one of them was closed, any file may have its number, and the server would take it for its own output.
        self._usable &= None not in (sys.__stdin__, sys.__stdout__, sys.__stderr__)
        self._one_at_a_time = threading.Lock()

    def start(self, request: Request, files: Sequence[int]) -> ForkedJob | None:
        """Start a job in a forked process.

        Args:
            request: what to run.
            files: open files that it gets: standard output, standard error, and others that it keeps open.

        Returns:
            None where it must be a fresh process: there is a device, the server cannot import what the job asks for,
            another job has it now, or this process was started without standard input, output or error.
        """
        if not self._usable or not self._one_at_a_time.acquire(blocking=False):
            return None
        try:
            connection = self._connected()
            connection.send(replace(request, files=len(files)))
            for file in files:
                send_handle(connection, file, None)
            process = connection.recv()
        except (OSError, EOFError):  # it is gone; the next job may have another one
            process = None
            self.close()
        except BaseException:
            self.close()
            self._one_at_a_time.release()
            raise
        if process == UNFIT:
            self._usable = False
            self.close()
        if process is None or process == UNFIT:
            self._one_at_a_time.release()
            return None
        return ForkedJob(process, self)

    def close(self) -> None:
        """End the server. A job of it that still runs ends soon; see `worker.end_with_parent`."""
        if self._connection is not None:
            self._connection.close()
        if self._server is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._server.wait(_END)  # it hears at once that nobody asks any more, unless it imports
            self._server.kill()
            self._server.wait()
        self._connection = self._server = None

    def _connected(self) -> Connection:
        # Ours are read when they are used, but for those of the logs; one of them names the stage.
        now = {k: v for k, v in os.environ.items() if k in (FORM, FILE) or not k.startswith("DT2IT_")}
        if self._connection is not None and now != self._begun_with:
            self.close()
        if self._connection is None:
            self._begun_with = now
            self._connection, theirs = Pipe()
            with theirs:
                command = [sys.executable, "-m", "dt2it_pipeline.engines.launch.job_fork_server", str(theirs.fileno())]
                self._server = subprocess.Popen(
                    [*command, "of the jobs of a run".ljust(_ROOM)],
                    env={**self._own, **os.environ},
                    start_new_session=True,
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                )
        return self._connection

    def _ended(self, timeout: float | None) -> int | None:
        """The status of the job that runs; None where it has not ended within so many seconds."""
        if self._connection is None:
            return _LOST
        try:
            if not self._connection.poll(timeout):
                return None
            code: int = self._connection.recv()
        except (OSError, EOFError):
            self.close()
            code = _LOST
        self._one_at_a_time.release()
        return code


class ForkedJob:
    """A job in a forked process: what `subprocess.Popen` offers, as far as a launcher asks for it.

    Attributes:
        pid: of the process, and of its group.
    """

    def __init__(self, process: int, forks: JobForks) -> None:
        self.pid = process
        self._forks = forks
        self._code: int | None = None

    def poll(self) -> int | None:
        """Its exit status once it has ended, -n where signal n ended it; None before."""
        if self._code is None:
            self._code = self._forks._ended(0)
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return its status, as `poll` has it.

        Raises:
            subprocess.TimeoutExpired: it runs longer than `timeout` seconds.
        """
        if self._code is None:
            self._code = self._forks._ended(timeout)
        if self._code is None:
            raise subprocess.TimeoutExpired("a job", timeout or 0.0)
        if self._code == _LOST:  # the server was killed, and the job may still run
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        return self._code
