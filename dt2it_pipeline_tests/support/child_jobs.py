"""Jobs that the tests start in child processes."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import types
import warnings
from pathlib import Path
from typing import ClassVar

from dt2it_pipeline.engines.jobs import Job


class Echo(Job):
    entry_point: ClassVar[str] = "dt2it_pipeline_tests.support.child_jobs:echo"
    value: int


class Variables(Job):
    entry_point: ClassVar[str] = "dt2it_pipeline_tests.support.child_jobs:variables"


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


def variables(job, report):
    return {"environment": dict(os.environ), "torch": "torch" in sys.modules}


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


class Described(Job):
    """Says what its process is and has; `end` is how it ends."""

    entry_point: ClassVar[str] = "dt2it_pipeline_tests.support.child_jobs:described"
    words: str = ""
    end: str = ""
    imported_by: str = "dt2it_pipeline_tests.support.child_jobs:import_something"

    @property
    def imports(self) -> str:
        return self.imported_by


_importers = []  # processes, of which a forked one has another than itself


def import_something():
    if "tabnanny" not in sys.modules:  # nothing else imports it
        importlib.import_module("tabnanny")
        _importers.append(os.getpid())


def import_what_is_not_there():
    raise ImportError("there is no such package")


def import_what_prints():
    if "tabnanny" not in sys.modules:
        sys.stdout.write("printed by an import ")
    import_something()


def import_slowly():
    import_something()
    print("imports", flush=True)
    time.sleep(2)


def import_a_torch_with_a_device():
    import_something()
    accelerator = types.SimpleNamespace(is_available=lambda: True)
    sys.modules["torch"] = types.SimpleNamespace(accelerator=accelerator)


def described(job, report):
    Path(sys.argv[1]).with_name(f"described-{os.getpid()}").touch()
    if job.words:
        print(job.words)
        sys.stdout.flush()
        print(f"{job.words}, as an error", file=sys.stderr)
    how, _, rank = job.end.partition(" ")
    if how == "raise":
        raise ValueError("the job's own words")
    if how == "exit":
        sys.exit(5)
    if how == "kill" and rank in ("", os.environ.get("RANK")):
        os.kill(os.getpid(), 9)
    if how in ("hang", "kill"):
        time.sleep(300)
    places = ("RANK", "LOCAL_RANK", "MASTER_PORT")
    return {
        "pid": os.getpid(),
        "parent": os.getppid(),
        "arguments": sys.argv[1:],
        "main": sys.modules["__main__"].__name__,
        "was_forked": _importers not in ([], [os.getpid()]),
        "leads_its_session": os.getsid(0) == os.getpid() == os.getpgid(0),
        "folder": str(Path.cwd()),
        "environment": {key: value for key, value in os.environ.items() if key not in places},
        "command": " ".join(Path("/proc/self/cmdline").read_text().split("\0")).split()[1:],
        "interrupt": str(signal.getsignal(signal.SIGINT)),
        "threads": threading.active_count(),
        "open_files": sorted(
            str(path)
            for file in Path("/proc/self/fd").iterdir()
            if (path := _target(file)).is_absolute() and path.is_file()
        ),
    }


def _target(file):
    try:
        return file.readlink()
    except OSError:
        return Path()
