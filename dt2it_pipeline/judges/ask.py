"""Asking a judge: what is known is looked up, what cannot be used is asked again, and everything is counted.

A reply that cannot be used stays on disk for the record. The next run asks again, up to the judge's `max_runs`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Protocol

from dt2it_pipeline.judges.protocol import Judge, JudgeError, JudgeRequest, JudgeStopped, NoUsableReply, Reply
from dt2it_pipeline.judges.reply_cache import ReplyCache, reply_key
from dt2it_pipeline.judges.rubric import CONTRACTS, OK, SIX_CRITERIA, Verdict, read_reply

NO_REPLY = "no reply"
_SHOWN = 300  # characters of a reply that an error shows
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Unusable:
    """One reply that could not be used, or the error in its place: in which mode, why, and its text, shortened."""

    mode: str
    reason: str
    text: str


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
        example: the first reply that could not be used, or the first error where every reply could; None: there is
            neither.
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
    example: Unusable | None = None

    def add(self, other: Tally) -> None:
        """Count what another tally has counted. The example is the first reply that could not be used."""
        for counted in fields(self):
            if counted.name != "example":
                setattr(self, counted.name, getattr(self, counted.name) + getattr(other, counted.name))
        known, found = self.example, other.example
        if found is not None and (known is None or (known.reason == NO_REPLY and found.reason != NO_REPLY)):
            self.example = found

    def metadata(self, input_price: float = 0.0, output_price: float = 0.0) -> dict[str, Any]:
        """The counts, the share of replies found on disk, and costs (prices are per million tokens)."""
        replies = self.looked_up + self.asked
        cost = (self.prompt_tokens * input_price + self.completion_tokens * output_price) / 1e6
        saved = (self.cached_prompt_tokens * input_price + self.cached_completion_tokens * output_price) / 1e6
        counts = asdict(self)
        del counts["example"]
        if self.unusable and self.example is not None:
            counts["unusable_example"] = f"{self.example.reason}: {self.example.text}"
        return counts | {
            "cache_hit_rate": round(self.looked_up / replies, 4) if replies else 0.0,
            "cost": round(cost, 6),
            "cost_saved": round(saved, 6),
        }


def ask(
    judge: Judge,
    requests: Sequence[JudgeRequest],
    cache: ReplyCache,
    tally: Tally,
    heard: dict[int, Reply] | None = None,
) -> list[list[Verdict]]:
    """The verdicts on each request, one per response; faults are verdicts, too.

    A reply that cannot be used is asked for again, `judge.attempts` times in all; then its fault stands for this run,
    with the raw text. A later run asks again, until `judge.max_runs` runs have. A request that met an error is not
    asked again: the engine has tried.

    Args:
        judge: who is asked.
        requests: what it is asked.
        cache: replies that are known; new ones are put there.
        tally: is counted on.
        heard: takes the reply behind each request's verdicts, by the place of the request; a request that met an error
            has none.

    Raises:
        JudgeStopped: the judge cannot answer any more. What it has answered is kept.
    """
    verdicts: list[list[Verdict]] = [[]] * len(requests)
    rubric = getattr(judge, "rubric", SIX_CRITERIA)

    def fault(place: int, reply: Reply | JudgeError) -> str:
        request = requests[place]
        if heard is not None:
            heard.pop(place, None)
            if isinstance(reply, Reply):
                heard[place] = reply
        if isinstance(reply, JudgeError):
            verdicts[place] = [Verdict(NO_REPLY, detail=str(reply))] * len(request.responses)
        else:
            material = request.texts() if getattr(judge, "writes", False) else ()
            verdicts[place] = read_reply(reply, request.mode, len(request.responses), rubric, material)
        return next((verdict.status for verdict in verdicts[place] if verdict.status != OK), "")

    replies(judge, requests, cache, tally, fault)
    return verdicts


def replies(
    judge: Judge,
    requests: Sequence[JudgeRequest],
    cache: ReplyCache,
    tally: Tally,
    fault: Callable[[int, Reply | JudgeError], str],
) -> None:
    """Hand every request's reply or error to `fault`, and ask again where that returns why it cannot be used.

    See `ask`; a place is handed over once per attempt.
    """
    pending = list(range(len(requests)))
    tally.calls += len(requests)
    done = 0  # requests that are judged, or met an error
    asked_here: set[int] = set()
    for number in range(judge.max_runs * judge.attempts):
        run, attempt = divmod(number, judge.attempts)
        if not attempt:  # what this run has asked for in vain waits for the next one
            pending = [place for place in pending if place not in asked_here]
        tally.asked_again += len(pending) if number else 0
        again: list[int] = []
        asked = [replace(requests[place], attempt=attempt, run=run) for place in pending]
        for index, reply, from_here in _replies(judge, asked, cache, tally):
            place = pending[index]
            if from_here:
                asked_here.add(place)
            reason = fault(place, reply)
            if isinstance(reply, JudgeError):
                tally.no_reply += 1
                done += 1
            elif not reason:
                tally.judged += 1
                done += 1
            else:
                again.append(place)
            _note(tally, requests[place].mode, reason, reply)
        pending = sorted(again)
    tally.unusable += len(requests) - done


class Limited(Protocol):
    """A judge, or its settings: who is asked, and in how many runs."""

    @property
    def name(self) -> str:
        """See Judge."""
        ...

    @property
    def max_runs(self) -> int:
        """See Judge."""
        ...


def require_usable(judge: Limited, tally: Tally) -> None:
    """Raise NoUsableReply where a judge was asked and not one reply could be used."""
    if tally.judged or not tally.calls or tally.example is None:
        return
    words = f"the judge {judge.name} gave no usable reply to any of its {tally.calls:,} requests"
    if tally.no_reply:
        words += f" ({tally.no_reply:,} met an error, {tally.unusable:,} got a reply that cannot be used)"
    example = tally.example
    words += f". One of them, {example.mode}, {example.reason}: {example.text!r}."
    if example.reason != NO_REPLY and example.mode in CONTRACTS:
        words += f" {CONTRACTS[example.mode]}"
    raise NoUsableReply(
        words,
        "`dt2it check --call-judges` asks each judge of the recipe once and shows request and reply. "
        f"Correct the judge's settings and run this again; with the same settings it is asked in {judge.max_runs} runs",
    )


def _note(tally: Tally, mode: str, reason: str, reply: Reply | JudgeError) -> None:
    """Keep the first fault as the tally's example; a reply rather than an error."""
    known = tally.example
    if reason and (known is None or (known.reason == NO_REPLY and isinstance(reply, Reply))):
        text = " ".join((reply.text if isinstance(reply, Reply) else str(reply)).split())
        tally.example = Unusable(mode, reason, text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")


def _replies(
    judge: Judge, requests: Sequence[JudgeRequest], cache: ReplyCache, tally: Tally
) -> Iterator[tuple[int, Reply | JudgeError, bool]]:
    """Every request's reply or error, once, those on disk first; with it, whether this run asked for it."""
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
        yield place, known[key], key in cache.put_here
    for index, reply in asked_one_by_one(judge, [requests[place] for place in missing]):
        place = missing[index]
        if isinstance(reply, Reply):
            tally.asked += 1
            tally.prompt_tokens += reply.prompt_tokens
            tally.completion_tokens += reply.completion_tokens
            key = keys[place]
            if key is not None:
                cache.put(key, reply)
        yield place, reply, True


def asked_one_by_one(judge: Judge, requests: Sequence[JudgeRequest]) -> Iterator[tuple[int, Reply | JudgeError]]:
    """The judge's replies; where a batch brings it down, the rest is asked one request at a time.

    A judge that does so itself (`isolates`, see `Judge`) is asked once.

    Raises:
        JudgeStopped: none can be had any more. From a judge that isolates faults, whatever it raises.
    """
    if not requests:
        return
    if getattr(judge, "isolates", False):
        yield from judge.judge(requests)
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
            row = requests[0].prompt["prompt_id"]
            logger.warning("judge %s failed on prompt %s: %s", judge.name, row, fault, extra={"row_ids": [row]})
            yield place, JudgeError(f"{type(fault).__name__}: {fault}")
        else:
            yield from ((place, reply) for _, reply in asked_one_by_one(judge, [requests[place]]))
