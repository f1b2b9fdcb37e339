"""How far a long stage is: one way to count it, to say it, and not to say it too often.

A stage counts with `Progress`, which hands each state to the stage's reporter. Whoever shows states (the step's log, a
terminal) wraps itself in `now_and_then`, and words them with `in_words`. A state has `done` and `unit`; `total` and
`seconds_left` where the end is known; `per_second` once there is a rate; and figures of the stage's own.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from dt2it_pipeline.observe.logs import VariableError

SECONDS = "DT2IT_PROGRESS_SECONDS"  # environment variable: between two states that are shown
DEFAULT_SECONDS = 30.0
_OF_A_STATE = ("done", "total", "unit", "per_second", "seconds_left")

Report = Callable[[Mapping[str, Any]], None]
"""Is handed what has been done so far: names and numbers."""


def silent(state: Mapping[str, Any]) -> None:
    """A reporter that says nothing."""


class Progress:
    """Counts a stage's units and reports each new count.

    Args:
        report: is handed the states.
        unit: what is counted, in the plural, such as `responses`.
        total: units in all; None: not known.
        first: units that were done before this call, which say nothing about its rate.
        clock: in seconds.

    Examples:
        >>> seconds = iter([0.0, 4.0])
        >>> progress = Progress(lambda state: print(in_words(state)), "pairs", 10, clock=lambda: next(seconds))
        >>> progress.at(2, loss=0.5)
        2 of 10 pairs, 0.5 per second, 16 s left, loss 0.5
    """

    def __init__(
        self,
        report: Report,
        unit: str,
        total: int | None = None,
        *,
        first: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.done = first
        self._report, self._unit, self._total, self._first, self._clock = report, unit, total, first, clock
        self._started = clock()

    def add(self, count: int = 1, **figures: Any) -> None:
        """So many more units are done."""
        self.at(self.done + count, **figures)

    def at(self, done: int, **figures: Any) -> None:
        """So many units are done in all. `figures` are the stage's own; those that are None are left out."""
        self.done = done
        spent = self._clock() - self._started
        rate = (done - self._first) / spent if spent > 0 else 0.0
        state: dict[str, Any] = {"done": done, "unit": self._unit}
        if self._total is not None:
            state["total"] = self._total
        if rate > 0:
            state["per_second"] = round(rate, 4)
            if self._total is not None:
                state["seconds_left"] = round(max(0, self._total - done) / rate, 1)
        self._report(state | {name: value for name, value in figures.items() if value is not None})


def progress_seconds() -> float:
    """Seconds between two states that are shown: `DT2IT_PROGRESS_SECONDS`, else 30; 0 shows every one.

    Raises:
        VariableError: the variable is no number of seconds.
    """
    given = os.environ.get(SECONDS) or str(DEFAULT_SECONDS)
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not (0 <= seconds < math.inf):
        raise VariableError(f"{SECONDS}={given}: it must be a number of seconds, 0 or more")
    return seconds


def now_and_then(
    report: Report, seconds: float | None = None, clock: Callable[[], float] = time.monotonic, *, ends: bool = False
) -> Report:
    """A reporter that hands on a state every so many seconds, so that a short stage says nothing.

    What is no count (such as an evaluation's loss) is always handed on.

    Args:
        report: is handed the states that remain.
        seconds: between two states; those of `progress_seconds` where None.
        clock: in seconds.
        ends: whether the first state and the last are handed on as well.

    Raises:
        VariableError: see `progress_seconds`.

    Examples:
        >>> seen = []
        >>> report = now_and_then(seen.append, seconds=60, ends=True)
        >>> for done in (1, 2, 3):
        ...     report({"done": done, "total": 3, "unit": "shards"})
        >>> [state["done"] for state in seen]
        [1, 3]
    """
    wait = progress_seconds() if seconds is None else seconds
    last = -math.inf if ends else clock()

    def thinned(state: Mapping[str, Any]) -> None:
        nonlocal last
        if "done" in state and not (ends and state["done"] == state.get("total")):
            if clock() - last < wait:
                return
            last = clock()
        report(state)

    return thinned


def in_words(state: Mapping[str, Any]) -> str:
    """A state in one line.

    Examples:
        >>> in_words({"done": 1200, "total": 5000, "unit": "calls", "per_second": 3.24, "seconds_left": 4000.0})
        '1,200 of 5,000 calls, 3.24 per second, 67 min left'
        >>> in_words({"validation_loss": 0.51234567})
        'validation_loss 0.512346'
    """
    said = []
    if "done" in state:
        of = f" of {state['total']:,}" if "total" in state else ""
        said.append(f"{state['done']:,}{of} {state['unit']}")
        if "per_second" in state:
            said.append(f"{state['per_second']:.3g} per second")
        if state.get("seconds_left"):
            said.append(f"{_duration(state['seconds_left'])} left")
    rest = {name: value for name, value in state.items() if name not in _OF_A_STATE}
    said += [f"{name} {value:.6g}" if isinstance(value, float) else f"{name} {value}" for name, value in rest.items()]
    return ", ".join(said)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"
