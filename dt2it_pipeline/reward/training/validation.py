"""What a training makes of its held-out pairs: every evaluation, the weights of the best one, and the temperature.

The history goes into the state that a killed run resumes from. Weights of the best evaluation lie in a folder that is
named by their step; it goes only when a later state, written whole, names a better one. So whatever state a run resumes
from, the weights that it names are there.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dt2it_pipeline.reward.calibration import CARD_KEY, CalibrationError, card_entry, fit_calibration
from dt2it_pipeline.reward.errors import TrainingError
from dt2it_pipeline.storage import atomic, finished_work, integrity

if TYPE_CHECKING:
    import torch

Row = dict[str, float]  # step, loss, accuracy, pairs


class Margins:
    """Margins of the held-out pairs that a rank has evaluated."""

    def __init__(self) -> None:
        self._found: list[tuple[np.ndarray, torch.Tensor]] = []

    def add(self, run: np.ndarray, margins: torch.Tensor) -> None:
        """Keep the margins of the pairs `run`; those of a pass in which no pair counts are of others, and are not."""
        if len(run):
            self._found.append((run, margins.detach()))

    def pairs(self) -> list[tuple[int, float]]:
        """Pair and margin of all that were kept."""
        return [
            (int(pair), margin)
            for run, margins in self._found
            for pair, margin in zip(run, margins.double().tolist(), strict=True)
        ]


def calibration(margins: Sequence[tuple[int, float]], prompt_ranks: np.ndarray) -> dict[str, Any]:
    """What reward_model.json holds of a calibration on held-out pairs; nothing where they are too few.

    Args:
        margins: pair and margin, in any order.
        prompt_ranks: of all pairs, equal for pairs of one prompt.
    """
    ordered = sorted(margins)
    prompts = [str(prompt_ranks[pair]) for pair, _ in ordered]
    try:
        fitted = fit_calibration([margin for _, margin in ordered], prompts, source="held-out pairs of the training")
    except CalibrationError:
        return {}
    return {CARD_KEY: card_entry(fitted)}


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
    """Checkpoint folders of the best evaluations below the work folder, written by one process.

    Args:
        work: the job's private folder.
        wanted: whether the training keeps its best weights at all.
    """

    def __init__(self, work: Path, *, wanted: bool) -> None:
        self.root, self.wanted = work / "best", wanted

    def folder(self, step: float) -> Path:
        """Where the weights after optimiser step `step` lie."""
        return self.root / f"step-{int(step):08d}"

    def save(self, step: float, write: Callable[[Path], None]) -> None:
        """Let `write` fill the folder of a step; it appears whole or not at all, and its marker after it."""
        self._marker(step).unlink(missing_ok=True)
        with atomic.atomic_directory(self.folder(step)) as folder:
            write(folder)
        files = [file for file in self.folder(step).rglob("*") if file.is_file()]
        finished_work.finish(self._marker(step), integrity.digests_of(self.root, files))

    def check(self, state: Mapping[str, Any]) -> None:
        """Raise DamagedWorkError where the best weights that a training state names are not as they were written."""
        best = best_of(state["evaluations"])
        if self.wanted and best is not None and finished_work.finished(self._marker(best["step"])) is None:
            raise finished_work.DamagedWorkError(f"{self.folder(best['step'])}: the best weights are not there")

    def copy(self, evaluations: Sequence[Row], target: Path) -> None:
        """Copy the best weights into a folder.

        Raises:
            TrainingError: they are damaged.
        """
        try:
            self.check({"evaluations": evaluations})
        except finished_work.DamagedWorkError as error:
            raise TrainingError(
                f"the best weights are damaged ({error}); start again: training goes on from a state before"
            ) from error
        best = best_of(evaluations)
        assert best is not None
        shutil.copytree(self.folder(best["step"]), target, dirs_exist_ok=True)

    def _marker(self, step: float) -> Path:
        return self.root / f"{self.folder(step).name}.json"

    def drop_all_but(self, best: Row | None) -> None:
        """Remove what no state names any more."""
        kept = () if best is None else (self.folder(best["step"]), self._marker(best["step"]))
        for left in set(self.root.glob("*")).difference(kept):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
