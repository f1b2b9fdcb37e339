"""The six criteria of DT2IT-MRM's scoring (part 1, steps 2 and 3), and how a judge's JSON is read.

The form of a reply:

    {"reference": "the judge's own answer",
     "responses": [{"response": 1,
                    "criteria": {"Accuracy": {"weight": 0.4, "score": 9, "analysis": "..."}, ...all six...},
                    "overall": 8.45}, ...]}

The overall score that counts is computed here from the scores and weights: judges are poor at arithmetic.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

CRITERIA = ("Accuracy", "Helpfulness", "Completeness", "Language Quality", "Creativity", "Ethics")
MAX_SCORE = 10
WEIGHT_TOLERANCE = 0.02  # judges round their weights; beyond this they did not understand the task

OK, UNPARSABLE, MISSING = "ok", "unparsable", "missing response"
BAD_CRITERIA, BAD_SCORE, BAD_WEIGHTS = "missing criterion", "score out of range", "weights do not sum to 1"


@dataclass(frozen=True)
class Verdict:
    """One response's judgement: status `ok` with a score of 0 to 10, or the reason why there is none."""

    status: str
    score: float | None = None
    criteria: dict[str, dict[str, float]] = field(default_factory=dict)  # criterion -> weight and score
    detail: str = ""


def parse_reply(text: str, count: int) -> list[Verdict]:
    """Read a judge's reply on `count` responses; one verdict per response in the order of presentation.

    Text around the JSON object (a code fence, a preamble) is ignored. Never raises: what cannot be read is a verdict
    whose status says so.
    """
    payload = _first_object(text)
    if payload is None or not isinstance(payload.get("responses"), list):
        return [Verdict(UNPARSABLE, detail=text[:500])] * count
    entries: dict[int, Any] = {}
    for entry in payload["responses"]:
        number = entry.get("response") if isinstance(entry, dict) else None
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= count or number in entries:
            # A number that is unknown or comes twice: which text the judge meant is anyone's guess, for all of them.
            return [Verdict(UNPARSABLE, detail=f"response number {number!r}: {text[:400]}")] * count
        entries[number] = entry
    return [_verdict(entries[n]) if n in entries else Verdict(MISSING, detail=text[:500]) for n in range(1, count + 1)]


def overall(criteria: dict[str, dict[str, float]]) -> float:
    """Weighted mean of the scores, sum(weight * score) / sum(weight), 0 to 10."""
    total = sum(item["weight"] for item in criteria.values())
    return sum(item["weight"] * item["score"] for item in criteria.values()) / total


def reply_schema(count: int) -> dict[str, Any]:
    """JSON schema of a reply on `count` responses, for engines that can constrain their output to one."""
    criterion = {
        "type": "object",
        "properties": {
            "weight": {"type": "number"},
            "analysis": {"type": "string", "maxLength": 400},
            "score": {"type": "integer", "enum": list(range(MAX_SCORE + 1))},
        },
        "required": ["weight", "analysis", "score"],
        "additionalProperties": False,
    }
    response = {
        "type": "object",
        "properties": {
            "response": {"type": "integer", "enum": list(range(1, count + 1))},
            "criteria": {
                "type": "object",
                "properties": dict.fromkeys(CRITERIA, criterion),
                "required": list(CRITERIA),
                "additionalProperties": False,
            },
            "overall": {"type": "number"},
        },
        "required": ["response", "criteria", "overall"],
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "properties": {
            "reference": {"type": "string", "maxLength": 800},
            "responses": {"type": "array", "items": response, "minItems": count, "maxItems": count},
        },
        "required": ["reference", "responses"],
        "additionalProperties": False,
    }


def _verdict(entry: dict[str, Any]) -> Verdict:
    given = entry.get("criteria")
    if not isinstance(given, dict):
        return Verdict(BAD_CRITERIA, detail=json.dumps(entry, ensure_ascii=False)[:500])
    criteria: dict[str, dict[str, float]] = {}
    for name in CRITERIA:
        item = given.get(name)
        if not isinstance(item, dict) or "score" not in item or "weight" not in item:
            return Verdict(BAD_CRITERIA, detail=name)
        score, weight = item["score"], item["weight"]
        if not _is_number(score) or score != int(score) or not 0 <= score <= MAX_SCORE:
            return Verdict(BAD_SCORE, detail=f"{name}: {score!r}")
        if not _is_number(weight) or not 0 <= weight <= 1:
            return Verdict(BAD_WEIGHTS, detail=f"{name}: {weight!r}")
        criteria[name] = {"weight": float(weight), "score": float(score)}
    total = sum(item["weight"] for item in criteria.values())
    if abs(total - 1) > WEIGHT_TOLERANCE:
        return Verdict(BAD_WEIGHTS, detail=f"sum {total:g}")
    return Verdict(OK, overall(criteria), criteria)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9  # JSON has NaN, Infinity


def _first_object(text: str) -> dict[str, Any] | None:
    """The first JSON object in the text that can be read, None if there is none."""
    decoder = json.JSONDecoder()
    start = text.find("{")
    while start != -1:
        try:
            value, _ = decoder.raw_decode(text, start)
            return value if isinstance(value, dict) else None
        except (ValueError, RecursionError):
            start = text.find("{", start + 1)
    return None
