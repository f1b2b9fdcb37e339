"""What a training remembers of its held-out pairs: every evaluation, and the weights of the best one.

The history goes into the state that a killed run resumes from. Weights of the best evaluation lie in a folder that is
named by their step; it goes only when a later state, written whole, names a better one. So whatever state a run resumes
from, the weights that it names are there.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from dt2it_pipeline.storage import atomic

Row = dict[str, float]  # step, loss, accuracy, pairs


def is_due(done: int, steps: int, every: int) -> bool:
    """Whether held-out pairs are evaluated after `done` of `steps` optimiser steps: every so often, and at the end."""
    return done % every == 0 or done == steps


def held_out_pairs(pairs: int, fraction: float, count: int | None) -> int:
    """How many of `pairs` to hold out; at least one where a share was asked for, however small."""
    if count is not None:
        return count
    return max(1, math.floor(pairs * fraction + 0.5)) if fraction else 0


def best_of(history: Sequence[Row]) -> Row | None:
    """The evaluation of lowest loss, the earliest of equals; None where there was none."""
    return min(history, key=lambda row: (row["loss"], row["step"]), default=None)


class BestWeights:
    """Checkpoint folders of the best evaluations below the work folder, written by one process."""

    def __init__(self, work: Path) -> None:
        self.root = work / "best"

    def folder(self, step: float) -> Path:
        """Where the weights after optimiser step `step` lie."""
        return self.root / f"step-{int(step):08d}"

    def save(self, step: float, write: Callable[[Path], None]) -> None:
        """Let `write` fill the folder of a step; it appears whole or not at all."""
        with atomic.atomic_directory(self.folder(step)) as folder:
            write(folder)

    def drop_all_but(self, best: Row | None) -> None:
        """Remove what no state names any more."""
        kept = None if best is None else self.folder(best["step"])
        for folder in self.root.glob("*"):
            if folder != kept:
                shutil.rmtree(folder, ignore_errors=True)
