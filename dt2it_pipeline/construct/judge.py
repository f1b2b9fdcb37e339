"""Listwise and pointwise judgements of candidate responses (DT2IT-MRM, part 1, steps 2, 3 and 5)."""

from __future__ import annotations

import itertools
import json
import logging
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from dt2it_pipeline import records
from dt2it_pipeline.construct.judges.protocol import LISTWISE, POINTWISE, Judge, JudgeError, JudgeRequest
from dt2it_pipeline.construct.judges.reference import ReferenceJudge
from dt2it_pipeline.construct.judges.rubric import OK, Verdict, parse_reply
from dt2it_pipeline.recipe import JudgingSettings

STAGE = "judge"
FAILED = "no reply"
_BATCH = 1024  # requests handed to the judge at once
_ALL_ORDERS = 4  # lists up to this long have few enough orders (24) to draw from without repetition

Row = dict[str, Any]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Call:
    """One request, and which responses it presents in which order."""

    request: JudgeRequest
    response_ids: tuple[str, ...]
    order: tuple[int, ...]


def make_judge(settings: JudgingSettings, prompts: pa.Table) -> Judge:
    """The judge that the recipe names; `prompts` are all prompts that it will be asked about."""
    return ReferenceJudge(prompts.to_pylist())


def judge_responses(
    prompts: pa.Table, responses: pa.Table, judge: Judge, settings: JudgingSettings, seed: int
) -> tuple[pa.Table, pa.Table]:
    """Judge every response listwise, in `settings.orders` shuffled orders, and pointwise.

    A judge that fails or answers nonsense costs what it was asked about and no more: a faulty listwise reply sets all
    responses of its prompt aside (scores in a list are relative to each other), a faulty pointwise reply its response.

    Args:
        prompts: prompts table.
        responses: responses table.
        judge: who judges.
        settings: orders per list.
        seed: of the orders; each prompt's orders depend only on it and on the prompt.

    Returns:
        Judgements (one row per response and presentation, faulty ones included with their status and no score) and
        set_aside (one row per response that cannot be used: response_id, reason, detail). Every response either has an
        `ok` judgement for each presentation or is set aside.
    """
    by_id = {row["prompt_id"]: row for row in prompts.to_pylist()}
    grouped: dict[str, list[Row]] = {}
    aside: dict[str, dict[str, str]] = {}
    for row in responses.to_pylist():
        if row["prompt_id"] in by_id:
            grouped.setdefault(row["prompt_id"], []).append(row)
        else:
            aside[row["response_id"]] = _aside(row["response_id"], "unknown prompt", row["prompt_id"], "")
    calls = [
        call for key, group in grouped.items() for call in _calls(by_id[key], group, settings.orders, f"{seed}:{key}")
    ]
    judgements: list[Row] = []
    for start in range(0, len(calls), _BATCH):
        batch = calls[start : start + _BATCH]
        for call, reply in zip(batch, _ask(judge, [call.request for call in batch]), strict=True):
            verdicts = _verdicts(reply, len(call.response_ids))
            judgements += _rows(call, verdicts, judge)
            for response_id, reason, detail in _faults(call, verdicts):
                source = call.request.prompt["source"]
                aside.setdefault(response_id, _aside(response_id, reason, f"{call.request.mode}: {detail}", source))
    return records.table(judgements, "judgements"), records.table(aside.values(), "set_aside")


def presentation_orders(count: int, orders: int, seed: object) -> list[tuple[int, ...]]:
    """Different permutations of range(count), `orders` of them or as many as there are, never the identity.

    The one permutation of a single response is the identity; it is given once. Item i of a permutation is the index of
    the response that stands in place i.
    """
    identity = tuple(range(count))
    if count < 2:
        return [identity]
    rng = random.Random(str(seed))
    if count <= _ALL_ORDERS:
        every = [order for order in itertools.permutations(identity) if order != identity]
        return rng.sample(every, min(orders, len(every)))
    found: list[tuple[int, ...]] = []
    while len(found) < min(orders, math.factorial(count) - 1):
        order = tuple(rng.sample(identity, count))
        if order != identity and order not in found:
            found.append(order)
    return found


def _calls(prompt: Row, group: Sequence[Row], orders: int, seed: str) -> list[_Call]:
    calls = [
        _Call(
            JudgeRequest(prompt, tuple(group[i]["text"] for i in order), LISTWISE),
            tuple(group[i]["response_id"] for i in order),
            order,
        )
        for order in presentation_orders(len(group), orders, seed)
    ]
    return calls + [_Call(JudgeRequest(prompt, (row["text"],), POINTWISE), (row["response_id"],), ()) for row in group]


def _ask(judge: Judge, requests: Sequence[JudgeRequest]) -> Sequence[str | JudgeError]:
    """The judge's replies; a batch that brings the judge down is asked again one request at a time."""
    try:
        replies = judge.judge(requests)
        if len(replies) != len(requests):
            raise JudgeError(f"{len(replies)} replies to {len(requests)} requests")
        return replies
    except Exception as error:
        if len(requests) == 1:
            logger.warning("judge %s failed on prompt %s: %s", judge.name, requests[0].prompt["prompt_id"], error)
            return [JudgeError(f"{type(error).__name__}: {error}")]
        return [_ask(judge, [request])[0] for request in requests]


def _verdicts(reply: str | JudgeError, count: int) -> list[Verdict]:
    if isinstance(reply, str):
        return parse_reply(reply, count)
    return [Verdict(FAILED, detail=str(reply))] * count


def _rows(call: _Call, verdicts: Sequence[Verdict], judge: Judge) -> list[Row]:
    prompt, mode = call.request.prompt, call.request.mode
    shared = {
        "prompt_id": prompt["prompt_id"],
        "judge": judge.name,
        "mode": mode,
        "order": list(call.order),
        "template_hash": judge.template_hash(mode, prompt["language"]),
    }
    return [
        shared
        | {
            "response_id": response_id,
            "score": verdict.score,
            "criteria": json.dumps(verdict.criteria, sort_keys=True),
            "status": verdict.status,
        }
        for response_id, verdict in zip(call.response_ids, verdicts, strict=True)
    ]


def _faults(call: _Call, verdicts: Sequence[Verdict]) -> list[tuple[str, str, str]]:
    """(response_id, reason, detail) of every response that this call's faults make unusable."""
    faulty = next((verdict for verdict in verdicts if verdict.status != OK), None)
    if faulty is None:
        return []
    return [(response_id, faulty.status, faulty.detail) for response_id in call.response_ids]


def _aside(row_id: str, reason: str, detail: str, source: str) -> dict[str, str]:
    return records.set_aside_row(row_id, STAGE, reason, detail, source)
