"""Whole jobs on other machines: what Slurm and Kubernetes have in common.

A job is watched over by a process on this machine, the guard. It starts the job, prints what it prints, and cancels it
when it is told to end or when its own starter is gone, killed launchers included. What came of a job lies beside its
file, on a file system that the machines share: the summary, or the error of the rank that failed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import NoReturn

from dt2it_pipeline.config.paths import project_root
from dt2it_pipeline.config.sections.launcher import KubernetesSettings, LauncherSettings, SlurmSettings
from dt2it_pipeline.engines.jobs import WORKER_ENVIRONMENT, Job, Summary
from dt2it_pipeline.engines.launch.clusters.job import CALL_SECONDS, Cluster, ClusterJob
from dt2it_pipeline.engines.launch.clusters.kubernetes import Kubernetes
from dt2it_pipeline.engines.launch.clusters.slurm import Slurm
from dt2it_pipeline.engines.launch.deaths import memory_kills
from dt2it_pipeline.engines.launch.launcher import ONE_PROCESS, LauncherError, Resources
from dt2it_pipeline.engines.launch.local_launcher import job_failed, run_process_group
from dt2it_pipeline.engines.launch.ranks import passed_on, ranks_command
from dt2it_pipeline.engines.launch.worker import PARENT_PID, error_file, read_summary, summary_file

_WATCH_SECONDS = 1.0


@dataclass(frozen=True)
class ClusterLauncher:
    """Starts jobs on a cluster; see `Launcher`.

    Attributes:
        settings: the recipe's section `launcher`.
        worker: module that the processes run; it calls `worker.run_file`.
        environment: variables that the module needs.
    """

    settings: LauncherSettings
    worker: str = "dt2it_pipeline.engines.launch.worker"
    environment: Mapping[str, str] = field(default_factory=dict)

    def launch(self, job: Job, *, work: Path, resources: Resources = ONE_PROCESS) -> Summary:
        """Run a job to its end and return its summary.

        Raises:
            LauncherError: the job asks for what this launcher does not give.
            JobFailed: the job ended with an error, which the message names.
        """
        self._check(resources)
        path = work / "job.json"
        job.write(path)
        for left in (error_file(path), summary_file(path)):
            left.unlink(missing_ok=True)
        module = [self.worker, str(path)]
        command = [sys.executable, "-m", *module]
        if resources.processes > 1:
            command = ranks_command(module, resources.processes)
        shared = passed_on({**os.environ, **resources.environment})
        there = ClusterJob(
            name=f"dt2it-{uuid.uuid4().hex[:16]}",
            command=tuple(command),
            environment={
                **WORKER_ENVIRONMENT,
                **shared,
                **self.environment,
                "OMP_NUM_THREADS": str(max(1, self.settings.cpus // resources.processes)),
                "DT2IT_PROJECT": str(project_root()),
                **{name: value for name, value in os.environ.items() if name == "PYTHONPATH"},
            },
            settings=self.settings,
        )
        file = work / "cluster_job.json"
        file.write_text(there.model_dump_json(), encoding="utf-8")
        guard = [sys.executable, "-m", "dt2it_pipeline.engines.launch.clusters.launcher", str(file)]
        kills = memory_kills()
        code = run_process_group(guard, {**os.environ, PARENT_PID: str(os.getpid())}, grace=CALL_SECONDS + 10.0)
        summary = read_summary(path)
        if code < 0:  # the guard itself was killed
            cluster_of(self.settings).cancel(there)
        if code != 0 or summary is None:
            if code > 128:  # as a shell says that a signal ended it: memory ran out, or the job was preempted
                code = 128 - code
            raise job_failed(job, path, code, guard, kills)
        return summary

    def _check(self, resources: Resources) -> None:
        if resources.hostfile is not None:
            raise LauncherError(
                "training.hostfile and launcher cannot both be set: a job of the launcher has one node; see "
                "docs/how-to/deploy.md for several"
            )
        if self.settings.gpus and resources.processes * resources.gpus > self.settings.gpus:
            raise LauncherError(
                f"launcher.gpus is {self.settings.gpus}, and {resources.settings} asks for {resources.processes}: "
                "raise the one or lower the other"
            )


def require_cluster(settings: LauncherSettings, home: Path) -> str:
    """Make sure that a cluster would take jobs, without starting one; returns what was found, in words.

    Args:
        settings: the recipe's section `launcher`.
        home: the artifact home, in which jobs find what they work on.

    Raises:
        LauncherError: a program is missing, the cluster does not answer or would refuse a job, or its pods would not
            see the artifact home.
    """
    cluster, kind = cluster_of(settings), f"launcher.kind: {settings.kind}"
    missing = [name for name in cluster.programs if shutil.which(name) is None]
    if missing:
        raise LauncherError(f"{' and '.join(missing)} not found on this machine, which {kind} needs")
    if isinstance(settings, KubernetesSettings) and not home.is_relative_to(settings.mount_path):
        raise LauncherError(
            f"the artifact home {home} does not lie below launcher.mount_path ({settings.mount_path}), so the pods of "
            "jobs would not see it"
        )
    command = (sys.executable, "-m", "dt2it_pipeline.engines.launch.worker")
    job = ClusterJob(name=f"dt2it-{uuid.uuid4().hex[:16]}", command=command, environment={}, settings=settings)
    try:
        refused = cluster.refusal(job)
    except subprocess.TimeoutExpired as error:
        raise LauncherError(f"{error.cmd[0]} does not answer within {CALL_SECONDS} s, which {kind} needs") from error
    except OSError as error:
        raise LauncherError(f"{cluster.program} cannot be run ({error.strerror}), which {kind} needs") from error
    if refused:
        raise LauncherError(f"{cluster.program} says that the cluster would not take a job ({kind}): {refused}")
    return f"{settings.kind}: the cluster would take a job, as {cluster.program} says; none was started"


def cluster_of(settings: LauncherSettings) -> Cluster:
    """The kind of cluster that settings name."""
    return Slurm() if isinstance(settings, SlurmSettings) else Kubernetes()


def guard(job: ClusterJob, cluster: Cluster) -> int:
    """Run a job; it is cancelled when this process is told to end, or its parent (PARENT_PID) is gone."""
    parent = os.environ.pop(PARENT_PID, None)  # the job's processes have another parent, on another machine

    def end(number: int, frame: FrameType | None) -> NoReturn:
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_IGN)
        cluster.cancel(job)
        if os.getpgid(0) == os.getpid():  # a group of its own, as the launcher starts it
            os.killpg(0, signal.SIGKILL)
        os._exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    if parent is not None:
        _when_gone(int(parent), lambda: os.kill(os.getpid(), signal.SIGTERM))
    try:
        return cluster.run(job)
    except FileNotFoundError:
        print(f"there is no {cluster.program} on this machine, which launcher.kind: {job.settings.kind} needs")
        return 127


def _when_gone(parent: int, then: Callable[[], None]) -> None:
    def watch() -> None:
        with contextlib.suppress(PermissionError):
            while True:
                try:
                    os.kill(parent, 0)
                except ProcessLookupError:
                    then()
                    return
                time.sleep(_WATCH_SECONDS)

    threading.Thread(target=watch, daemon=True).start()


def main(arguments: list[str]) -> int:
    """Guard the job in a file."""
    job = ClusterJob.model_validate_json(Path(arguments[0]).read_text(encoding="utf-8"))
    return guard(job, cluster_of(job.settings))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
