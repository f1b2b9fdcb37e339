"""The executor of every run here: all steps in one process, after the places of runs that were killed have been freed.

The steps are light (heavy work is in child processes), so one process pays Dagster's start-up once. A run that is
killed with SIGKILL cannot give its place in the pool `gpu` back, and without a daemon nobody does it for it: the next
headless run would wait for ever. So every run first looks for such runs.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.execution.retries import RetryMode
from dagster._core.executor.in_process import InProcessExecutor

HOST_TAG = "dt2it/host"
PID_TAG = "dt2it/pid"
_ACTIVE = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]


class OneProcessExecutor(InProcessExecutor):
    """Dagster's in-process executor, which first frees what killed runs left behind and notes where it runs."""

    def execute(self, plan_context: Any, execution_plan: Any) -> Iterator[Any]:
        """Run the plan; yields its events."""
        instance, run_id = plan_context.instance, plan_context.dagster_run.run_id
        for dead in end_dead_runs(instance):
            plan_context.log.warning(f"run {dead} was killed; its place in the pools is free again")
        instance.add_run_tags(run_id, {HOST_TAG: socket.gethostname(), PID_TAG: str(os.getpid())})
        yield from super().execute(plan_context, execution_plan)


@dg.executor(name="one_process", requirements=[])
def one_process_executor(init_context: dg.InitExecutorContext) -> OneProcessExecutor:
    """All steps of a run in one process."""
    return OneProcessExecutor(retries=RetryMode.ENABLED)


def end_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Mark runs of this machine whose process is gone as failed and free their places in pools; returns their ids."""
    dead = []
    for run in instance.get_runs(dg.RunsFilter(statuses=_ACTIVE, tags={HOST_TAG: socket.gethostname()})):
        if not _is_dagster(run.tags.get(PID_TAG, "")):
            instance.report_run_failed(run, "The process of this run is gone; it was killed.")
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
            dead.append(run.run_id)
    return dead


def _is_dagster(pid: str) -> bool:
    """Whether a process of that number runs Dagster; another program may have been given the number since."""
    try:
        return b"dagster" in Path(f"/proc/{int(pid)}/cmdline").read_bytes()
    except (OSError, ValueError):
        return False
