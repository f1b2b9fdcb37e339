"""What all benchmarks share: the environment in which the pipeline starts its worker processes, and summaries."""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Sequence

from dt2it_pipeline.engines import jobs

WORKER_ENVIRONMENT = jobs.WORKER_ENVIRONMENT | {"HF_HUB_OFFLINE": "1"}


def run_as_worker(module: str) -> None:
    """Start this process anew in the environment of a worker, which glibc and OpenMP read once, at the start."""
    if any(os.environ.get(name) != value for name, value in WORKER_ENVIRONMENT.items()):
        os.execve(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]], {**os.environ, **WORKER_ENVIRONMENT})


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Median, least and greatest, for a table."""
    middle, least, most = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({least:.{digits}f} to {most:.{digits}f})"
