"""Jobs: what one process asks another to do, as a typed file; and their command line.

    python -m dt2it_pipeline.engines.jobs job.json

Heavy stages (training, sampling, scoring, judging) are plain functions `run(job, report) -> summary`, so that their
memory is given back when their process ends. Each has a class of its own below `Job`, beside the function, which names
the function as its entry point. Who starts the process stands in `launcher.py`; what happens inside it, in `worker.py`.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from dt2it_pipeline.config.base import fault_message
from dt2it_pipeline.engines.lean_processes import leave, quick_imports
from dt2it_pipeline.errors import UserError
from dt2it_pipeline.observe.progress import Report
from dt2it_pipeline.storage.atomic import write_json_atomic

# Of every worker process; glibc and OpenMP read theirs once, at the start.
WORKER_ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin on busy cores cost three times the work they do
    # glibc would give the memory of every larger tensor back to the kernel and fetch it again, page by page, which
    # costs a tenth of a training step on a CPU.
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    # torch then asks the driver's library NVML whether there is a GPU. Else the question itself starts CUDA, which does
    # not survive a fork, and vLLM forks its engine. vLLM sets this, too, but not before it is imported.
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}
_CLASS = "job"  # key of a job file that names the job's class
_USAGE = "usage: python -m dt2it_pipeline.engines.jobs job.json, where the file was written by a job's `write`"

Reporter = Report
"""Is handed what a job has done so far; see observe/progress.py."""

Summary = dict[str, Any]
"""What a job came to, as JSON can hold it."""


class JobError(UserError, ValueError):
    """A job file cannot be read, or a key in it is unknown, missing or wrong; the message names file and key."""

    help_page: ClassVar[str] = "troubleshooting#job"


class Job(BaseModel):
    """One piece of work for a process of its own. Frozen; unknown keys are errors; values are not coerced.

    A subclass has the fields that its function reads: paths as `pathlib.Path`, settings as the recipe's own sections.

    Attributes:
        entry_point: "package.module:function" of `function(job, report) -> summary`.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)

    entry_point: ClassVar[str]

    @property
    def imports(self) -> str | None:
        """The function ("package.module:name") that imports what the job's processes import while they work.

        A process may call it once and then fork for several jobs. None: what the job does survives no fork, or imports
        little.
        """
        return None

    def run(self, report: Reporter) -> Summary:
        """Do the work in this process; returns the summary of the entry point."""
        summary: Summary = load_function(self.entry_point)(self, report)
        return summary

    def write(self, path: str | Path) -> None:
        """Write the job as JSON, with the name of its class under `job`; the file appears whole or not at all."""
        name = f"{type(self).__module__}:{type(self).__qualname__}"
        write_json_atomic({_CLASS: name, **self.model_dump(mode="json")}, Path(path))

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """A job of this class or of one below it, from the file that `write` wrote.

        Raises:
            JobError: there is no such file, it holds no job of this class, or a key in it is unknown, missing or wrong.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise JobError(f"the job file {path} cannot be read: {error}") from error
        if not isinstance(content, dict):
            raise JobError(f"the job file {path} must hold a JSON object, and holds a {type(content).__name__}")
        chosen = cls._class_of(content.pop(_CLASS, None), path)
        try:
            return chosen.model_validate_json(json.dumps(content))
        except ValidationError as error:
            faults = "; ".join(_fault(each) for each in error.errors(include_url=False))
            raise JobError(f"the job file {path} is no {chosen.__name__}: {faults}") from None

    @classmethod
    def _class_of(cls, name: object, path: str | Path) -> type[Self]:
        if not isinstance(name, str):
            raise JobError(
                f"the job file {path} does not say whose job it is: its key `{_CLASS}` must name a class, such as "
                "`dt2it_pipeline.reward.training.job:TrainJob`"
            )
        try:
            found = load_function(name)
        except (ImportError, AttributeError, ValueError) as error:
            raise JobError(
                f"the job file {path}: its key `{_CLASS}` names {name}, which is not there: {error}"
            ) from None
        if not (isinstance(found, type) and issubclass(found, cls)):
            raise JobError(f"the job file {path}: its key `{_CLASS}` names {name}, which is no {cls.__name__}")
        return found


class ShardedJob(Job):
    """A job whose work falls into shards, which several workers can share; see `launcher.ShardLauncher`.

    Attributes:
        shard_worker: "package.module:function" of `function(job, shared, place) -> do`. The function loads what a
            worker needs, once; `do(shard) -> value` does one shard.
    """

    shard_worker: ClassVar[str]

    @property
    def preloaded(self) -> str | None:
        """The module that a fork server imports before it forks the workers, on a machine without a GPU.

        None: each worker imports for itself.
        """
        return None


def import_for(job: Job) -> None:
    """Import at once what a job's process imports while it works, as far as the job names it; see `Job.imports`.

    For a process of the job's own: what has been imported is left out of every later search for garbage. What cannot be
    imported is no error here; the job that needs it says so.
    """
    if job.imports is not None:
        with quick_imports(), contextlib.suppress(Exception):
            load_function(job.imports)()
        gc.freeze()


def load_function(target: str) -> Any:
    """Whatever `package.module:name` names.

    Raises:
        ImportError, AttributeError, ValueError: it is not there.
    """
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def print_progress(progress: Mapping[str, Any]) -> None:
    """A reporter that prints one line per report."""
    shown = (f"{key}={value:.6g}" if isinstance(value, float) else f"{key}={value}" for key, value in progress.items())
    print(" ".join(shown), flush=True)


def job_path(arguments: list[str]) -> str:
    """The one path that a job's command line holds. Raises SystemExit with the usage where it is not one."""
    paths = [a for a in arguments if not a.startswith("--local_rank")]  # the command `deepspeed` adds this one
    if len(paths) != 1 or paths[0] in ("-h", "--help"):
        raise SystemExit(_USAGE)
    return paths[0]


def main(arguments: list[str] | None = None) -> None:
    """Run the job in a file, print its progress and, last, its summary as JSON."""
    try:
        job = Job.read(job_path(sys.argv[1:] if arguments is None else arguments))
    except JobError as error:
        raise SystemExit(f"error: {error}") from None
    summary = job.run(print_progress)
    if int(os.environ.get("RANK", "0")) == 0:  # ranks share a terminal
        print(json.dumps(summary, ensure_ascii=False, sort_keys=True))


def _fault(fault: ErrorDetails) -> str:
    """One fault of a job file: its key and what is wrong."""
    key = ".".join(map(str, fault["loc"])) or "(the job)"
    words = {"missing": "is missing", "extra_forbidden": "is unknown"}.get(fault["type"])
    return f"`{key}` {words}" if words else f"`{key}`: {fault_message(fault)}"


if __name__ == "__main__":
    # By its name: jobs derive from the classes of that module, not from those of `__main__`.
    importlib.import_module("dt2it_pipeline.engines.jobs").main()
    leave()
