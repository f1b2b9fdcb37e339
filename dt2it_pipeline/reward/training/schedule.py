"""Which examples (pairs alone, and lists) every rank sees at every optimiser step.

All of it is a pure function of the job, so that a resumed run repeats it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Schedule:
    """Optimiser steps over examples 0 to n - 1 in a seeded order, a fresh one for each epoch."""

    examples: int
    batch_size: int
    epochs: float
    max_steps: int | None
    seed: int

    @property
    def samples_seen(self) -> int:
        """Examples seen in all, repetitions included."""
        whole = round(self.examples * self.epochs) or 1
        return whole if self.max_steps is None else min(whole, self.max_steps * self.batch_size)

    @property
    def steps(self) -> int:
        """Optimiser steps; the last one may hold fewer examples."""
        return math.ceil(self.samples_seen / self.batch_size)

    def step(self, number: int) -> np.ndarray:
        """Examples of step `number` (from 0), int64."""
        first = number * self.batch_size
        places = np.arange(first, min(first + self.batch_size, self.samples_seen))
        out = np.empty(len(places), dtype=np.int64)
        for epoch in np.unique(places // self.examples):
            inside = places // self.examples == epoch
            out[inside] = _order(self.examples, self.seed, int(epoch))[places[inside] % self.examples]
        return out


@functools.lru_cache(maxsize=3)  # of epochs: a step may lie in two, and batches are planned ahead of the step
def _order(examples: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(examples)


def examples_per_step(examples: int, pairs: int, global_batch_size: int) -> int:
    """Examples of a step that hold `global_batch_size` pairs on average; at least one.

    >>> examples_per_step(100, 100, 64), examples_per_step(100, 600, 64)
    (64, 11)
    """
    return max(1, round(global_batch_size * examples / pairs))


def micro_batches(
    chosen: np.ndarray,
    lengths: Sequence[int] | np.ndarray,
    rank: int,
    ranks: int,
    most_pairs: int,
    most_tokens: int | None = None,
    widths: np.ndarray | None = None,
    *,
    responses: np.ndarray | None = None,
    one_row: bool = False,
) -> list[np.ndarray]:
    """Forward passes of one rank in one step; all ranks get the same number of passes and near equal work.

    Examples are sorted by length, dealt out in turn and cut into runs of similar length, which wastes little padding.
    A run is empty where there are fewer examples than ranks.

    Args:
        chosen: examples of the step.
        lengths: tokens of every example of the job.
        rank: whose passes.
        ranks: how many ranks there are.
        most_pairs: pairs per pass; half the answers of a pass are no more. A longer list has a pass to itself.
        most_tokens: cells per pass, padding included; an example that is longer by itself has a pass to itself.
        widths: cells of every example of the job where it is not padded; `lengths` by default.
        responses: answers of every example of the job; two by default.
        one_row: the examples of a pass lie one after the other, without padding; else each is padded to the longest.
    """
    order = np.asarray(chosen)[np.argsort(np.asarray(lengths)[chosen], kind="stable")]
    # Back and forth (0 1 1 0 0 1 ...), so that no rank always gets the longer one.
    turn = np.arange(len(order)) % (2 * ranks)
    owner = np.where(turn < ranks, turn, 2 * ranks - 1 - turn)
    cells = np.asarray(lengths if widths is None else widths)
    counts = np.full(len(cells), 2) if responses is None else responses
    if most_tokens is None and (counts[order] == 2).all():
        runs = max(1, math.ceil(math.ceil(len(order) / ranks) / most_pairs))
        return list(np.array_split(order[owner == rank], runs))
    pack = _fill if one_row else _pack
    most = 2 * most_pairs, math.inf if most_tokens is None else most_tokens
    packed = [pack(order[owner == each], cells, counts, *most) for each in range(ranks)]
    return _split_to(packed[rank], max(1, *map(len, packed)))


def _pack(
    order: np.ndarray, cells: np.ndarray, counts: np.ndarray, most_responses: int, most_tokens: float
) -> list[np.ndarray]:
    """Cut examples, sorted by length, into runs whose size times longest member stays within the budget."""
    runs: list[list[int]] = []
    longest = held = 0
    for each in order.tolist():
        longest, held = max(longest, int(cells[each])), held + int(counts[each])
        if not runs or held > most_responses or (len(runs[-1]) + 1) * longest > most_tokens:
            runs.append([])
            longest, held = int(cells[each]), int(counts[each])
        runs[-1].append(each)
    return [np.array(run, dtype=np.int64) for run in runs]


def _fill(
    order: np.ndarray, cells: np.ndarray, counts: np.ndarray, most_responses: int, most_tokens: float
) -> list[np.ndarray]:
    """Cut examples into runs whose cells together stay within the budget."""
    runs: list[list[int]] = []
    filled = held = 0
    for each in order.tolist():
        filled, held = filled + int(cells[each]), held + int(counts[each])
        if not runs or held > most_responses or filled > most_tokens:
            runs.append([])
            filled, held = int(cells[each]), int(counts[each])
        runs[-1].append(each)
    return [np.array(run, dtype=np.int64) for run in runs]


def _split_to(runs: list[np.ndarray], count: int) -> list[np.ndarray]:
    """Halve the runs with most examples until there are `count`; empty ones come last where they do not suffice."""
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
