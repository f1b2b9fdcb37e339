"""What assets are handed: the store, and a way to run a job in a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field

from dt2it_pipeline.engines.deepspeed_launcher import REMOTE_ENVIRONMENT, write_remote_environment
from dt2it_pipeline.engines.jobs import WORKER_ENVIRONMENT
from dt2it_pipeline.orchestrate.pipes_worker import PARENT_PID, error_file
from dt2it_pipeline.storage import locks
from dt2it_pipeline.storage.artifacts import Store
from dt2it_pipeline.storage.atomic import write_json_atomic

_GRACE_SECONDS = 10.0
_CHILD = "dt2it_pipeline.orchestrate.pipes_worker"


class StoreResource(dg.ConfigurableResource):
    """The artifact store below one home folder."""

    home: str = Field(description="Folder of the artifacts (DT2IT_HOME).")

    def open(self) -> Store:
        """The store itself."""
        return Store(self.home)


class ChildProcesses(dg.ConfigurableResource):
    """Runs job functions (see engines.jobs) in child processes, with logs and results through Dagster Pipes."""

    def run(
        self,
        context: dg.AssetExecutionContext,
        target: str,
        job: Mapping[str, Any],
        folder: Path,
        launch: Callable[[list[str]], list[str]] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Run `target` ("package.module:function") on a job and return its summary.

        Args:
            context: of the step, for its log.
            target: the job function.
            job: JSON-able description; written to `folder`/job.json.
            folder: where the job file goes.
            launch: turns a module and its arguments into a command; by default this Python runs the module.
            env: variables for the child, beside this process's own.

        Raises:
            dagster.Failure: the child ended with an error; its own log says which.
        """
        path = folder / "job.json"
        write_json_atomic(dict(job), path)
        error_file(path).unlink(missing_ok=True)
        with contextlib.ExitStack() as stack:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", dg.PreviewWarning)  # Dagster's, about its own message reader
                session = stack.enter_context(
                    dg.open_pipes_session(
                        context=context,
                        context_injector=dg.PipesTempFileContextInjector(),
                        message_reader=dg.PipesTempFileMessageReader(),
                    )
                )
            environment = {
                **WORKER_ENVIRONMENT,
                **os.environ,
                **(env or {}),
                **session.get_bootstrap_env_vars(),
                PARENT_PID: str(os.getpid()),
            }
            if REMOTE_ENVIRONMENT in environment:
                write_remote_environment(environment[REMOTE_ENVIRONMENT], environment, session.get_bootstrap_env_vars())
            module = [_CHILD, target, str(path)]
            command = [sys.executable, "-m", *module] if launch is None else launch(module)
            with _process_group(command, environment) as process:
                code = process.wait()
        summaries = [m["summary"] for m in session.get_custom_messages() if isinstance(m, dict) and "summary" in m]
        if code != 0 or not summaries:
            raise dg.Failure(
                f"{target} {_why(code, path)}",
                metadata={"command": " ".join(command), "job": dg.MetadataValue.path(str(path))},
                allow_retries=code < 0,  # ended by a signal (out of memory, say): the work so far is kept, so try again
            )
        summary: dict[str, Any] = summaries[-1]
        return summary


def _why(code: int, job: Path) -> str:
    """How a child ended, and the error that it or one of its ranks named."""
    try:
        words = error_file(job).read_text(encoding="utf-8").strip()
    except OSError:
        words = ""
    ended = f"ended with code {code}"
    if code < 0:
        ended += f" (signal {signal.Signals(-code).name}; where it was not you, memory may have run out)"
    return f"{ended}: {words}" if words else f"{ended}; its output in this step's log may say why"


@contextlib.contextmanager
def _process_group(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command in a session of its own; whatever ends the block, the whole group ends with it.

    It keeps the locks of the stage: where this process is killed, the next one waits until the group has ended, too.
    """
    process = subprocess.Popen(command, env=environment, start_new_session=True, pass_fds=locks.held_here())
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
