"""The error of what cannot be used, from which stages take the reason that goes to their quarantine table."""

from __future__ import annotations


class UnusableError(ValueError):
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
