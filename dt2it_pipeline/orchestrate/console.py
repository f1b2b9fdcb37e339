"""What a run in a terminal prints: a line per stage, progress now and then, and at the end why it failed.

With `DT2IT_LOG=json` each line is a JSON object instead (see observe/logs.py), and where `DT2IT_LOG_FILE` names a file,
it takes these objects as well.

No line is wider than WIDTH, but for commands and paths, which stay whole so that they can be copied. Everything else
(every event of Dagster, tracebacks, what steps and their processes print) is kept by the instance, for the UI.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import sys
import textwrap
import time
from types import TracebackType
from typing import Any, TextIO

import dagster as dg

from dt2it_pipeline.config.paths import artifact_home
from dt2it_pipeline.config.recipe import RecipeError
from dt2it_pipeline.ingest.manifest import ManifestError
from dt2it_pipeline.observe.logs import JsonFormatter, VariableError, configure_logs, file_handler, wants_json
from dt2it_pipeline.orchestrate.pipes_worker import PROGRESS
from dt2it_pipeline.storage.home.run_records import fault_in_words

# Of whoever wrote the recipe, not of the code.
_MISTAKES = (RecipeError, ManifestError, VariableError, dg.DagsterInvalidConfigError)
_NOISE = ("[pipes] external process", "[pipes] did not receive closed message", "Dependencies for step")


WIDTH = 120  # columns
_STEP = 20  # columns of a step's name
_COMMAND = re.compile(r" (dt2it run .+)$", re.DOTALL)


class Console(logging.Logger):
    """The logger of runs in a terminal; see the module.

    Attributes:
        output: folder of what the run's steps printed, which is named where a run fails; None: not known.
        partition: the run's round; None: it has none.
    """

    def __init__(self) -> None:
        super().__init__("dt2it_pipeline", logging.INFO)
        self.output: str | None = None
        self.partition: str | None = None
        terminal = _terminal()
        configure_logs(None if terminal is sys.stderr else terminal.fileno())
        shown = logging.StreamHandler(terminal)
        shown.setFormatter(_JsonLines(self) if wants_json() else _Lines(self))
        self.addHandler(shown)
        if (kept := file_handler()) is not None:
            kept.setFormatter(_JsonLines(self))
            self.addHandler(kept)
        self.addFilter(_Worth())


def _terminal() -> TextIO:
    """Standard error as it is now, whatever takes its place while a step runs (see FileComputeLogManager)."""
    try:
        return os.fdopen(os.dup(sys.stderr.fileno()), "w", encoding="utf-8", errors="backslashreplace", buffering=1)
    except (OSError, ValueError):  # of no file, as in a notebook or under pytest
        return sys.stderr


class _Lines(logging.Formatter):
    """One entry per record, wrapped to the width; remembers why steps failed, to say it again last."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self._causes: dict[str, str] = {}

    def format(self, record: logging.LogRecord) -> str:
        step, message = self.said(record)
        level = "" if record.levelno < logging.WARNING else f"{record.levelname} "
        head = f"{time.strftime('%H:%M:%S', time.localtime(record.created))}  {step:<{_STEP}}  "
        return wrapped(head, level + message)

    def said(self, record: logging.LogRecord) -> tuple[str, str]:
        """Who speaks (a step, or `run`), and what it says."""
        meta = getattr(record, "dagster_meta", {})
        step, event = meta.get("step_key") or "run", meta.get("dagster_event")
        message = str(meta.get("orig_message") or record.getMessage()).removeprefix(f"{step}: ")
        if event is not None and event.is_step_failure:
            message = self._causes[step] = _cause(event.step_failure_data)
        elif event is not None and event.is_run_failure:
            message = self._failed(event.job_failure_data.error)
        return step, message

    def _failed(self, error: Any) -> str:
        """Why the run failed: once per reason, with the steps that ended by it, and where their output is."""
        steps: dict[str, list[str]] = {}
        for name, cause in self._causes.items():
            steps.setdefault(cause, []).append(name)
        if not steps:
            return "FAILED" if error is None else f"FAILED: {_root(error)}"
        reasons = [f"\n  {', '.join(names)}: {cause}" for cause, names in steps.items()]
        where = [] if self._console.output is None else [f"\n  what the steps printed: {self._console.output}"]
        return "FAILED" + "".join(reasons + where)


class _JsonLines(JsonFormatter):
    """The same entries as JSON objects."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console, self._lines = console, _Lines(console)

    def fields(self, record: logging.LogRecord) -> dict[str, Any]:
        step, message = self._lines.said(record)
        meta = getattr(record, "dagster_meta", {})
        place = {"run_id": meta.get("run_id"), "job": meta.get("job_name"), "round": self._console.partition}
        place |= {"stage": None if step == "run" else step}
        known = {name: value for name, value in place.items() if value is not None}
        return super().fields(record) | {"message": message.removeprefix(PROGRESS)} | known


def wrapped(head: str, message: str) -> str:
    """A message after a head, in lines of at most WIDTH columns; those that follow stand below its beginning.

    A command at its end has a line of its own and stays whole, and so do words that are longer than a line.
    """
    command = _COMMAND.search(message)
    parts = [message[: command.start()], command.group(1)] if command else [message]
    lines: list[str] = []
    for part in parts:
        for line in part.splitlines() or [""]:
            indent = line[: len(line) - len(line.lstrip())]
            if part is not message and part is parts[-1]:
                lines.append(line)
                continue
            lines += textwrap.wrap(
                line,
                WIDTH - (0 if indent else len(head)),
                subsequent_indent=indent * 2,
                break_long_words=False,
                break_on_hyphens=False,
            ) or [""]
    # What is indented already (the reasons of a failed run) begins at the margin.
    return head + "\n".join(
        line if number == 0 or line.startswith(" ") else " " * len(head) + line for number, line in enumerate(lines)
    )


class _Worth(logging.Filter):
    """Lets through what a person wants to read: no bookkeeping."""

    def filter(self, record: logging.LogRecord) -> bool:
        meta = getattr(record, "dagster_meta", {})
        return not str(meta.get("orig_message") or "").startswith(_NOISE)


@functools.cache  # every instance of Dagster that is opened asks for it, and the definitions too
def print_mistakes_plainly() -> None:
    """Let a mistake in a recipe, a manifest or a run's configuration end a command with one sentence: `error: ...`.

    So does a database of Dagster's that is damaged or locked.

    It changes what the interpreter prints of an error that nobody catches, and only of those: a traceback through
    Dagster's loader and this code says nothing to whoever mends a YAML file. Other errors keep theirs, and a code
    server catches these too and shows them in the UI. Called again, it changes nothing.
    """
    others = sys.excepthook

    def printed(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if isinstance(error, _MISTAKES):
            print(f"error: {error}", file=sys.stderr)
        elif words := fault_in_words(error, artifact_home()):
            print(f"error: {words}", file=sys.stderr)
        else:
            others(kind, error, traceback)

    sys.excepthook = printed
    configure_logs()  # where lines are JSON objects, its own hook writes these errors as such


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
