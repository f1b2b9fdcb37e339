"""What a kind of cluster is handed and must do; `slurm.py` and `kubernetes.py` are kinds, `launcher.py` uses them."""

from __future__ import annotations

import subprocess
from typing import ClassVar, Protocol

from pydantic import BaseModel, ConfigDict

from dt2it_pipeline.config.sections.launcher import LauncherSettings

_WORDS = 500  # characters of what a program printed, for a message
CALL_SECONDS = 60  # longest time of a program of the cluster that answers at once


class ClusterJob(BaseModel):
    """What a guard starts: a command, where, and with which variables.

    Attributes:
        name: of the job on the cluster; no other job has it.
        command: what runs there.
        environment: variables of the job.
        settings: what it asks for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    command: tuple[str, ...]
    environment: dict[str, str]
    settings: LauncherSettings


class Cluster(Protocol):
    """A kind of cluster: how a job is run to its end there, and how it is cancelled."""

    program: ClassVar[str]
    programs: ClassVar[tuple[str, ...]]  # all that a job needs on this machine

    def run(self, job: ClusterJob) -> int:
        """Run a job to its end, print what it prints, and return its exit status."""
        ...

    def cancel(self, job: ClusterJob) -> None:
        """End a job, whether it waits or runs; nothing where it has ended."""
        ...

    def refusal(self, job: ClusterJob) -> str:
        """Why the cluster would not take a job, in its words; empty where it would. The job is not started."""
        ...


def call(*command: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program of the cluster for a moment; what it prints is kept."""
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=CALL_SECONDS)


def last_words(done: subprocess.CompletedProcess[str]) -> str:
    """What a program that failed printed, on one line; its exit status where it printed nothing."""
    words = "; ".join(line.strip() for line in f"{done.stderr}\n{done.stdout}".splitlines() if line.strip())
    return words[-_WORDS:] or f"{done.args[0]} ended with code {done.returncode}"
