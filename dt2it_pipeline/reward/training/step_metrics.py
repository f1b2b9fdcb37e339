"""Forward passes of a training: how large examples are in a batch, and the sums over those that have been computed."""

from __future__ import annotations

import numpy as np
import torch

from dt2it_pipeline.reward.data.collation import row_length
from dt2it_pipeline.reward.data.lists import TrainingExamples


class ExampleSizes:
    """Cells of a batch that each example takes; arrays over all examples, int64.

    Args:
        prompts: tokens of every example's prompt.
        responses: tokens of all its answers together.
        longest: tokens of the longest of these.
        counts: how many answers it has.
        shared_prefix: all answers in one sequence; else each has a sequence with the prompt to itself.
        one_row: all examples of a batch one after the other; else each sequence is padded to the longest.
    """

    def __init__(
        self,
        prompts: np.ndarray,
        responses: np.ndarray,
        longest: np.ndarray,
        counts: np.ndarray,
        shared_prefix: bool,
        *,
        one_row: bool = False,
    ) -> None:
        self._one_row = one_row
        prompts = prompts.astype(np.int64)
        self.counts = counts
        self.lengths = prompts + responses  # tokens, the prompt counted once
        self.filled = self.lengths  # cells in a batch of this example alone that hold a token
        self._rows, self._row_lengths = np.ones_like(counts), self.lengths
        if not shared_prefix:
            self.filled = self.lengths + prompts * (counts - 1)
            self._rows, self._row_lengths = counts, prompts + longest
        self.widths = self.filled if one_row else self._rows * self._row_lengths  # cells in a batch of it alone

    def cells(self, run: np.ndarray) -> list[float]:
        """Cells of a batch of the examples `run`, and those of them that hold a token."""
        if not len(run):
            return [0.0, 0.0]
        filled = int(self.filled[run].sum())
        cells = int(self._rows[run].sum()) * int(self._row_lengths[run].max())
        return [float(row_length(filled) if self._one_row else cells), float(filled)]


class Tally:
    """Sums over the pairs of one optimiser step or evaluation, on one rank.

    They stay on the device until somebody reads them: to read is to wait for all that was computed before.
    """

    def __init__(self, examples: TrainingExamples, sizes: ExampleSizes) -> None:
        self._examples, self._sizes = examples, sizes
        self._sums: torch.Tensor | None = None  # losses, pairs ranked right, what is not a number
        self._counts = np.zeros(4)  # pairs, cells, cells with a token, losses
        self._passes: list[tuple[np.ndarray, torch.Tensor, torch.Tensor]] = []  # examples, margins and losses

    def add(self, run: np.ndarray, margins: torch.Tensor, losses: torch.Tensor) -> None:
        """Count the examples `run` with margins of their pairs and losses; nothing where `run` is empty."""
        if not len(run):
            return
        margins, losses = margins.detach().double(), losses.detach().double()
        numbers = torch.cat([margins, losses])
        new = torch.stack([losses.sum(), (margins > 0).double().sum(), (~torch.isfinite(numbers)).double().sum()])
        self._sums = new if self._sums is None else self._sums + new
        self._counts += [len(margins), *self._sizes.cells(run), len(losses)]
        self._passes.append((run, torch.isfinite(margins), torch.isfinite(losses)))

    def sums(self) -> list[float]:
        """Losses, pairs ranked right, pairs, what is not a number, cells, cells with a token, number of losses."""
        loss, right, bad = [0.0] * 3 if self._sums is None else self._sums.tolist()
        pairs, cells, filled, terms = self._counts.tolist()
        return [loss, right, pairs, bad, cells, filled, terms]

    def bad(self) -> list[int]:
        """Pairs whose score or loss is not a number."""
        found: list[int] = []
        for run, margins, losses in self._passes:
            finite = margins.cpu().numpy()
            if not self._examples.ranked[run].any():
                finite = finite & losses.cpu().numpy()
            elif finite.all() and not bool(losses.all()):  # some choice among these
                finite = np.zeros_like(finite)
            found += self._examples.pairs_of(run)[~finite].tolist()
        return found
