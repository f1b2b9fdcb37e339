"""Workers that the tests of ray_shards.py start on Ray; a job names a folder in which they leave marks."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def squares(job: Mapping[str, Any], shared: Any) -> Callable[[int], int]:
    """Squares a number, leaves a mark per try, and dies on the job's `deadly` number until it has done so `times`."""
    folder = Path(job["folder"])

    def do(number: int) -> int:
        mark(folder, number)
        if number == job.get("deadly") and tries(folder, number) <= job["times"]:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == job.get("faulty"):
            raise ValueError(f"{number} is no good")
        return number * number + (0 if shared is None else shared.num_rows)

    return do


def unloadable(job: Mapping[str, Any], shared: Any) -> Callable[[int], int]:
    """Cannot load what it needs."""
    raise OSError("no such checkpoint")


def mark(folder: Path, number: int) -> None:
    """Leave one more mark of a number."""
    (folder / f"{number}-{tries(folder, number)}").write_text(str(os.getpid()))


def tries(folder: Path, number: int) -> int:
    """Marks of a number so far."""
    return len(list(folder.glob(f"{number}-*")))
