"""Which pairs every rank sees at every optimiser step: a pure function of the job, so that a resumed run repeats it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Schedule:
    """Optimiser steps over pairs 0 to n - 1 in a seeded order, a fresh one for each epoch."""

    pairs: int
    pairs_per_step: int
    epochs: float
    max_steps: int | None
    seed: int

    @property
    def presentations(self) -> int:
        """Pairs seen in all, repetitions included."""
        whole = round(self.pairs * self.epochs) or 1
        return whole if self.max_steps is None else min(whole, self.max_steps * self.pairs_per_step)

    @property
    def steps(self) -> int:
        """Optimiser steps; the last one may hold fewer pairs."""
        return math.ceil(self.presentations / self.pairs_per_step)

    def step(self, number: int) -> np.ndarray:
        """Pairs of step `number` (from 0), int64."""
        first = number * self.pairs_per_step
        places = np.arange(first, min(first + self.pairs_per_step, self.presentations))
        out = np.empty(len(places), dtype=np.int64)
        for epoch in np.unique(places // self.pairs):
            inside = places // self.pairs == epoch
            out[inside] = self._order(int(epoch))[places[inside] % self.pairs]
        return out

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(self.pairs)


def micro_batches(
    chosen: np.ndarray, lengths: Sequence[int] | np.ndarray, rank: int, ranks: int, most_pairs: int
) -> list[np.ndarray]:
    """Forward passes of one rank in one step; all ranks get the same number of passes and near equal work.

    Pairs are sorted by length, dealt out in turn and cut into runs of similar length, which wastes little padding.
    A run is empty where there are fewer pairs than ranks.
    """
    order = np.asarray(chosen)[np.argsort(np.asarray(lengths)[chosen], kind="stable")]
    # Back and forth (0 1 1 0 0 1 ...), so that no rank always gets the longer one.
    turn = np.arange(len(order)) % (2 * ranks)
    mine = order[np.where(turn < ranks, turn, 2 * ranks - 1 - turn) == rank]
    runs = max(1, math.ceil(math.ceil(len(order) / ranks) / most_pairs))
    return [run for run in np.array_split(mine, runs)]


def cosine_with_warmup(step: int, steps: int, warmup_ratio: float) -> float:
    """Share of the peak learning rate at optimiser step `step` (from 0) of `steps`.

    Linear from 1 / w to 1 over the first w = ceil(ratio * steps) steps, then half a cosine towards 0 (SGDR without
    restarts, arXiv 1608.03983, equation 5).
    """
    warmup = math.ceil(warmup_ratio * steps)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
