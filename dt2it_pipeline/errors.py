"""The errors of the package: one base class, and below it who can do what about the error.

- `UserError`: a person can mend it, such as a recipe with an unknown setting or a missing file.
- `RowError`: one row, image or prompt cannot be used. It costs that row, which goes to the table `quarantine`.
- `WorkerError`: another process failed.

A message says what happened, where, and what to do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import ClassVar

# What the extras `cpu` and `gpu` bring, by the names under which it is imported.
_ENGINES = frozenset(
    {"accelerate", "deepspeed", "peft", "safetensors", "tensorboard", "tokenizers", "torch", "transformers", "vllm"}
)
INSTALL_ENGINES = "pip install 'dt2it-pipeline[gpu]' (or [cpu])"


class Dt2itError(Exception):
    """Base of all errors that this package raises on purpose."""


class UserError(Dt2itError):
    """A person can mend what is wrong; the message says how.

    Attributes:
        help_page: page and anchor below docs/ that explain the error, such as `troubleshooting#recipe`; empty where
            the message says it all.
    """

    help_page: ClassVar[str] = ""


class RowError(Dt2itError, ValueError):
    """A row, a medium or a prompt cannot be used.

    Attributes:
        reason: a short fixed phrase, by which quarantine rows are counted.
        detail: what was found; may be empty.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)  # both, so that it can travel between processes
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


class WorkerError(Dt2itError, RuntimeError):
    """Another process failed; the message names it and says why."""


class NotInstalledError(UserError, ImportError):
    """A command or a name needs an engine that is not installed; the message has the command that installs it."""

    help_page: ClassVar[str] = "troubleshooting#engine"


@contextlib.contextmanager
def naming_missing_engines() -> Iterator[None]:
    """Report an engine that cannot be imported in the block because it is not installed.

    Raises:
        NotInstalledError: torch, transformers, vLLM or another package of the extras `cpu` and `gpu` is missing.

    >>> with naming_missing_engines():
    ...     raise ModuleNotFoundError("No module named 'vllm.v1'", name="vllm.v1")
    Traceback (most recent call last):
    ...
    dt2it_pipeline.errors.NotInstalledError: not installed: vllm -> pip install 'dt2it-pipeline[gpu]' (or [cpu])
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _ENGINES:
            raise
        raise NotInstalledError(f"not installed: {missing} -> {INSTALL_ENGINES}") from None
