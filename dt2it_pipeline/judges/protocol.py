"""What a judge is asked and what it answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from dt2it_pipeline.errors import UserError

LISTWISE, POINTWISE, PAIRWISE = "listwise", "pointwise", "pairwise"


class JudgeError(UserError, RuntimeError):
    """A judge cannot be built, or cannot answer one request."""

    help_page: ClassVar[str] = "troubleshooting#judge"


class JudgeStopped(UserError, RuntimeError):
    """A judge cannot answer any request any more (its endpoint refuses the key, say): the run must stop."""

    help_page: ClassVar[str] = "troubleshooting#judge-stopped"


@dataclass(frozen=True)
class JudgeRequest:
    """One call: a prompts row and the response texts in the order in which the judge is to see them.

    `mode` is listwise (all responses of a prompt at once), pointwise (one) or pairwise (two). `attempt` counts from 0;
    where a reply could not be used, the next attempt draws another one.
    """

    prompt: Mapping[str, Any]
    responses: tuple[str, ...]
    mode: str
    attempt: int = 0


@dataclass(frozen=True)
class Reply:
    """A judge's text as it came, whether it ended by itself, and what it cost in tokens."""

    text: str
    finished: bool = True
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Judge(Protocol):
    """Scores responses by the rubric, or decides which of two is better.

    `modes` are those it can judge in, `attempts` how often it is asked where its reply cannot be used. One that scores
    by something else than the six criteria has a further attribute `rubric` (`rubric.Rubric`).
    """

    name: str
    modes: frozenset[str]
    attempts: int

    def template_hash(self, mode: str, language: str) -> str:
        """Content hash of the words or rules by which this judge judges; judgements record it."""
        ...

    def fingerprint(self) -> Any:
        """What else decides its replies (model, sampling), as JSON-able parts; None where they need not be kept."""
        ...

    def judge(self, requests: Sequence[JudgeRequest]) -> Iterator[tuple[int, Reply | JudgeError]]:
        """The reply to each request, or the error that only this request met, with its place, as they come.

        Raises:
            JudgeStopped: none can be had any more; what was handed on before stands.
        """
        ...
