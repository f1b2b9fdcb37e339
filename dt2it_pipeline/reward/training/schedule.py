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
    global_batch_size: int
    epochs: float
    max_steps: int | None
    seed: int

    @property
    def samples_seen(self) -> int:
        """Pairs seen in all, repetitions included."""
        whole = round(self.pairs * self.epochs) or 1
        return whole if self.max_steps is None else min(whole, self.max_steps * self.global_batch_size)

    @property
    def steps(self) -> int:
        """Optimiser steps; the last one may hold fewer pairs."""
        return math.ceil(self.samples_seen / self.global_batch_size)

    def step(self, number: int) -> np.ndarray:
        """Pairs of step `number` (from 0), int64."""
        first = number * self.global_batch_size
        places = np.arange(first, min(first + self.global_batch_size, self.samples_seen))
        out = np.empty(len(places), dtype=np.int64)
        for epoch in np.unique(places // self.pairs):
            inside = places // self.pairs == epoch
            out[inside] = self._order(int(epoch))[places[inside] % self.pairs]
        return out

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(self.pairs)


def micro_batches(
    chosen: np.ndarray,
    lengths: Sequence[int] | np.ndarray,
    rank: int,
    ranks: int,
    most_pairs: int,
    most_tokens: int | None = None,
    widths: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Forward passes of one rank in one step; all ranks get the same number of passes and near equal work.

    Pairs are sorted by length, dealt out in turn and cut into runs of similar length, which wastes little padding.
    A run is empty where there are fewer pairs than ranks.

    Args:
        chosen: pairs of the step.
        lengths: tokens of every pair of the job.
        rank: whose passes.
        ranks: how many ranks there are.
        most_pairs: pairs per pass.
        most_tokens: cells per pass, padding included; a pair that is longer by itself has a pass to itself.
        widths: cells of every pair of the job where it is not padded; `lengths` by default.
    """
    order = np.asarray(chosen)[np.argsort(np.asarray(lengths)[chosen], kind="stable")]
    # Back and forth (0 1 1 0 0 1 ...), so that no rank always gets the longer one.
    turn = np.arange(len(order)) % (2 * ranks)
    owner = np.where(turn < ranks, turn, 2 * ranks - 1 - turn)
    if most_tokens is None:
        runs = max(1, math.ceil(math.ceil(len(order) / ranks) / most_pairs))
        return list(np.array_split(order[owner == rank], runs))
    cells = np.asarray(lengths if widths is None else widths)
    packed = [_pack(order[owner == each], cells, most_pairs, most_tokens) for each in range(ranks)]
    return _split_to(packed[rank], max(1, *map(len, packed)))


def _pack(order: np.ndarray, cells: np.ndarray, most_pairs: int, most_tokens: int) -> list[np.ndarray]:
    """Cut pairs, sorted by length, into runs whose size times longest member stays within the budget."""
    runs: list[list[int]] = []
    longest = 0
    for pair in order.tolist():
        longest = max(longest, int(cells[pair]))
        if not runs or len(runs[-1]) == most_pairs or (len(runs[-1]) + 1) * longest > most_tokens:
            runs.append([])
            longest = int(cells[pair])
        runs[-1].append(pair)
    return [np.array(run, dtype=np.int64) for run in runs]


def _split_to(runs: list[np.ndarray], count: int) -> list[np.ndarray]:
    """Halve the runs with most pairs until there are `count`; empty ones come last where pairs do not suffice."""
    runs = list(runs)
    while len(runs) < count:
        largest = max(range(len(runs)), key=lambda i: len(runs[i]), default=None)
        if largest is None or len(runs[largest]) < 2:
            runs.append(np.zeros(0, dtype=np.int64))
        else:
            runs[largest : largest + 1] = np.array_split(runs[largest], 2)
    return runs


def cosine_with_warmup(step: int, steps: int, warmup_ratio: float) -> float:
    """Share of the peak learning rate at optimiser step `step` (from 0) of `steps`.

    Linear from 1 / w to 1 over the first w = ceil(ratio * steps) steps, then half a cosine towards 0 (SGDR without
    restarts, arXiv 1608.03983, equation 5).
    """
    warmup = math.ceil(warmup_ratio * steps)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
