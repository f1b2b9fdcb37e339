"""Waiting for processes, and looking which of them run."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from dt2it_pipeline.storage.leftovers import owned_prefix


def wait_until(happened: Callable[[], object], seconds: float = 20.0) -> None:
    """Return as soon as it has happened; an assertion fails where that takes longer than so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        asked = time.process_time()
        if happened():
            return
        assert time.monotonic() < deadline, f"not within {seconds} s"
        # To ask leaves most of the processor to what is waited for.
        time.sleep(max(0.05, 5 * (time.process_time() - asked)))


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent to notice does not."""
    return _state_and_group(pid)[0] not in ("", "Z")


def alive_in_group(group: int) -> list[int]:
    """Processes of a process group that run."""
    pids = (int(folder.name) for folder in Path("/proc").glob("[0-9]*"))
    return [pid for pid in pids if _state_and_group(pid)[1] == str(group) and alive(pid)]


def _state_and_group(pid: int) -> tuple[str, str]:
    try:
        state, _, group = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:3]
    except OSError:
        return "", ""
    return state, group


def name_of_a_dead_process(prefix: str) -> str:
    """The beginning of a temporary name, as a process of this machine that was killed made it; see leftovers.py."""
    owner = owned_prefix(prefix).removeprefix(prefix)
    return f"{prefix}{owner.partition('-')[0]}-999999999-1."
