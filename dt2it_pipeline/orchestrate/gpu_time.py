"""How long a stage's jobs had GPUs. It is kept in the work folder: a run that goes on counts the jobs before a kill."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_FILE = "gpu_seconds.txt"
_NOTE = re.compile(r"([0-9.e+-]+) s")  # the unit shows that a number is whole


def note_gpu_seconds(work: Path, summary: Mapping[str, Any]) -> None:
    """Note what a finished job says of its GPUs (`gpu_seconds`), in the folder of the job."""
    seconds = float(summary.get("gpu_seconds") or 0.0)
    if _counts(seconds):
        with (work / _FILE).open("a", encoding="ascii") as file:
            file.write(f"\n{seconds} s\n")  # a line that a kill cut short before it stays one of its own


def gpu_seconds(work: Path) -> float:
    """GPUs times seconds of all jobs in a stage's work folder and those below it."""
    seconds = 0.0
    for file in work.rglob(_FILE):
        for line in file.read_text(encoding="ascii", errors="replace").splitlines():
            note = _NOTE.fullmatch(line)
            try:
                found = float(note[1]) if note else 0.0
            except ValueError:  # damaged
                continue
            seconds += found if _counts(found) else 0.0
    return round(seconds, 1)


def _counts(seconds: float) -> bool:
    return math.isfinite(seconds) and seconds > 0
