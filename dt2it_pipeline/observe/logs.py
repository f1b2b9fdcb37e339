"""Log lines of this package, of every process of a run: plain text, or one JSON object per line.

Two environment variables, which child processes inherit, decide:

- `DT2IT_LOG`: `text` (the default) or `json`, the form of lines on standard error.
- `DT2IT_LOG_FILE`: a file to which every process appends its lines as JSON objects, whatever `DT2IT_LOG` says. A line
  is one write, so that processes of one machine can share the file.

A JSON line has `time` (UTC, ISO 8601), `level`, `logger`, `message` and `process`, and where they are known `run_id`,
`job`, `round`, `stage`, `rank`, `row_ids`, `media_ids` and `exception`. What belongs here: how a line is written, and
what it says of its place. What does not: any message.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote, unquote

from dt2it_pipeline.errors import UserError, WorkerError

FORM, FILE, CONTEXT = "DT2IT_LOG", "DT2IT_LOG_FILE", "DT2IT_LOG_CONTEXT"
FORMS = ("text", "json")
MOST_ROW_IDS = 20  # that a line names
_PACKAGE = __name__.partition(".")[0]
_rows: ContextVar[tuple[str, ...]] = ContextVar("rows", default=())
_OWN_HANDLERS = ("vllm",)  # loggers of libraries that print by themselves and pass nothing on


class VariableError(UserError, ValueError):
    """An environment variable cannot be followed; the message names it and says what it may be."""


class JsonFormatter(logging.Formatter):
    """Writes a record as one JSON object in one line.

    `row_ids` and `media_ids` (content hashes) come from the record's `extra`, 20 of them at most; `row_ids` else from
    `log_rows`.

    Examples:
        >>> record = logging.LogRecord("dt2it_pipeline.judges", 30, "", 0, "no answer for %s", ("p1",), None)
        >>> line = json.loads(JsonFormatter().format(record))
        >>> line["level"], line["logger"], line["message"]
        ('WARNING', 'dt2it_pipeline.judges', 'no answer for p1')
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        line = self.fields(record)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)

    def fields(self, record: logging.LogRecord) -> dict[str, Any]:
        """What the line holds, but for an exception."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        rank = {"rank": int(os.environ["RANK"])} if os.environ.get("RANK", "").isdigit() else {}
        named = {"row_ids": getattr(record, "row_ids", _rows.get()), "media_ids": getattr(record, "media_ids", ())}
        ids = {name: found for name, given in named.items() if (found := list(islice(given, MOST_ROW_IDS)))}
        return {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **log_place(),
            "process": record.process,
            **rank,
            **ids,
        }


class LineHandler(logging.Handler):
    """Writes each record to a file descriptor in one call, so that lines of several processes do not mix.

    Args:
        descriptor: of an open file; None: standard error, as it is when a record comes.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        super().__init__()
        self._descriptor = descriptor

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; a fault is logging's own to report, as of every handler."""
        try:
            line = f"{self.format(record)}\n"
            if self._descriptor is None:
                sys.stderr.write(line)
                sys.stderr.flush()
            else:
                os.write(self._descriptor, line.encode("utf-8", "backslashreplace"))
        except Exception:
            self.handleError(record)


def wants_json() -> bool:
    """Whether lines on standard error are JSON objects."""
    return os.environ.get(FORM) == "json"


