"""Curves for TensorBoard, Weights & Biases and MLflow, beside the logs that every training writes.

Files are written below the job's work folder while training runs (`tensorboard --logdir WORK/tensorboard` shows them
live) and are copied into the finished checkpoint: `tensorboard/`, `wandb/` where W&B is offline, `mlruns/` where MLflow
has no server. A resumed training writes them anew from its log, so that every point stands there once.

A tracker whose server is down or refuses costs its curves and no training: the first fault is one line, and the tracker
is left out from then on. A full disk is another matter; it stops the training as elsewhere.
"""

from __future__ import annotations

import errno
import functools
import importlib.util
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dt2it_pipeline.config.sections.training import TrainingSettings
from dt2it_pipeline.reward.errors import TrainingError
from dt2it_pipeline.reward.training.checkpointing import writing

logger = logging.getLogger(__name__)

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_LOCAL = "TensorBoard"  # writes files only
_TENSORBOARD, _WANDB, _MLFLOW = "tensorboard", "wandb", "mlruns"
_FOLDERS = (_TENSORBOARD, _WANDB, _MLFLOW)
_UNFIT = re.compile(r"[^\w\-. :/]")  # what MLflow does not take in the name of a metric
_RUN_TAG = "dt2it.run"  # of an MLflow run: the training that it belongs to


def require_packages(settings: TrainingSettings) -> None:
    """Check, before any work starts, that what the recipe asks for is installed.

    Raises:
        TrainingError: a package is missing; the message names the setting.
    """
    wanted = {
        "tensorboard": ("training.tensorboard", settings.tensorboard, "tensorboard"),
        "wandb": ("training.wandb_project", settings.wandb_project is not None, "wandb"),
        "mlflow": ("training.mlflow_experiment", settings.mlflow_experiment is not None, "mlflow-skinny"),
    }
    for module, (key, needed, package) in wanted.items():
        if needed and importlib.util.find_spec(module) is None:
            raise TrainingError(
                f"{key} is set, but the package {package} is not installed: "
                f"install it (pip install {package}) or remove the setting"
            )


def untracked(settings: TrainingSettings) -> TrainingSettings:
    """The same settings without any tracker.

    >>> untracked(TrainingSettings(wandb_project="mine")).wandb_project is None
    True
    """
    return settings.model_copy(update={"tensorboard": False, "wandb_project": None, "mlflow_experiment": None})


def copy_files(work: Path, folder: Path) -> None:
    """Copy what trackers have written below `work` into another folder."""
    for name in _FOLDERS:
        if (work / name).is_dir():
            shutil.copytree(work / name, folder / name, symlinks=True)


