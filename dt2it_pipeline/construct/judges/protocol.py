"""What a judge is asked and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

LISTWISE, POINTWISE = "listwise", "pointwise"


class JudgeError(RuntimeError):
    """A judge cannot be built, or cannot answer one request."""


@dataclass(frozen=True)
class JudgeRequest:
    """One call: a prompts row and the response texts in the order in which the judge is to see them.

    `mode` is listwise (all responses of a prompt at once) or pointwise (one).
    """

    prompt: Mapping[str, Any]
    responses: tuple[str, ...]
    mode: str


class Judge(Protocol):
    """Scores responses by the rubric."""

    name: str

    def template_hash(self, mode: str, language: str) -> str:
        """Content hash of the words or rules by which this judge judges, so that a judgement says how it came about."""
        ...

    def judge(self, requests: Sequence[JudgeRequest]) -> list[str | JudgeError]:
        """One reply per request: the judge's JSON text as it came, or the error that only this request met."""
        ...
