"""The result of one health check, as people and monitoring systems read it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class HealthCheck:
    """One thing that was looked at.

    Attributes:
        name: what, such as `disk` or `judge gpt`; the same in every call.
        status: ok; warning: work goes on, but not as it should; failed: a run would fail, or nothing starts by itself.
        detail: what was found.
        advice: what to do; empty where all is well.
    """

    name: str
    status: Status
    detail: str
    advice: str = ""


def is_healthy(checks: Iterable[HealthCheck]) -> bool:
    """Whether no check has failed; warnings are no failures.

    Examples:
        >>> is_healthy([HealthCheck("disk", "ok", "9 GB free"), HealthCheck("daemon", "warning", "never ran")])
        True
    """
    return all(check.status != "failed" for check in checks)
