"""The executor of every run here: all steps in one process, after the places of runs that were killed have been freed.

The steps are light (heavy work is in child processes), so one process pays Dagster's start-up once. A run that is
killed with SIGKILL cannot give its place in the pool `gpu` back, and without a daemon nobody does it for it: the next
headless run would wait for ever. So every run first looks for such runs.

How a run is known to be dead: each holds the lock of a file of its own, which the kernel frees when its process ends. A
process number or a host name would not do, since a container that is started again has other ones. A free lock counts
only where it means something: on the same running kernel, or after this very machine was started anew. Runs of other
machines that share the instance are left alone, since a network file system may keep locks to each machine; whoever
knows that such a machine is gone marks its run as failed in the UI (Runs > Terminate).
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from dt2it_pipeline.orchestrate.console import Console
from dt2it_pipeline.orchestrate.dagster_internals import (
    HIDDEN_TAG_PREFIX,
    StepsInThisProcess,
    list_under_job,
    output_folder,
    print_with,
)
from dt2it_pipeline.storage.locks import hold_until_exit, holder, is_free

HOST_TAG = f"{HIDDEN_TAG_PREFIX}dt2it_host"  # hidden: they say nothing to a person, and would stand beside every run
BOOT_TAG = f"{HIDDEN_TAG_PREFIX}dt2it_boot"  # of the kernel, the same in all containers of a machine
LOCK_TAG = f"{HIDDEN_TAG_PREFIX}dt2it_lock"
PARTITION, PARTITION_RANGE = "dagster/partition", "dagster/asset_partition_range_start"
_REPORT_SECONDS, _LOOK_SECONDS = 60.0, 1.0
_ACTIVE = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]


@dg.executor(name="one_process", requirements=[])
def one_process_executor(init_context: dg.InitExecutorContext) -> StepsInThisProcess:
    """All steps of a run in one process."""
    console = Console()
    return StepsInThisProcess(
        before=lambda plan_context: _before(plan_context, console),
        on_log=lambda log: print_with(log, console),
        on_wait=PoolWait().look,
    )


def _before(plan_context: Any, console: Console) -> None:
    """What every run does before its first step: free what killed runs hold, and note where it runs."""
    run, instance = plan_context.dagster_run, plan_context.instance
    console.output, console.partition = output_folder(instance, run.run_id), run.tags.get(PARTITION)
    require_partition(plan_context.job.get_definition(), run.tags, run.asset_selection)
    for dead in end_dead_runs(instance):
        plan_context.log.warning(f"run {dead} was killed; its place in the pools is free again")
    mark_alive(instance, run.run_id)
    list_under_job(instance, run.run_id)


def require_partition(
    job: dg.JobDefinition, tags: Mapping[str, str], selected: Collection[dg.AssetKey] | None = None
) -> None:
    """Raise dagster.Failure where a run of partitioned assets names no partition, or one that does not exist.

    Args:
        job: of the run; a part of it may be partitioned.
        tags: of the run.
        selected: assets that the run makes; all of the job's where None.
    """
    if job.partitions_def is None or PARTITION_RANGE in tags:
        return
    layer = job.asset_layer
    made = layer.selected_asset_keys if selected is None else selected
    if made and not any(layer.has(key) and layer.get(key).partitions_def is not None for key in made):
        return
    known, given = job.partitions_def.get_partition_keys(), tags.get(PARTITION)
    if given not in known:
        name = "round" if job.name.startswith("__") else job.name  # Dagster's own job of all assets is no one's to name
        fault = "the run names no round" if given is None else f"there is no round {given!r}"
        raise dg.Failure(
            f"{fault}; the recipe's rounds are {', '.join(known)}. Run one with: dt2it run {name} --round {known[0]}",
            allow_retries=False,
        )


def mark_alive(instance: dg.DagsterInstance, run_id: str) -> None:
    """Note on a run where it runs, and hold its lock until this process ends."""
    folder = Path(instance.storage_directory()) / "running"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        run = instance.get_run_by_id(old.name)
        if (run is None or run.is_finished) and is_free(old):
            old.unlink(missing_ok=True)
    lock = folder / run_id
    hold_until_exit(lock)
    instance.add_run_tags(run_id, {HOST_TAG: socket.gethostname(), BOOT_TAG: boot_id(), LOCK_TAG: str(lock.absolute())})


def end_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Mark runs whose process is surely gone as failed and free their places in pools; returns their ids."""
    dead = []
    for run in instance.get_runs(dg.RunsFilter(statuses=_ACTIVE)):
        lock = run.tags.get(LOCK_TAG)
        here = run.tags.get(BOOT_TAG) == boot_id() or run.tags.get(HOST_TAG) == socket.gethostname()
        if lock and here and is_free(Path(lock)):
            instance.report_run_failed(run, "The process of this run is gone; it was killed.")
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
            Path(lock).unlink(missing_ok=True)
            dead.append(run.run_id)
    return dead


class PoolWait:
    """A run that waits for a place in a pool: who holds it, reported now and then, and dead runs, whose places go."""

    def __init__(self) -> None:
        self._reported: dict[str, float] = {}
        self._looked = -_LOOK_SECONDS

    def look(self, context: Any, pool: str) -> None:
        """Free what dead runs hold, and report whom the run waits for, at first and then once a minute.

        Args:
            context: of the run.
            pool: all of whose places are taken.
        """
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        for dead in end_dead_runs(context.instance):
            context.log.warning(f"run {dead} was killed; its place in the pools is free again")
        for over in _free_places_of_ended_runs(context.instance, pool):
            context.log.warning(f"run {over} has ended; its place in the pool {pool} is free again")
        if now - self._reported.get(pool, -_REPORT_SECONDS) < _REPORT_SECONDS:
            return
        if holders := _holders(context.instance, pool):
            context.log.info(
                f"waits for its place in the pool {pool}, held by {' and '.join(holders)}; it goes on when that step "
                "ends. To end that run, press Ctrl-C where it was started, or terminate it in the UI (Runs)"
            )
            self._reported[pool] = now


def _holders(instance: dg.DagsterInstance, pool: str) -> list[str]:
    """The steps that hold a pool's places, each with its run and, where that is known, its process."""
    found = []
    for slot in instance.event_log_storage.get_concurrency_info(pool).claimed_slots:
        run = instance.get_run_by_id(slot.run_id)
        if run is None:
            continue
        round_of = f", round {run.tags[PARTITION]}" if PARTITION in run.tags else ""
        process = ""
        if lock := run.tags.get(LOCK_TAG):
            with contextlib.suppress(OSError):  # of another machine
                process = f", {holder(Path(lock))}"
        found.append(f"step {slot.step_key} of run {run.run_id} (job {run.job_name}{round_of}{process})")
    return found


def _free_places_of_ended_runs(instance: dg.DagsterInstance, pool: str) -> list[str]:
    """Free the places in a pool of runs that have ended or are gone; returns their ids."""
    storage = instance.event_log_storage
    ended = []
    for run_id in sorted({slot.run_id for slot in storage.get_concurrency_info(pool).claimed_slots}):
        run = instance.get_run_by_id(run_id)
        # A run that was terminated by force counts as ended while its process may still compute.
        lock = None if run is None else run.tags.get(LOCK_TAG)
        computes = lock is not None and Path(lock).exists() and not is_free(Path(lock))
        if run is None or (run.is_finished and not computes):
            storage.free_concurrency_slots_for_run(run_id)
            ended.append(run_id)
    return ended


def boot_id() -> str:
    """What the running kernel calls itself, drawn anew whenever the machine starts; its name where it is not Linux."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()
