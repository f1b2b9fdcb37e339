"""Why a process is gone: the signal that ended it, and whether memory ran out.

Of several ranks the survivors fail first, with an error about a closed connection, and say nothing of the one that was
killed. So every rank leaves a note while it runs, and one that fails looks at the notes of the others.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from pathlib import Path

_NOTE = re.compile(r"rank-(?P<rank>\d+)-(?P<process>\d+)\.running")
_KILLED = re.compile(r"rank \d+ \(process \d+\) was killed by signal (?P<signal>\d+)")
_PROC = Path("/proc")
_EXITING = 0x4  # the kernel's PF_EXITING
_COUNTERS = (
    (Path("/sys/fs/cgroup/memory.events"), "oom_kill"),  # cgroup v2, of this container
    (Path("/sys/fs/cgroup/memory/memory.oom_control"), "oom_kill"),  # cgroup v1
    (Path("/proc/vmstat"), "oom_kill"),  # of the kernel
)


def note_running(folder: Path, rank: int) -> Path:
    """Leave a note that a rank runs in this process; whoever ends in an orderly way removes it."""
    note = folder / f"rank-{rank}-{os.getpid()}.running"
    note.touch()
    return note


def killed_rank(folder: Path, wait: float = 0.0) -> str | None:
    """Which of a job's ranks on this machine was killed, in words; None where none was.

    Its process must not have been waited for yet, or its signal is not known: then it counts as killed by signal 9.

    Args:
        folder: of the job.
        wait: seconds that a rank which still runs is given to end: a killed process closes its connections before the
            system shows that it ends.
    """
    until = time.monotonic() + wait
    while True:
        others = 0
        for note in sorted(folder.glob("rank-*.running")):
            found = _NOTE.fullmatch(note.name)
            if found is None or int(found["process"]) == os.getpid():
                continue
            others += 1
            if ended := _signal_of(int(found["process"])):
                return killed_in_words(int(found["rank"]), int(found["process"]), ended)
        if not others or time.monotonic() >= until:
            return None
        time.sleep(0.02)


def killed_in_words(rank: int, process: int, number: int) -> str:
    """A sentence about a rank that a signal ended."""
    return f"rank {rank} (process {process}) was killed by signal {number} ({_name(number)})"


def signal_in(words: str) -> int | None:
    """The signal that `killed_rank` speaks of.

    >>> signal_in("rank 1 (process 77) was killed by signal 9 (SIGKILL)")
    9
    """
    found = _KILLED.match(words)
    return None if found is None else int(found["signal"])


def signal_of_code(code: int) -> int | None:
    """The signal that ended a process, by its exit code; None where none did.

    Python has -n for signal n, shells have 128 + n; DeepSpeed's launcher of several machines exits with the code of its
    rank, of which the system keeps the last eight bits.

    >>> signal_of_code(-9), signal_of_code(247), signal_of_code(137), signal_of_code(1)
    (9, 9, 9, None)
    """
    for number in (-code, 256 - code, code - 128):
        if number in (signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGINT):
            return number
    return -code if code < 0 else None


def memory_kills() -> tuple[int, ...]:
    """How often the kernel has ended a process because memory ran out: here and on this machine, as far as it says."""
    return tuple(_counter(*counter) for counter in _COUNTERS)


def why_killed(number: int, before: tuple[int, ...]) -> str:
    """What to make of a signal, in words.

    Args:
        number: of the signal.
        before: what `memory_kills` said when the process was started.

    >>> why_killed(15, memory_kills())
    'signal SIGTERM'
    """
    name = f"signal {_name(number)}"
    if number != signal.SIGKILL:
        return name
    if any(now > then for now, then in zip(memory_kills(), before, strict=True)):
        return f"{name}: memory ran out, and the kernel ended it; give it more, or lower what it works on at once"
    return f"{name}; where it was not you, memory may have run out"


def _name(number: int) -> str:
    """A signal's name; a real-time signal has none of its own, and is counted from the first."""
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"SIGRTMIN+{number - signal.SIGRTMIN}" if hasattr(signal, "SIGRTMIN") else str(number)


def _signal_of(process: int) -> int | None:
    """The signal that ended a process which nobody has waited for yet; None where it runs or ended by itself."""
    try:
        stat = (_PROC / str(process) / "stat").read_text(encoding="utf-8", errors="replace")
        fields = stat.rpartition(")")[2].split()
        ending = fields[0] in "ZX" or int(fields[6]) & _EXITING
        return int(fields[-1]) & 0x7F if ending else None  # the last field is its status, as for wait
    except FileNotFoundError:
        return None if _is_alive(process) else int(signal.SIGKILL)  # an orderly end would have removed the note
    except (OSError, ValueError, IndexError):
        return None


def _is_alive(process: int) -> bool:
    """Whether a process of which /proc says nothing runs all the same, as on a system without /proc."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _counter(file: Path, name: str) -> int:
    try:
        lines = file.read_text(encoding="ascii").splitlines()
        return next(int(value) for key, _, value in (line.partition(" ") for line in lines) if key == name)
    except (OSError, ValueError, StopIteration):
        return 0
