"""Whether a round's reward model is better than the one before beyond chance, from its answers to the same pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dt2it_pipeline.evaluate.benchmarks.comparison import paired_interval
from dt2it_pipeline.evaluate.benchmarks.metrics import CORRECT


@dataclass(frozen=True)
class Gain:
    """Accuracy of the later model less that of the earlier one over the pairs that both answered, as shares; 95%."""

    value: float
    low: float
    high: float
    pairs: int

    @property
    def beyond_chance(self) -> bool:
        """Whether the interval lies above zero."""
        return self.low > 0


def gain(before: pd.DataFrame, after: pd.DataFrame) -> Gain:
    """Paired difference of accuracies, its interval by the variance between prompts (`comparison.paired_interval`).

    Pairs of one prompt share an image and stand or fall together, so a prompt is the unit.

    Args:
        before: results of the earlier model (table kind `benchmark_results`); pairs count once per benchmark.
        after: results of the later one; pairs that only one of both has are left out.
    """
    keys = ["benchmark", "pair_id"]
    columns = [*keys, "prompt_id", "outcome"]
    joined = before[columns].drop_duplicates(keys).merge(
        after[[*keys, "outcome"]].drop_duplicates(keys), on=keys, suffixes=("_before", "_after")
    )  # fmt: skip
    if joined.empty:
        return Gain(math.nan, math.nan, math.nan, 0)
    right = [(joined[f"outcome_{side}"] == CORRECT).to_numpy().astype(float) for side in ("before", "after")]
    codes, _ = pd.factorize(joined["prompt_id"])
    sums, pairs = np.bincount(codes, weights=right[1] - right[0]), np.bincount(codes).astype(float)
    low, high = paired_interval(sums, pairs)
    return Gain(float(sums.sum() / len(joined)), low, high, len(joined))


def stalled(gains: Sequence[Gain], patience: int | None) -> bool:
    """Whether the last `patience` rounds all gained nothing beyond chance; a gain that is not known counts as one."""
    last = list(gains)[-patience:] if patience else []
    return bool(last) and len(last) == patience and all(g.pairs > 0 and not g.beyond_chance for g in last)
