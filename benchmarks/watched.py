"""CPU time and memory of a step of a benchmark, whatever version of the package it runs."""

from __future__ import annotations

import os
import secrets
import threading
from pathlib import Path
from typing import Any

_LOOK_SECONDS = 0.2  # between two looks at the processes of a step


def put_aside(folder: Path) -> None:
    """Empty a folder by renaming it.

    ext4 takes 0.3 ms more for each new file while it passes over the places of files that were removed in the last
    seconds, which would be measured as the step's own.
    """
    if folder.exists():
        folder.rename(folder.with_name(f"{folder.name}.{secrets.token_hex(4)}"))


class Watched:
    """CPU time and memory of a process and of all that it starts, whoever their parents become."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._peaks: dict[int, float] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        own = os.times()
        self._before = own.user + own.system
        self._thread.start()

    def end(self) -> dict[str, Any]:
        """Seconds of CPU time, of all and its own; peaks in MiB, its own and of the largest that it started."""
        self._ended.set()
        self._thread.join()
        own = os.times()
        seconds = own.user + own.system - self._before
        others = max(self._peaks.values(), default=0.0)
        cpu = seconds + sum(self._seconds.values())
        return {"cpu": cpu, "own": seconds, "peak_mib": _peak_of(os.getpid()), "others_mib": others}

    def _watch(self) -> None:
        while not self._ended.wait(_LOOK_SECONDS):
            self._look()
        self._look()

    def _look(self) -> None:
        parents: dict[int, int] = {}
        used: dict[int, float] = {}
        for file in Path("/proc").glob("[0-9]*/stat"):
            try:
                values = file.read_text(errors="replace").rpartition(")")[2].split()
            except OSError:
                continue
            process = int(file.parent.name)
            parents[process] = int(values[1])
            used[process] = (int(values[11]) + int(values[12])) / os.sysconf("SC_CLK_TCK")
        for process in used:
            above = parents[process]
            while above not in (0, 1, os.getpid()):
                above = parents.get(above, 0)
            if above == os.getpid():
                self._seconds[process] = used[process]
                self._peaks[process] = _peak_of(process) or self._peaks.get(process, 0.0)


def _peak_of(process: int) -> float:
    """Peak memory of another process in MiB, 0 where it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(errors="replace").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
    except (OSError, ValueError, StopIteration):
        return 0.0
