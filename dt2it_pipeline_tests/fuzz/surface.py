"""What a surface is: a place where input from outside enters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Surface:
    """Sound inputs, and what reads one.

    Attributes:
        sound: inputs that nothing is wrong with.
        read: reads an input. Returns whether something of it was used; raises Dt2itError where it is refused. Any other
            error is a fault, and so is an assertion that does not hold.
    """

    sound: Sequence[bytes]
    read: Callable[[bytes], bool]


Make = Callable[[Path], Surface]  # from an empty folder
