"""How long a stage's jobs had GPUs. It is kept in the work folder: a run that goes on counts the jobs before a kill."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_FILE = "gpu_seconds.txt"


def note_gpu_seconds(work: Path, summary: Mapping[str, Any]) -> None:
    """Note what a finished job says of its GPUs (`gpu_seconds`), in the folder of the job."""
    if summary.get("gpu_seconds"):
        with (work / _FILE).open("a", encoding="ascii") as file:
            file.write(f"{float(summary['gpu_seconds'])}\n")


def gpu_seconds(work: Path) -> float:
    """GPUs times seconds of all jobs in a stage's work folder and those below it."""
    seconds = 0.0
    for file in work.rglob(_FILE):
        for line in file.read_text(encoding="ascii", errors="replace").splitlines():
            try:
                seconds += float(line)
            except ValueError:  # cut short by a kill
                continue
    return round(seconds, 1)