def file_handler() -> logging.Handler | None:
    """A handler that appends JSON lines to the file that `DT2IT_LOG_FILE` names; None where it names none.

    Raises:
        VariableError: the file cannot be opened.
    """
    name = os.environ.get(FILE)
    if not name:
        return None
    try:
        descriptor = os.open(name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    except OSError as error:
        raise VariableError(
            f"{FILE}={name}: log lines cannot be appended to it ({error.strerror}); name a file in a folder that is "
            "there and can be written to"
        ) from error
    handler = LineHandler(descriptor)
    handler.setFormatter(JsonFormatter())
    return handler


def vllm_file_handler() -> logging.Handler:
    """What `vllm_logging.json` names: a handler for the file, or one that does nothing; vLLM's level is set with it.

    A configuration of its own takes the place of `VLLM_LOGGING_LEVEL`, which people set.

    Raises:
        VariableError: see `file_handler`.
    """
    logging.getLogger("vllm").setLevel(os.environ.get("VLLM_LOGGING_LEVEL", "INFO").upper())
    return file_handler() or logging.NullHandler()


def configure_vllm_logs() -> None:
    """Let every process of vLLM write JSON objects from its first line on, where that is asked for.

    It is called before vLLM is imported. Its processes inherit the variable, and read it before any plugin is loaded.
    """
    if wants_json() and os.environ.get("VLLM_CONFIGURE_LOGGING", "1") == "1":
        os.environ.setdefault("VLLM_LOGGING_CONFIG_PATH", str(Path(__file__).with_name("vllm_logging.json")))


def configure_logs(descriptor: int | None = None) -> None:
    """Let the log lines of this process go where the environment says; nothing where it says nothing.

    Ours are written from level INFO on, those of other libraries from WARNING on. An error that nobody catches, and
    warnings of Python, become lines, too. Called again, it changes nothing but for libraries that have come since.

    Args:
        descriptor: of the file that takes the place of standard error.

    Raises:
        VariableError: a variable cannot be followed.
    """
    if (form := os.environ.get(FORM) or FORMS[0]) not in FORMS:
        raise VariableError(f"{FORM}={form}: it must be {' or '.join(FORMS)}")
    as_json, root = wants_json(), logging.getLogger()
    if not (as_json or os.environ.get(FILE)):
        return
    ours: list[logging.Handler] = [handler for handler in root.handlers if isinstance(handler, LineHandler)]
    if not ours:
        shown = LineHandler(descriptor)
        shown.setLevel(logging.INFO if as_json else logging.WARNING)
        shown.setFormatter(JsonFormatter() if as_json else logging.Formatter("%(message)s"))
        ours = [shown, *filter(None, [file_handler()])]
        for handler in ours:
            root.addHandler(handler)
        logging.getLogger(_PACKAGE).setLevel(logging.INFO)
        if as_json:
            logging.captureWarnings(True)
            sys.excepthook = _log_uncaught
    for name in _OWN_HANDLERS:
        other = logging.getLogger(name)
        if other.handlers and not other.propagate:
            own = [] if as_json else [handler for handler in other.handlers if handler not in ours]
            other.handlers = [*own, *(ours if as_json else ours[1:])]


def log_place() -> dict[str, str]:
    """Where this process is in a run: `run_id`, `job`, `round` and `stage`, as far as they are known."""
    # Without quotes and spaces: DeepSpeed hands the variable to other machines through a shell, and escapes nothing.
    items = (item.partition("=") for item in os.environ.get(CONTEXT, "").split(",") if item)
    return {name: unquote(value) for name, _, value in items}


@contextlib.contextmanager
def log_context(**place: str | None) -> Iterator[None]:
    """Add to what lines say of their place while the block runs, here and in processes that are started meanwhile.

    It holds for all threads of the process, since threads of a pool log for the stage that started them. What is None
    is left as it was.

    Examples:
        >>> with log_context(stage="reward_model", round="0"):
        ...     log_place()
        {'stage': 'reward_model', 'round': '0'}
        >>> log_place()
        {}
    """
    before = os.environ.get(CONTEXT)
    known = log_place() | {name: value for name, value in place.items() if value is not None}
    os.environ[CONTEXT] = ",".join(f"{name}={quote(value, safe='')}" for name, value in known.items())
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(CONTEXT, None)
        else:
            os.environ[CONTEXT] = before


@contextlib.contextmanager
def log_rows(ids: Iterable[str]) -> Iterator[None]:
    """Let lines that this thread logs while the block runs name the rows that it works on, where they name none.

    It is for what does not know its rows, such as whatever opens an image.

    Examples:
        >>> record = logging.LogRecord("dt2it_pipeline.media", 30, "", 0, "damaged", (), None)
        >>> with log_rows(["p1"]):
        ...     json.loads(JsonFormatter().format(record))["row_ids"]
        ['p1']
    """
    before = _rows.set(tuple(islice(ids, MOST_ROW_IDS)) or _rows.get())
    try:
        yield
    finally:
        _rows.reset(before)


def _log_uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Log an error that ends the process; one whose sentence says it all needs no traceback."""
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
        return
    mendable = isinstance(error, UserError | WorkerError)
    logging.getLogger(_PACKAGE).critical(
        "%s",
        error if mendable else f"{kind.__name__}: {error}",
        exc_info=None if mendable else (kind, error, traceback),
    )
