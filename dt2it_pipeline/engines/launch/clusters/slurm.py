"""Slurm: a job is one task of `srun` on one node."""

from __future__ import annotations

import os
import subprocess
from typing import ClassVar

from dt2it_pipeline.config.sections.launcher import SlurmSettings
from dt2it_pipeline.engines.launch.clusters.job import ClusterJob, call, last_words


class Slurm:
    """Runs jobs through `srun` and cancels them through `scancel`; see `Cluster`."""

    program: ClassVar[str] = "srun"
    programs: ClassVar[tuple[str, ...]] = ("srun", "scancel")

    def run(self, job: ClusterJob) -> int:
        """Wait for the node, run the job, and return its exit status; its output goes where this process's does."""
        return subprocess.run(srun_command(job), env={**os.environ, **job.environment}).returncode

    def cancel(self, job: ClusterJob) -> None:
        """Cancel by the job's name, which also ends a job whose `srun` was killed."""
        call("scancel", f"--name={job.name}", "--me")

    def refusal(self, job: ClusterJob) -> str:
        """Ask `srun --test-only`, which estimates when the job would start and submits none."""
        program, *rest = srun_command(job)
        done = call(program, "--test-only", *rest)
        return last_words(done) if done.returncode else ""


def srun_command(job: ClusterJob) -> list[str]:
    """The command that runs a job on one node.

    Examples:
        >>> settings = SlurmSettings(kind="slurm", gpus=8, cpus=64, partition="h100", options=("--qos=high",))
        >>> job = ClusterJob(name="dt2it-1", command=("python", "train.py"), environment={}, settings=settings)
        >>> " ".join(srun_command(job))
        'srun --job-name=dt2it-1 --nodes=1 --ntasks=1 --cpus-per-task=64 --export=ALL --kill-on-bad-exit=1 \
--unbuffered --gpus-per-node=8 --partition=h100 --qos=high python train.py'
    """
    settings = job.settings
    assert isinstance(settings, SlurmSettings)
    asked = {
        "--gpus-per-node": settings.gpus or None,
        "--mem": settings.memory,
        "--partition": settings.partition,
        "--account": settings.account,
        "--time": settings.time_limit,
    }
    return [
        Slurm.program,
        f"--job-name={job.name}",
        "--nodes=1",
        "--ntasks=1",
        f"--cpus-per-task={settings.cpus}",
        "--export=ALL",
        "--kill-on-bad-exit=1",
        "--unbuffered",
        *(f"{option}={value}" for option, value in asked.items() if value is not None),
        *settings.options,
        *job.command,
    ]
