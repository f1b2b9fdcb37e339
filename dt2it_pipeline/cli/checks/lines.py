"""What a check says of one thing that it has looked at."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Line:
    """One thing that was looked at.

    Attributes:
        level: ok; warning: a run would work, but perhaps not as meant; error: a run would fail.
        topic: what was looked at, such as `recipe` or `source own_pairs`.
        text: what was found.
        advice: what to do about it; empty where all is well.
        details: the figures behind the text, for programs.
    """

    level: Level
    topic: str
    text: str
    advice: str = ""
    details: dict[str, Any] = field(default_factory=dict)
