"""Label accuracy against hidden truth. Only the demo has truth, and nothing but its report may read it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from dt2it_pipeline.evaluate.benchmarks.metrics import BenchmarkError


@dataclass(frozen=True)
class Grade:
    """How many labels of a pairs table are right.

    Attributes:
        pairs: rows of the table.
        graded: those that have a truth.
        without_truth: the others.
        correct: graded rows whose chosen side is the true one.
        accuracy: correct / graded, NaN without graded rows.
        by_label: label -> (graded, correct).
        flips: graded rows whose sides were changed.
        flips_right: those whose chosen side is now the true one.
        wrong_before: graded rows whose label was wrong before the change.
    """

    pairs: int
    graded: int
    without_truth: int
    correct: int
    accuracy: float
    by_label: dict[str, tuple[int, int]] = field(default_factory=dict)
    flips: int = 0
    flips_right: int = 0
    wrong_before: int = 0

    @property
    def flip_precision(self) -> float:
        """Share of the changed labels that are now right; NaN when none was changed."""
        return self.flips_right / self.flips if self.flips else math.nan

    @property
    def flip_recall(self) -> float:
        """Share of the labels that were wrong before and have been changed; NaN when none was wrong."""
        return self.flips_right / self.wrong_before if self.wrong_before else math.nan


def grade_labels(pairs: pd.DataFrame, truth: pd.DataFrame, before: pd.DataFrame | None = None) -> Grade:
    """Grade the labels of `pairs` against `truth`, joined on pair_id.

    Args:
        pairs: pair_id, chosen_id and, optionally, label.
        truth: pair_id, chosen_id of the truly better side.
        before: the same pairs before curation (pair_id, chosen_id); what differs in chosen_id was flipped. Without it
            the label "flipped" says so, which misses what the annotators changed.

    Raises:
        BenchmarkError: a column is missing, or a pair id occurs twice.
    """
    frames = {"pairs": pairs, "truth": truth} | ({} if before is None else {"before": before})
    for name, frame in frames.items():
        if missing := [column for column in ("pair_id", "chosen_id") if column not in frame.columns]:
            raise BenchmarkError(f"{name}: missing columns {missing}; it has {list(frame.columns)}")
        if frame["pair_id"].duplicated().any():
            raise BenchmarkError(f"{name}: {int(frame['pair_id'].duplicated().sum())} rows repeat a pair_id")

    chosen = pairs["chosen_id"].to_numpy(dtype=object)
    true = _look_up(truth, pairs["pair_id"])
    graded = ~pd.isna(true)
    right = graded & (chosen == true)
    labels = (
        pairs["label"].to_numpy(dtype=object) if "label" in pairs else np.full(len(pairs), "original", dtype=object)
    )
    if before is None:
        flipped = labels == "flipped"
    else:
        previous = _look_up(before, pairs["pair_id"])
        flipped = ~pd.isna(previous) & (previous != chosen)
    flipped = flipped & graded
    # Two sides only: a flipped label that is wrong now was right before, and the other way round.
    wrong_before = graded & (right == flipped)
    by_label = {
        str(label): (int((graded & (labels == label)).sum()), int((right & (labels == label)).sum()))
        for label in sorted(set(labels[graded]))
    }
    count, correct = int(graded.sum()), int(right.sum())
    return Grade(
        pairs=len(pairs),
        graded=count,
        without_truth=len(pairs) - count,
        correct=correct,
        accuracy=correct / count if count else math.nan,
        by_label=by_label,
        flips=int(flipped.sum()),
        flips_right=int((flipped & right).sum()),
        wrong_before=int(wrong_before.sum()),
    )


def _look_up(frame: pd.DataFrame, pair_ids: pd.Series) -> np.ndarray:
    found = frame.set_index("pair_id")["chosen_id"].reindex(pair_ids)
    return found.to_numpy(dtype=object)
