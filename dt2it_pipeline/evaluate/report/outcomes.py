"""What became of the pairs of one round, which of them are suspicious, and what all of it cost.

What belongs here: these structures. What does not: how they are read from artifacts (`orchestrate.report`), and what
the page says of them (`estimates`, `html`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Outcome = Literal["kept", "flipped", "dropped"]


@dataclass(frozen=True)
class SourceOutcomes:
    """What became of the noisy pairs of one source in one round, in pairs.

    Attributes:
        source: its name.
        kept: pairs that stay with the label that they came with.
        flipped: pairs that stay with the other side chosen.
        dropped: reason -> pairs.
        contested: pairs that the vote left in doubt, whatever became of them; they count above, too.
    """

    source: str
    kept: int
    flipped: int
    dropped: Mapping[str, int] = field(default_factory=dict)
    contested: int = 0

    @property
    def pairs(self) -> int:
        """All of them.

        >>> SourceOutcomes("mine", kept=80, flipped=15, dropped={"not sure enough": 5}, contested=30).pairs
        100
        """
        return self.kept + self.flipped + sum(self.dropped.values())


@dataclass(frozen=True)
class Suspect:
    """A pair whose label, as it came, is most probably wrong.

    Attributes:
        pair_id, source, row_id: where it is found.
        question, chosen, rejected: its texts, as they came.
        probability: that its label is right, 0 to 1; None under a policy that does not say.
        outcome: what became of it.
        why: who speaks against the label.
    """

    pair_id: str
    source: str
    row_id: str
    question: str
    chosen: str
    rejected: str
    probability: float | None
    outcome: Outcome
    why: str


@dataclass(frozen=True)
class Cost:
    """What one part of a run took.

    Attributes:
        part: "before the rounds", "round 0", "control".
        judge_calls: questions that judges answered; those found in the cache of replies are not among them.
        cached_replies: those found in the cache of replies.
        prompt_tokens, completion_tokens: of the calls whose judges count tokens.
        seconds: of wall time.
        gpu_seconds: GPUs times seconds, of the steps that recorded the use of a GPU.
    """

    part: str
    judge_calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    gpu_seconds: float = 0.0
    cached_replies: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.part,
            self.judge_calls + other.judge_calls,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.seconds + other.seconds,
            self.gpu_seconds + other.gpu_seconds,
            self.cached_replies + other.cached_replies,
        )


def together(costs: Sequence[Cost]) -> Cost:
    """The sum of all parts.

    >>> whole = together([Cost("round 0", judge_calls=10, seconds=60), Cost("round 1", judge_calls=5, seconds=30)])
    >>> whole.part, whole.judge_calls, whole.seconds
    ('together', 15, 90.0)
    """
    return sum(costs, Cost("together"))


def cost_rows(costs: Sequence[Cost]) -> list[Cost]:
    """The parts that took something and, where there are several, their sum."""
    rows = [one for one in costs if one.seconds or one.judge_calls or one.cached_replies]
    return [*rows, together(rows)] if len(rows) > 1 else rows


def cost_columns(costs: Sequence[Cost]) -> dict[str, bool]:
    """Which columns of the table of costs have something to say: `calls`, `cached`, `tokens`, `gpu`."""
    whole = together(costs)
    return {
        "calls": whole.judge_calls + whole.cached_replies > 0,
        "cached": whole.cached_replies > 0,
        "tokens": whole.prompt_tokens + whole.completion_tokens > 0,
        "gpu": whole.gpu_seconds > 0,
    }
