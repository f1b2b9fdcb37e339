"""Verdicts on preference pairs by a judge that compares two responses, for the annotation of contested pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dt2it_pipeline.judges.ask import Tally, ask
from dt2it_pipeline.judges.protocol import PAIRWISE, Judge, JudgeRequest
from dt2it_pipeline.judges.reply_cache import ReplyCache
from dt2it_pipeline.judges.rubric import OK

CHOSEN, REJECTED, TIE = "chosen", "rejected", "tie"


@dataclass(frozen=True)
class NoVerdict:
    """Why a judge has no verdict on a pair: a short fixed phrase, and what was found."""

    reason: str
    detail: str


class PairwiseVotes:
    """Asks a judge which side of each pair is better, in one order of presentation.

    The order has nothing to do with the label: `forward` shows the response with the lower id first (a hash of its
    text), `reversed` the other one. So two judges in opposite orders, or one judge asked twice, show a habit of place.

    Args:
        judge: any judge with the mode pairwise.
        prompts: prompts rows by id.
        order: forward or reversed.
        cache: where replies are kept; in memory when None.
    """

    def __init__(
        self, judge: Judge, prompts: Mapping[str, Mapping[str, Any]], order: str, cache: ReplyCache | None = None
    ) -> None:
        if order not in ("forward", "reversed"):
            raise ValueError(f"order must be forward or reversed, not {order!r}")
        self.judge, self._prompts, self._order = judge, prompts, order
        self._cache = cache or ReplyCache(None)
        self.tally = Tally()

    @property
    def calls(self) -> int:
        """Replies that were asked for; those found on disk are free."""
        return self.tally.asked

    def verdicts(self, pairs: Sequence[Mapping[str, Any]]) -> list[str | NoVerdict]:
        """`chosen`, `rejected` or `tie` for each row of a pairs table, or why there is none.

        Raises:
            JudgeStopped: the judge cannot answer any more.
        """
        found: list[str | NoVerdict] = []
        places: list[int] = []
        requests: list[JudgeRequest] = []
        for place, pair in enumerate(pairs):
            prompt = self._prompts.get(pair["prompt_id"])
            found.append(NoVerdict("unknown prompt", str(pair["prompt_id"])))
            if prompt is not None:
                places.append(place)
                sides = (pair["chosen"], pair["rejected"])
                requests.append(JudgeRequest(prompt, sides if self._chosen_first(pair) else sides[::-1], PAIRWISE))
        for place, verdicts in zip(places, ask(self.judge, requests, self._cache, self.tally), strict=True):
            first = verdicts[0]
            if first.status != OK or first.score is None:
                found[place] = NoVerdict(first.status, first.detail)
            elif first.score == verdicts[1].score:
                found[place] = TIE
            else:
                found[place] = CHOSEN if (first.score == 1) == self._chosen_first(pairs[place]) else REJECTED
        return found

    def _chosen_first(self, pair: Mapping[str, Any]) -> bool:
        return (pair["chosen_id"] < pair["rejected_id"]) == (self._order == "forward")
