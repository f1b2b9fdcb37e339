"""Jobs that the tests start in child processes."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import ClassVar

from dt2it_pipeline.engines.jobs import Job


class Echo(Job):
    entry_point: ClassVar[str] = "dt2it_pipeline_tests.support.child_jobs:echo"
    value: int


class Crash(Job):
    entry_point: ClassVar[str] = "dt2it_pipeline_tests.support.child_jobs:crash"
    attempts: Path


class Killed(Job):
    entry_point: ClassVar[str] = "dt2it_pipeline_tests.support.child_jobs:killed"
    attempts: Path


class Hang(Job):
    entry_point: ClassVar[str] = "dt2it_pipeline_tests.support.child_jobs:hang_with_grandchild"
    pids: Path


class Chatter(Job):
    entry_point: ClassVar[str] = "dt2it_pipeline_tests.support.child_jobs:chatter"


class Warns(Job):
    entry_point: ClassVar[str] = "dt2it_pipeline_tests.support.child_jobs:warns"


class Rank(Job):
    entry_point: ClassVar[str] = "dt2it_pipeline_tests.support.child_jobs:rank"
    folder: Path


class KilledRank(Job):
    entry_point: ClassVar[str] = "dt2it_pipeline_tests.support.child_jobs:killed_rank"


def echo(job, report):
    report({"step": 1, "loss": 0.5})
    return {"doubled": job.value * 2, "pid": os.getpid()}


def warns(job, report):
    ours = logging.getLogger("dt2it_pipeline.of_a_job")
    ours.info("a model is loaded")
    ours.warning("no answer for %s", "p1", extra={"row_ids": ["p1"]})
    logging.getLogger("another.library").info("of no one's interest")
    warnings.warn("soon gone", stacklevel=1)
    print("plain words", file=sys.stderr)
    return {}


def _count_attempt(job):
    with job.attempts.open("a") as file:
        file.write(".")


def crash(job, report):
    _count_attempt(job)
    raise ValueError("the job's own words")


def killed(job, report):
    _count_attempt(job)
    os.kill(os.getpid(), 9)


def hang_with_grandchild(job, report):
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    job.pids.write_text(f"{os.getpid()} {grandchild.pid}")
    time.sleep(300)


def chatter(job, report):
    print("x" * 400_000)
    return {}


def rank(job, report):
    number = os.environ["RANK"]
    (job.folder / f"rank-{number}").write_text(os.environ["WORLD_SIZE"])
    if number == "1" and (job.folder / "fail").exists():
        raise ValueError("rank 1 has seen enough")
    return {"from": number}


def killed_rank(job, report):
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    dist.barrier()
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), 9)
    dist.all_reduce(torch.zeros(1))
