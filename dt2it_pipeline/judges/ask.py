"""Asking a judge: what is known is looked up, what cannot be used is asked again, and everything is counted."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from dt2it_pipeline.judges.protocol import Judge, JudgeError, JudgeRequest, JudgeStopped, Reply
from dt2it_pipeline.judges.reply_cache import ReplyCache, reply_key
from dt2it_pipeline.judges.rubric import OK, SIX_CRITERIA, Verdict, read_reply

FAILED = "no reply"
logger = logging.getLogger(__name__)


@dataclass
class Tally:
    """What asking one judge came to.

    Attributes:
        calls: requests, each counted once: calls = judged + unusable + no_reply.
        judged: with a usable reply.
        unusable: with replies, none of which could be used.
        no_reply: met an error.
        asked_again: further attempts after replies that could not be used.
        looked_up: replies found on disk.
        asked: replies that were asked for.
        prompt_tokens, completion_tokens: of the replies that were asked for.
        cached_prompt_tokens, cached_completion_tokens: of those found on disk.
    """

    calls: int = 0
    judged: int = 0
    unusable: int = 0
    no_reply: int = 0
    asked_again: int = 0
    looked_up: int = 0
    asked: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_prompt_tokens: int = 0
    cached_completion_tokens: int = 0

    def metadata(self, input_price: float = 0.0, output_price: float = 0.0) -> dict[str, Any]:
        """The counts, the share of replies found on disk, and costs (prices are per million tokens)."""
        replies = self.looked_up + self.asked
        cost = (self.prompt_tokens * input_price + self.completion_tokens * output_price) / 1e6
        saved = (self.cached_prompt_tokens * input_price + self.cached_completion_tokens * output_price) / 1e6
        return asdict(self) | {
            "cache_hit_rate": round(self.looked_up / replies, 4) if replies else 0.0,
            "cost": round(cost, 6),
            "cost_saved": round(saved, 6),
        }


def ask(judge: Judge, requests: Sequence[JudgeRequest], cache: ReplyCache, tally: Tally) -> list[list[Verdict]]:
    """The verdicts on each request, one per response; faults are verdicts, too.

    A reply that cannot be used is asked for again, `judge.attempts` times in all; then its fault stands, with the raw
    text. A request that met an error is not asked again: the engine has tried.

    Raises:
        JudgeStopped: the judge cannot answer any more. What it has answered is kept.
    """
    verdicts: list[list[Verdict]] = [[]] * len(requests)
    rubric = getattr(judge, "rubric", SIX_CRITERIA)

    def usable(place: int, reply: Reply | JudgeError) -> bool:
        request = requests[place]
        if isinstance(reply, JudgeError):
            verdicts[place] = [Verdict(FAILED, detail=str(reply))] * len(request.responses)
        else:
            verdicts[place] = read_reply(reply, request.mode, len(request.responses), rubric)
        return all(verdict.status == OK for verdict in verdicts[place])

    replies(judge, requests, cache, tally, usable)
    return verdicts


def replies(
    judge: Judge,
    requests: Sequence[JudgeRequest],
    cache: ReplyCache,
    tally: Tally,
    usable: Callable[[int, Reply | JudgeError], bool],
) -> None:
    """Hand every request's reply or error to `usable`, and ask again where it returns False.

    See `ask`; a place is handed over once per attempt.
    """
    pending = list(range(len(requests)))
    tally.calls += len(requests)
    for attempt in range(judge.attempts):
        again: list[int] = []
        tally.asked_again += len(pending) if attempt else 0
        asked = [replace(requests[place], attempt=attempt) for place in pending]
        for index, reply in _replies(judge, asked, cache, tally):
            place = pending[index]
            good = usable(place, reply)
            if isinstance(reply, JudgeError):
                tally.no_reply += 1
            elif good:
                tally.judged += 1
            elif attempt + 1 < judge.attempts:
                again.append(place)
            else:
                tally.unusable += 1
        pending = sorted(again)


def _replies(
    judge: Judge, requests: Sequence[JudgeRequest], cache: ReplyCache, tally: Tally
) -> Iterator[tuple[int, Reply | JudgeError]]:
    """Every request's reply or error, once, those on disk first."""
    keys = [reply_key(judge, request) for request in requests]
    known = cache.get([key for key in keys if key is not None])
    missing: list[int] = []
    for place, key in enumerate(keys):
        if key is None or key not in known:
            missing.append(place)
            continue
        tally.looked_up += 1
        tally.cached_prompt_tokens += known[key].prompt_tokens
        tally.cached_completion_tokens += known[key].completion_tokens
        yield place, known[key]
    for index, reply in _asked(judge, [requests[place] for place in missing]):
        place = missing[index]
        if isinstance(reply, Reply):
            tally.asked += 1
            tally.prompt_tokens += reply.prompt_tokens
            tally.completion_tokens += reply.completion_tokens
            key = keys[place]
            if key is not None:
                cache.put(key, reply)
        yield place, reply


def _asked(judge: Judge, requests: Sequence[JudgeRequest]) -> Iterator[tuple[int, Reply | JudgeError]]:
    """The judge's replies; where a batch brings it down, the rest is asked one request at a time."""
    if not requests:
        return
    left = set(range(len(requests)))
    try:
        for place, reply in judge.judge(requests):
            left.remove(place)  # a place twice, or one that is not there, is a judge's fault like any other
            yield place, reply
        fault: Exception | None = JudgeError("the judge passed over this request") if left else None
    except JudgeStopped:
        raise
    except Exception as error:
        fault = error
    for place in sorted(left):
        if len(requests) == 1:
            logger.warning("judge %s failed on prompt %s: %s", judge.name, requests[0].prompt["prompt_id"], fault)
            yield place, JudgeError(f"{type(fault).__name__}: {fault}")
        else:
            yield from ((place, reply) for _, reply in _asked(judge, [requests[place]]))
