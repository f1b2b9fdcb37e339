"""Verdicts on preference pairs by a judge that compares two responses, for the annotation of contested pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dt2it_pipeline.judges.ask import Tally, ask
from dt2it_pipeline.judges.protocol import PAIRWISE, Judge, JudgeRequest, Reply
from dt2it_pipeline.judges.reply_cache import ReplyCache
from dt2it_pipeline.judges.rubric import OK
from dt2it_pipeline.storage.records import writable

CHOSEN, REJECTED, TIE = "chosen", "rejected", "tie"
FORWARD, REVERSED = ORDERS = ("forward", "reversed")
LOWER_FIRST = {FORWARD: 1.0, REVERSED: -1.0}  # 1: the judge saw the side with the lower id first; -1: last
MOST_WORDS = 4000  # characters of a reply that a table of votes keeps


@dataclass(frozen=True)
class PairVerdict:
    """A judge's verdict on a pair.

    Attributes:
        side: `chosen`, `rejected` or `tie`.
        words: what the judge wrote, as `kept_words` keeps it; None where it writes nothing.
    """

    side: str
    words: str | None = None


@dataclass(frozen=True)
class NoVerdict:
    """Why a judge has no verdict on a pair: a short fixed phrase, what was found, and its words as in `PairVerdict`."""

    reason: str
    detail: str
    words: str | None = None


def kept_words(text: str) -> str:
    """A reply as a table of votes keeps it: its first MOST_WORDS characters, with a mark where it was cut.

    >>> kept_words("A is right."), kept_words("word " * 1000)[-43:]
    ('A is right.', ' [cut here: the reply has 5,000 characters]')
    """
    if len(text) <= MOST_WORDS:
        return writable(text)
    return f"{writable(text[:MOST_WORDS])} [cut here: the reply has {len(text):,} characters]"


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
        if order not in ORDERS:
            raise ValueError(f"order must be forward or reversed, not {order!r}")
        self.judge, self._prompts, self._order = judge, prompts, order
        self._cache = cache or ReplyCache(None)
        self.tally = Tally()

    @property
    def calls(self) -> int:
        """Replies that were asked for; those found on disk are free."""
        return self.tally.asked

    @property
    def cached(self) -> int:
        """Replies that were found in the cache."""
        return self.tally.looked_up

    def verdicts(self, pairs: Sequence[Mapping[str, Any]]) -> list[PairVerdict | NoVerdict]:
        """The verdict on each row of a pairs table, or why there is none. Replies from the cache have words, too.

        Raises:
            JudgeStopped: the judge cannot answer any more.
        """
        found: list[PairVerdict | NoVerdict] = []
        places: list[int] = []
        requests: list[JudgeRequest] = []
        for place, pair in enumerate(pairs):
            prompt = self._prompts.get(pair["prompt_id"])
            found.append(NoVerdict("unknown prompt", str(pair["prompt_id"])))
            if prompt is not None:
                places.append(place)
                sides = (pair["chosen"], pair["rejected"])
                requests.append(JudgeRequest(prompt, sides if self._chosen_first(pair) else sides[::-1], PAIRWISE))
        heard: dict[int, Reply] = {}  # by place of the request, the last one
        judged = ask(self.judge, requests, self._cache, self.tally, heard)
        for number, (place, verdicts) in enumerate(zip(places, judged, strict=True)):
            first = verdicts[0]
            words = kept_words(heard[number].text) if number in heard else None
            if first.status != OK or first.score is None:
                found[place] = NoVerdict(first.status, first.detail, words)
            elif first.score == verdicts[1].score:
                found[place] = PairVerdict(TIE, words)
            else:
                chosen = (first.score == 1) == self._chosen_first(pairs[place])
                found[place] = PairVerdict(CHOSEN if chosen else REJECTED, words)
        return found

    def _chosen_first(self, pair: Mapping[str, Any]) -> bool:
        return (pair["chosen_id"] < pair["rejected_id"]) == (self._order == FORWARD)
