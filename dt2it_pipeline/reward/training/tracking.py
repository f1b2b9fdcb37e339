"""Curves of a training for TensorBoard and Weights & Biases, beside the logs that every training writes.

Event files are written below the job's work folder while training runs (`tensorboard --logdir WORK/tensorboard` shows
them live) and are copied into the finished checkpoint. A resumed training writes them anew from its log, so that every
point stands there once.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dt2it_pipeline.config.sections.training import TrainingSettings
from dt2it_pipeline.reward.errors import TrainingError
from dt2it_pipeline.reward.training.checkpointing import writing

FOLDER = "tensorboard"


def require_packages(settings: TrainingSettings) -> None:
    """Check, before any work starts, that what the recipe asks for is installed.

    Raises:
        TrainingError: a package is missing; the message names the setting.
    """
    wanted = {"tensorboard": settings.tensorboard, "wandb": settings.wandb_project is not None}
    keys = {"tensorboard": "training.tensorboard", "wandb": "training.wandb_project"}
    for package, needed in wanted.items():
        if needed and importlib.util.find_spec(package) is None:
            raise TrainingError(
                f"{keys[package]} is set, but the package {package} is not installed: "
                f"install it (pip install {package}) or remove the setting"
            )


class Tracker:
    """Sends scalars to whatever the recipe asks for, from one process; nothing by default."""

    def __init__(self, settings: TrainingSettings, work: Path, *, name: str, run_id: str) -> None:
        self._work = work
        self._sinks: list[Callable[[Mapping[str, float], int], None]] = []
        self._closers: list[Callable[[], None]] = []
        if settings.tensorboard:
            self._open_tensorboard(work / FOLDER)
        if settings.wandb_project is not None:
            self._open_wandb(settings, work, name, run_id)

    def _open_tensorboard(self, folder: Path) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        shutil.rmtree(folder, ignore_errors=True)
        writer = SummaryWriter(str(folder))

        def send(values: Mapping[str, float], step: int) -> None:
            for tag, value in values.items():
                writer.add_scalar(tag, value, step)
            writer.flush()

        self._sinks.append(send)
        self._closers.append(writer.close)

    def _open_wandb(self, settings: TrainingSettings, work: Path, name: str, run_id: str) -> None:
        import wandb

        # The id is the job's own, so that a resumed training goes on in the same run.
        run = wandb.init(
            project=settings.wandb_project,
            name=name,
            id=run_id,
            resume="allow",
            dir=str(work),
            config=settings.model_dump(mode="json"),
        )
        self._sinks.append(lambda values, step: run.log(dict(values), step=step))
        self._closers.append(run.finish)

    def training(self, row: Mapping[str, float]) -> None:
        """Send a row of the training log."""
        self._send("train", row)

    def validation(self, row: Mapping[str, float]) -> None:
        """Send a row of the validation log."""
        self._send("validation", row)

    def replay(self, log: Sequence[Mapping[str, float]], evaluations: Sequence[Mapping[str, float]]) -> None:
        """Send what an earlier start of this training logged, in the order of its steps."""
        rows = [(row["step"], 0, row) for row in log] + [(row["step"], 1, row) for row in evaluations]
        for _, kind, row in sorted(rows, key=lambda entry: entry[:2]):
            (self.validation if kind else self.training)(row)

    def close(self) -> None:
        """Finish all writing."""
        for closer in self._closers:
            closer()

    def _send(self, group: str, row: Mapping[str, Any]) -> None:
        values = {f"{group}/{key}": float(value) for key, value in row.items() if key != "step"}
        for sink in self._sinks:
            with writing("the curves in", self._work):
                sink(values, int(row["step"]))