class Tracker:
    """Sends scalars to whatever the recipe asks for, from one process; nothing by default.

    Args:
        settings: which trackers there are.
        work: folder below which their files lie.
        name: of the run, as people see it.
        run_id: of the run: a second start with it goes on in the same run.
    """

    def __init__(self, settings: TrainingSettings, work: Path, *, name: str, run_id: str) -> None:
        self._work = work
        self._sinks: dict[str, Callable[[Mapping[str, float], int], None]] = {}
        self._closers: dict[str, Callable[[], None]] = {}
        experiment = settings.mlflow_experiment
        if settings.tensorboard:
            self._open_tensorboard(work / _TENSORBOARD)
        if settings.wandb_project is not None:
            self._guarded("Weights & Biases", lambda: self._open_wandb(settings, work, name, run_id))
        if experiment is not None:
            self._guarded("MLflow", lambda: self._open_mlflow(settings, experiment, work, name, run_id))

    def _guarded(self, name: str, act: Callable[[], None]) -> None:
        """Do something with a tracker; leave the tracker out where that fails."""
        try:
            act()
        except Exception as error:  # libraries of others raise what they like, UsageError to ConnectionError
            if name == _LOCAL or (isinstance(error, OSError) and error.errno in _DISK):
                raise
            self._sinks.pop(name, None)
            self._closers.pop(name, None)
            logger.warning(
                "%s does not answer or refuses: %s. Work goes on without its curves; the logs beside the checkpoint "
                "have every number",
                name, str(error).strip().partition("\n")[0][:300] or type(error).__name__,
            )  # fmt: skip

    def _open_tensorboard(self, folder: Path) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        shutil.rmtree(folder, ignore_errors=True)
        writer = SummaryWriter(str(folder))

        def send(values: Mapping[str, float], step: int) -> None:
            for tag, value in values.items():
                writer.add_scalar(tag, value, step)
            writer.flush()

        self._sinks[_LOCAL] = send
        self._closers[_LOCAL] = writer.close

    def _open_wandb(self, settings: TrainingSettings, work: Path, name: str, run_id: str) -> None:
        import wandb

        shutil.rmtree(work / _WANDB, ignore_errors=True)
        # The id is the job's own, so that a resumed training goes on in the same run.
        run = wandb.init(
            project=settings.wandb_project,
            name=name,
            id=run_id,
            resume="allow",
            dir=str(work),
            config=settings.model_dump(mode="json"),
        )
        self._sinks["Weights & Biases"] = lambda values, step: run.log(dict(values), step=step)

        def finish() -> None:
            run.finish()
            wandb.teardown()  # waits for the process that writes the run's file, which is copied next

        self._closers["Weights & Biases"] = finish

    def _open_mlflow(self, settings: TrainingSettings, experiment: str, work: Path, name: str, run_id: str) -> None:
        # MLflow 3 asks whether files are meant, and not a database; beside a checkpoint they are.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # its 7 would hold a training for minutes
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        server = os.environ.get("MLFLOW_TRACKING_URI")
        if not server:
            shutil.rmtree(work / _MLFLOW, ignore_errors=True)
        client = MlflowClient(server or (work / _MLFLOW).absolute().as_uri())
        found = client.get_experiment_by_name(experiment)
        where = client.create_experiment(experiment) if found is None else found.experiment_id
        earlier = client.search_runs([where], filter_string=f"tags.`{_RUN_TAG}` = '{run_id}'", max_results=1)
        if earlier:
            run = earlier[0].info.run_id
            last = {key: client.get_metric_history(run, key)[-1].step for key in earlier[0].data.metrics}
        else:
            run, last = client.create_run(where, run_name=name, tags={_RUN_TAG: run_id}).info.run_id, {}
            params = [Param(key, str(value)[:500]) for key, value in settings.model_dump(mode="json").items()]
            client.log_batch(run, params=params)

        def send(values: Mapping[str, float], step: int) -> None:
            values = {_UNFIT.sub("_", key): value for key, value in values.items()}  # groups may have any name
            now = int(time.time() * 1000)
            # A server keeps what an earlier start sent; a point that stands there is not sent again.
            metrics = [Metric(key, value, now, step) for key, value in values.items() if step > last.get(key, -1)]
            client.log_batch(run, metrics=metrics)

        self._sinks["MLflow"] = send
        self._closers["MLflow"] = lambda: client.set_terminated(run)

    def training(self, row: Mapping[str, float]) -> None:
        """Send a row of the training log."""
        self._send("train", row)

    def validation(self, row: Mapping[str, float]) -> None:
        """Send a row of the validation log."""
        self._send("validation", row)

    def round(self, number: int, values: Mapping[str, float]) -> None:
        """Send the numbers of a finished round."""
        self._send("round", {**values, "step": number})

    def replay(self, log: Sequence[Mapping[str, float]], evaluations: Sequence[Mapping[str, float]]) -> None:
        """Send what an earlier start of this training logged, in the order of its steps."""
        rows = [(row["step"], 0, row) for row in log] + [(row["step"], 1, row) for row in evaluations]
        for _, kind, row in sorted(rows, key=lambda entry: entry[:2]):
            (self.validation if kind else self.training)(row)

    def close(self) -> None:
        """Finish all writing."""
        for name, closer in list(self._closers.items()):
            self._guarded(name, closer)

    def _send(self, group: str, row: Mapping[str, Any]) -> None:
        values = {f"{group}/{key}": float(value) for key, value in row.items() if key != "step"}
        for name, sink in list(self._sinks.items()):
            with writing("the curves in", self._work):
                self._guarded(name, functools.partial(sink, values, int(row["step"])))
