"""Job functions that the tests start in child processes."""

import os
import subprocess
import sys
import time
from pathlib import Path


def echo(job, report):
    report({"step": 1, "loss": 0.5})
    return {"doubled": job["value"] * 2, "pid": os.getpid()}


def _count_attempt(job):
    with Path(job["attempts"]).open("a") as file:
        file.write(".")


def crash(job, report):
    _count_attempt(job)
    raise ValueError("the job's own words")


def killed(job, report):
    _count_attempt(job)
    os.kill(os.getpid(), 9)


def hang_with_grandchild(job, report):
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    Path(job["pids"]).write_text(f"{os.getpid()} {grandchild.pid}")
    time.sleep(300)


def chatter(job, report):
    print("x" * 400_000)
    return {}
