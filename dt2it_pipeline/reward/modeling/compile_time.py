"""What torch.compile took in a job, as it is logged and recorded. Loads without torch; who counts is compilation.py."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Compilation:
    """What compiling took.

    Attributes:
        seconds: wall clock.
        graphs: made of functions, each a run of operations without Python between them.
        recompilations: of functions that were compiled before, for inputs of another kind.
        graph_breaks: places at which a function could not go on in the same graph.
        cached: pieces of compiled code that were read from the cache; a forward and a backward pass are one each.
        compiled: pieces that were made anew.
        given_up: functions that met more kinds of inputs than PyTorch compiles for, and go on uncompiled.
    """

    seconds: float = 0.0
    graphs: int = 0
    recompilations: int = 0
    graph_breaks: int = 0
    cached: int = 0
    compiled: int = 0
    given_up: int = 0

    def __add__(self, other: Compilation) -> Compilation:
        return Compilation(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))

    def __sub__(self, other: Compilation) -> Compilation:
        return Compilation(*(getattr(self, one.name) - getattr(other, one.name) for one in fields(self)))

    def summary(self) -> dict[str, float | int]:
        """For the summary of a job: the figures under names that begin with `compile_`.

        >>> list(Compilation(seconds=1.234).summary().items())[:2]
        [('compile_seconds', 1.23), ('compile_graphs', 0)]
        """
        return {f"compile_{name}": round(value, 2) for name, value in asdict(self).items()}

    def in_words(self) -> str:
        """The figures in one line.

        >>> Compilation(41.23, graphs=6, recompilations=2, cached=8, compiled=2).in_words()
        '41.2 s for 6 graphs, 2 recompilations, 0 graph breaks; 8 of 10 pieces of code came from the cache'
        """
        return (
            f"{self.seconds:.1f} s for {_counted(self.graphs, 'graph')}, "
            f"{_counted(self.recompilations, 'recompilation')}, {_counted(self.graph_breaks, 'graph break')}; "
            f"{self.cached} of {_counted(self.cached + self.compiled, 'piece')} of code came from the cache"
        )


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def slowest(found: Iterable[Compilation]) -> Compilation:
    """Of several processes that compiled the same layers, the one that all waited for."""
    return max(found, key=lambda one: one.seconds)


def log_compilation(found: Compilation) -> None:
    """Log in one line what compiling took."""
    _logger.info("torch.compile: %s", found.in_words())


def recorded(found: Iterable[Compilation], *, log: bool = True) -> dict[str, float | int]:
    """What compiling took the slowest of several processes, for the summary of their job; logged where `log` is set."""
    longest = slowest(found)
    if log:
        log_compilation(longest)
    return longest.summary()
