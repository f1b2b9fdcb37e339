"""The errors of the package: one base class, and below it who can do what about the error.

- `UserError`: a person can mend it, such as a recipe with an unknown setting or a missing file.
- `RowError`: one row, image or prompt cannot be used. It costs that row, which goes to the table `quarantine`.
- `WorkerError`: another process failed.

A message says what happened, where, and what to do.
"""

from __future__ import annotations

from typing import ClassVar


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
