"""What a run in a terminal prints: a line per stage, progress now and then, and at the end why it failed.

Everything else (every event of Dagster, tracebacks, the output of child processes) is kept by the instance, for the UI.
"""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType
from typing import Any

import dagster as dg

from dt2it_pipeline.config.recipe import RecipeError
from dt2it_pipeline.ingest.manifest import ManifestError
from dt2it_pipeline.orchestrate.pipes_worker import PROGRESS

_MISTAKES = (RecipeError, ManifestError, dg.DagsterInvalidConfigError)  # of whoever wrote the recipe, not of the code
_NOISE = ("[pipes] external process", "Dependencies for step")
_PROGRESS_SECONDS = 15.0


class _Lines(logging.Formatter):
    """One line per record; remembers why steps failed, to say it again last."""

    def __init__(self) -> None:
        super().__init__()
        self._causes: dict[str, str] = {}

    def format(self, record: logging.LogRecord) -> str:
        meta = getattr(record, "dagster_meta", {})
        step, event = meta.get("step_key") or "run", meta.get("dagster_event")
        message = str(meta.get("orig_message") or record.getMessage())
        if event is not None and event.is_step_failure:
            message = self._causes[step] = _cause(event.step_failure_data)
        elif event is not None and event.is_run_failure:
            whole = event.job_failure_data.error
            steps: dict[str, list[str]] = {}
            for name, cause in self._causes.items():
                steps.setdefault(cause, []).append(name)
            told = [f"\n  {', '.join(names)}: {cause}" for cause, names in steps.items()]
            message = "FAILED" + ("".join(told) if told or whole is None else f": {_root(whole)}")
        level = "" if record.levelno < logging.WARNING else f"{record.levelname} "
        return f"{time.strftime('%H:%M:%S', time.localtime(record.created))}  {step:<20}  {level}{message}"


class _Worth(logging.Filter):
    """Lets through what a person wants to read: no bookkeeping, and progress of a step not too often."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        meta = getattr(record, "dagster_meta", {})
        message = str(meta.get("orig_message") or "")
        if message.startswith(_NOISE):
            return False
        if record.levelno > logging.INFO:
            return True
        if not message.startswith(PROGRESS):
            return True
        step = str(meta.get("step_key"))
        if record.created - self._last.get(step, 0.0) < _PROGRESS_SECONDS:
            return False
        self._last[step] = record.created
        return True


def console_logger() -> logging.Logger:
    """The logger of runs in a terminal; see the module."""
    logger = logging.Logger("dt2it_pipeline", logging.INFO)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    handler.addFilter(_Worth())
    logger.addHandler(handler)
    return logger


def tell_mistakes_plainly() -> None:
    """Let a mistake in a recipe, a manifest or a run's configuration end a command with one sentence: `error: ...`.

    It changes what the interpreter prints of an error that nobody catches, and only of those: a traceback through
    Dagster's loader and this code says nothing to whoever mends a YAML file. Other errors keep theirs, and a code
    server catches these too and shows them in the UI.
    """
    others = sys.excepthook

    def told(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if isinstance(error, _MISTAKES):
            print(f"error: {error}", file=sys.stderr)
        else:
            others(kind, error, traceback)

    sys.excepthook = told


def print_lines(log: dg.DagsterLogManager, console: logging.Logger) -> None:
    """Put a logger of `console_logger` in the place of Dagster's own, unless the run's configuration asks for others.

    Dagster takes a job's logger from the configuration of each run alone, which `dagster job execute` leaves empty.
    """
    handler = log._dagster_handler
    if [logger.name for logger in handler._loggers] == ["dagster"]:
        handler._loggers = [console]


def _cause(failure: Any) -> str:
    """Why a step failed, in the words of whoever raised it."""
    if failure.user_failure_data is not None and failure.user_failure_data.description:
        return str(failure.user_failure_data.description)
    return _root(failure.error) if failure.error is not None else "no reason was given"


def _root(error: Any) -> str:
    """Message of the error that Dagster's own errors are about, without the module of its class."""
    while error.cause is not None and str(error.cls_name).startswith("Dagster"):
        error = error.cause
    message = str(error.message).strip()
    name, colon, words = message.partition(": ")
    if error.cls_name == dg.Failure.__name__:
        return words  # raised on purpose; its sentence needs no name
    return f"{name.rpartition('.')[2]}{colon}{words}" if " " not in name else message
