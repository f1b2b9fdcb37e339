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


class NoUsableReply(UserError, RuntimeError):
    """A judge has answered, and none of its replies can be used: more calls would be of no use, so the run stops.

    Args:
        found: what happened, with an example.
        advice: what to do, which depends on where the judge's settings stand.
    """

    help_page: ClassVar[str] = "troubleshooting#no-usable-reply"

    def __init__(self, found: str, advice: str = "") -> None:
        super().__init__(f"{found} {advice}".rstrip())
        self.found = found


@dataclass(frozen=True)
class JudgeRequest:
    """One call: a prompts row and the response texts in the order in which the judge is to see them.

    `mode` is listwise (all responses of a prompt at once), pointwise (one) or pairwise (two). `attempt` counts from 0;
    where a reply could not be used, the next attempt draws another one. `run` counts the runs that asked, from 0: a
    later run asks again where no attempt of an earlier one gave a usable reply.
    """

    prompt: Mapping[str, Any]
    responses: tuple[str, ...]
    mode: str
    attempt: int = 0
    run: int = 0

    def texts(self) -> tuple[str, ...]:
        """Every text of data that a judge is shown for this request: turns, reference answer, responses."""
        turns = (str(turn["text"]) for turn in self.prompt["turns"])
        return (*turns, self.prompt["reference"] or "", *self.responses)


@dataclass(frozen=True)
class Reply:
    """A judge's text as it came, whether it ended by itself, and what it cost in tokens."""

    text: str
    finished: bool = True
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Judge(Protocol):
    """Scores responses by the rubric, or decides which of two is better.

    `modes` are those it can judge in, `attempts` how often a run asks it where its reply cannot be used, and `max_runs`
    how many runs do so. One that scores by something else than the six criteria has a further attribute `rubric`
    (`rubric.Rubric`). One whose replies are a model's words has `writes = True`: a verdict that it quotes from a text
    is not taken for its own. One with `isolates = True` has seen to it that a request that fails costs no other: what
    it raises ends the run. One that answers well only many requests together has `at_once`, how many.
    """

    name: str
    modes: frozenset[str]
    attempts: int
    max_runs: int

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
