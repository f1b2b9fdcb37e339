"""Starts the ranks of one job on this machine and waits for them.

    python -m dt2it_pipeline.engines.launch.rank_starter PORT RANKS MODULE ARGUMENT...

It sets the variables that DeepSpeed's per-node launcher sets, and differs from that in four ways. It imports no torch
and no DeepSpeed (4 s). It hears at once that a rank has ended, not at the next second. It leaves CUDA_VISIBLE_DEVICES
as it is, so that ranks use the GPUs that this process was given. And when a rank fails, the others have a moment to say
why they fail, too, before they are ended.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from dt2it_pipeline.engines.launch.deaths import killed_in_words

Start = Callable[[Mapping[str, str]], int]
"""Starts a rank with an environment, as a child of this process, and returns its process id."""

ERROR_FILE = "DT2IT_RANK_ERROR"
"""Names the file in which the first rank that fails says why. Where the others only wait for one that was killed, as
NCCL does for minutes, it is named here."""

_LAST_WORDS = 3.0  # seconds in which the other ranks may fail of the first failure by themselves
_GRACE = 10.0  # seconds between SIGTERM and SIGKILL
_POLL = 0.05


def main(arguments: list[str]) -> int:
    """Run the ranks that the command line names; returns the exit status."""
    port, ranks, *module = arguments
    command = [sys.executable, "-u", "-m", *module]

    def start(environment: Mapping[str, str]) -> int:
        defaults = (signal.SIGPIPE, signal.SIGXFSZ)  # Python ignores them; a program expects them as they were
        return os.posix_spawn(command[0], command, environment, setsigdef=defaults)

    return run_ranks(int(ranks), int(port), start)


def run_ranks(count: int, port: int, start: Start) -> int:
    """Start ranks and wait until all have ended.

    Args:
        count: how many.
        port: of this machine, where they meet.
        start: see `Start`.

    Returns:
        0 where all ended well. Else that of the first that did not: its exit status, or 128 and the number of the
        signal that ended it, as shells have it. The others are ended.

    Raises:
        SystemExit: this process was sent SIGTERM or SIGINT; the ranks are ended.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    ranks: list[_Rank] = []
    try:
        for rank in range(count):
            ranks.append(_Rank(start({**os.environ, **_place(rank, count, port)})))
        while True:
            running = [rank for rank in ranks if rank.runs]
            if failed := [(place, rank) for place, rank in enumerate(ranks) if rank.status]:
                place, first = failed[0]
                assert first.status is not None
                _until_ended(ranks, _LAST_WORDS)
                if first.signal is not None and ERROR_FILE in os.environ:
                    words = killed_in_words(place, first.process, first.signal)
                    with contextlib.suppress(OSError), Path(os.environ[ERROR_FILE]).open("x") as file:
                        file.write(words)
                return first.status
            if not running:
                return 0
            time.sleep(_POLL)
    finally:
        _end_all(ranks)


class _Rank:
    """A child process.

    Attributes:
        process: its id.
        status: its exit status once it has ended, 128 and the number where a signal ended it; None before.
        signal: number of the signal that ended it; None where none did.
    """

    def __init__(self, process: int) -> None:
        self.process, self._waited_for = process, False
        self.status: int | None = None
        self.signal: int | None = None

    @property
    def runs(self) -> bool:
        """Whether it has not ended yet."""
        if self.status is not None:
            return False
        if hasattr(os, "waitid"):
            # It stays a process that nobody has waited for: others read there which signal ended it (deaths.py).
            ended = os.waitid(os.P_PID, self.process, os.WEXITED | os.WNOWAIT | os.WNOHANG)
            if ended is None:
                return True
            self._ended(ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status)
            return False
        ended_process, raw = os.waitpid(self.process, os.WNOHANG)  # macOS
        if not ended_process:
            return True
        self._waited_for = True
        self._ended(os.waitstatus_to_exitcode(raw))
        return False

    def _ended(self, code: int) -> None:
        self.signal = -code if code < 0 else None
        self.status = code if code >= 0 else 128 - code

    def send(self, number: int) -> None:
        """Send it a signal; nothing where it has ended."""
        if self.runs:
            os.kill(self.process, number)

    def forget(self) -> None:
        """Let the system forget it, once it has ended."""
        if not self._waited_for:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.process, os.WNOHANG)


def _place(rank: int, ranks: int, port: int) -> dict[str, str]:
    """The variables from which torch and DeepSpeed know a rank's place."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_SIZE": str(ranks),
        "CROSS_RANK": "0",
        "CROSS_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def _end_all(ranks: Sequence[_Rank]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for rank in ranks:
            rank.send(number)
        _until_ended(ranks, _GRACE)
    for rank in ranks:
        rank.forget()


def _end(number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def _until_ended(ranks: Iterable[_Rank], seconds: float) -> None:
    """Wait until all ranks have ended, at most so long."""
    until = time.monotonic() + seconds
    while any(rank.runs for rank in ranks) and time.monotonic() < until:
        time.sleep(_POLL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
