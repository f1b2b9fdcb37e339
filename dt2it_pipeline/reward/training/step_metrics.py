"""Forward passes of a training: how large pairs are in a batch, and the sums over those that have been computed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from dt2it_pipeline.reward.data.collation import PackedExample


class PairSizes:
    """Cells of a batch that each pair takes; arrays over all pairs, int64.

    Args:
        rows: pairs, each a prompt with two responses.
        shared_prefix: both responses in one sequence; else each has a sequence with the prompt to itself.
    """

    def __init__(self, rows: Sequence[PackedExample], shared_prefix: bool) -> None:
        self.lengths = np.array([len(row) for row in rows])  # tokens, the prompt counted once
        self.widths = self.filled = self.lengths  # cells in a batch of this pair alone; those that hold a token
        if not shared_prefix:
            prompts = np.array([len(row.prompt.tokens) for row in rows])
            self.widths = 2 * (prompts + np.array([max(map(len, row.responses)) for row in rows]))
            self.filled = self.lengths + prompts

    def cells(self, run: np.ndarray) -> list[float]:
        """Cells of a batch of the pairs `run`, and those of them that hold a token."""
        return [len(run) * float(self.widths[run].max()), float(self.filled[run].sum())] if len(run) else [0.0, 0.0]


class Tally:
    """Sums over the pairs of one optimiser step or evaluation, on one rank."""

    def __init__(self) -> None:
        self.sums = [0.0] * 6  # losses, pairs ranked right, pairs, pairs not a number, cells, cells with a token
        self.bad: list[int] = []  # pairs whose score or loss is not a number

    def add(self, run: np.ndarray, margins: torch.Tensor, losses: torch.Tensor, sizes: PairSizes) -> None:
        """Count the pairs `run` with their margins and losses, [pairs] each; nothing where `run` is empty."""
        if not len(run):
            return
        margins, losses = margins.detach().double(), losses.detach().double()
        finite = torch.isfinite(margins) & torch.isfinite(losses)
        if not bool(finite.all()):
            self.bad += [int(pair) for pair, ok in zip(run, finite.tolist(), strict=True) if not ok]
        cells, filled = sizes.cells(run)
        new = (float(losses.sum()), float((margins > 0).sum()), len(run), float((~finite).sum()), cells, filled)
        self.sums = [a + b for a, b in zip(self.sums, new, strict=True)]
