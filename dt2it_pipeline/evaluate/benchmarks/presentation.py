"""The order in which a comparing judge sees two responses, and back from its verdicts to scores.

Published benchmarks do not shuffle: in VL-RewardBench the better response stands first in 99.6% of rows, so a judge
that always says "the first" would look almost perfect. Here the order is a pure function of the seed and the content of
the pair, whichever side is the better one and wherever the row stands; a repeated row is presented the same way.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FIRST, SECOND, TIE = "first", "second", "tie"


@dataclass(frozen=True)
class Presentation:
    """Pairs as they are presented: the two columns of texts, and bool [pairs] whether the chosen side is the second."""

    first: list[str]
    second: list[str]
    chosen_is_second: np.ndarray

    def scores(self, verdicts: Sequence[str | None]) -> tuple[np.ndarray, np.ndarray]:
        """Verdicts on presented pairs as scores of the chosen and the rejected side, float [pairs] each.

        `first` or `second` gives 1 to that side and 0 to the other, `tie` 0.5 to both, None (no usable verdict) NaN.

        Raises:
            ValueError: the numbers of verdicts and pairs differ, or a verdict is none of these.
        """
        if len(verdicts) != len(self.first):
            raise ValueError(f"{len(verdicts)} verdicts on {len(self.first)} pairs")
        value = {FIRST: 1.0, SECOND: 0.0, TIE: 0.5, None: math.nan}
        unknown = next((verdict for verdict in verdicts if verdict not in value), None)
        if unknown is not None:
            raise ValueError(f"verdict {unknown!r} is none of {FIRST}, {SECOND}, {TIE} and None")
        first = np.array([value[verdict] for verdict in verdicts], dtype=float)
        return np.where(self.chosen_is_second, 1 - first, first), np.where(self.chosen_is_second, first, 1 - first)


def present(questions: Sequence[str], chosen: Sequence[str], rejected: Sequence[str], seed: int = 0) -> Presentation:
    """Put each pair into an order that does not depend on which side is the better one.

    Args:
        questions: [pairs], or ids of the prompts.
        chosen: [pairs] texts of the better side.
        rejected: [pairs] of the other.
        seed: another seed gives other orders.
    """
    first, second, swapped = [], [], []
    for question, better, worse in zip(questions, chosen, rejected, strict=True):
        swap = _place(seed, question, worse) < _place(seed, question, better)
        swapped.append(swap)
        first.append(worse if swap else better)
        second.append(better if swap else worse)
    return Presentation(first, second, np.array(swapped, dtype=bool))


def _place(seed: int, question: str, text: str) -> bytes:
    parts = (str(seed), question, text)
    return hashlib.sha256("\0".join(f"{len(part)} {part}" for part in parts).encode("utf-8", "surrogatepass")).digest()
