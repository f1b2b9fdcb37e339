"""What ends a training or a scoring; below the modules that raise it."""

from __future__ import annotations

from typing import ClassVar

from dt2it_pipeline.errors import UserError


class TrainingError(UserError, RuntimeError):
    """Training cannot start or go on; the message says what to change."""

    help_page: ClassVar[str] = "troubleshooting#training"


class ScoringError(UserError, RuntimeError):
    """Scoring cannot start or go on; the message says why."""

    help_page: ClassVar[str] = "troubleshooting#scoring"
