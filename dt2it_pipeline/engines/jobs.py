"""Jobs that run in a process of their own: a plain function `run(job, report) -> summary`, and its command line.

Heavy stages (training, sampling, scoring, local judges) live in such functions, so that memory is given back when the
process ends. Dagster starts them through `orchestrate.child`; `python -m MODULE job.json` starts them without it.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# Of every worker process; glibc and OpenMP read it once, at the start.
WORKER_ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin on busy cores cost three times the work they do
    # glibc would give the memory of every larger tensor back to the kernel and fetch it again, page by page, which
    # costs a tenth of a training step on a CPU.
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
}

Reporter = Callable[[Mapping[str, Any]], None]
Run = Callable[[dict[str, Any], Reporter], dict[str, Any]]


def load_run(target: str) -> Run:
    """The job function that `package.module:function` names."""
    function: Run = load_function(target)
    return function


def load_function(target: str) -> Any:
    """Whatever `package.module:function` names."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def read_job(path: str | Path) -> dict[str, Any]:
    """A job description from its JSON file."""
    job: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    return job


def print_progress(progress: Mapping[str, Any]) -> None:
    """A reporter that prints one line per report."""
    shown = (f"{key}={value:.6g}" if isinstance(value, float) else f"{key}={value}" for key, value in progress.items())
    print(" ".join(shown), flush=True)


def main(run: Run, arguments: list[str] | None = None) -> None:
    """Command line of a job: `python -m MODULE job.json` runs it, prints progress and, last, the summary as JSON."""
    given = sys.argv[1:] if arguments is None else arguments
    paths = [a for a in given if not a.startswith("--local_rank")]  # the DeepSpeed launcher adds this one
    usage = "usage: python -m MODULE job.json, where the file holds what the module's function `run` takes"
    if len(paths) != 1 or paths[0] in ("-h", "--help"):
        raise SystemExit(usage)
    try:
        job = read_job(paths[0])
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: the job {paths[0]} cannot be read: {error}\n{usage}") from None
    summary = run(job, print_progress)
    if int(os.environ.get("RANK", "0")) == 0:  # ranks share a terminal
        print(json.dumps(summary, ensure_ascii=False, sort_keys=True))
