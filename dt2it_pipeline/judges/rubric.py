"""The six criteria of DT2IT-MRM's scoring (part 1, steps 2 and 3), and how a judge's JSON is read.

The form of a reply:

    {"reference": "the judge's own answer",
     "responses": [{"response": 1,
                    "criteria": {"Accuracy": {"weight": 0.4, "score": 9, "analysis": "..."}, ...all six...},
                    "overall": 8.45}, ...]}

The overall score that counts is computed here from the scores and weights: judges are poor at arithmetic. What they
wrote themselves is kept beside it. A reply on two responses (pairwise) only names the better one:

    {"reference": "the judge's own answer", "analysis": "...", "better": 1}    2 for the second, 0 for a tie

A judge may have another rubric than the six criteria: one by likelihood has a single number, which is not whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dt2it_pipeline.config.strict_yaml import distinct_keys
from dt2it_pipeline.judges.protocol import LISTWISE, PAIRWISE, POINTWISE, Reply

CRITERIA = ("Accuracy", "Helpfulness", "Completeness", "Language Quality", "Creativity", "Ethics")
MAX_SCORE = 10
WEIGHT_TOLERANCE = 0.02  # judges round their weights; beyond this they did not understand the task

OK, UNPARSABLE, MISSING, CUT_OFF = "ok", "unparsable", "missing response", "reply cut off"
BAD_CRITERIA, BAD_SCORE, BAD_WEIGHTS = "missing criterion", "score out of range", "weights do not sum to 1"

_SCORES = (
    'A usable reply is one JSON object with "responses", a list with one entry per response: its number "response", '
    f'and "criteria" with {", ".join(CRITERIA)}, each with a whole "score" from 0 to {MAX_SCORE} and a "weight"; '
    "the six weights sum to 1."
)
# The form of a reply by mode, in a sentence.
CONTRACTS = {
    LISTWISE: _SCORES,
    POINTWISE: _SCORES,
    PAIRWISE: 'A usable reply is one JSON object with "better": 1 or 2 for the better response, 0 for a tie.',
}


@dataclass(frozen=True)
class Rubric:
    """What a judge scores: the names of its criteria, and whether scores are whole numbers."""

    names: tuple[str, ...]
    whole: bool


SIX_CRITERIA = Rubric(CRITERIA, True)


@dataclass(frozen=True)
class Verdict:
    """One response's judgement: status `ok` with a score of 0 to 10, or the reason why there is none.

    A pairwise score is 1 for the better response, 0 for the other, 0.5 each for a tie. `stated` is the overall score
    that the judge itself wrote, None where it wrote none.
    """

    status: str
    score: float | None = None
    criteria: dict[str, dict[str, float]] = field(default_factory=dict)  # criterion -> weight and score
    detail: str = ""
    stated: float | None = None


# A judge that is asked in Chinese now and then translates the keys, too.
_CHINESE = {
    "准确": "Accuracy",
    "准确性": "Accuracy",
    "有用": "Helpfulness",
    "有用性": "Helpfulness",
    "完整": "Completeness",
    "完整性": "Completeness",
    "语言质量": "Language Quality",
    "创造性": "Creativity",
    "伦理": "Ethics",
    "权重": "weight",
    "分数": "score",
    "得分": "score",
    "评分": "score",
    "回答列表": "responses",
    "回答": "response",
    "编号": "response",
    "标准": "criteria",
    "总分": "overall",
    "更好": "better",
}
_BRACKETED = re.compile(r"\s*[(（][^)）]*[)）]\s*$")
_THOUGHTS = re.compile(r"(?s)^.*</think>")  # what a reasoning model wrote before its answer


def read_reply(
    reply: Reply, mode: str, count: int, rubric: Rubric = SIX_CRITERIA, material: Sequence[str] = ()
) -> list[Verdict]:
    """Read a judge's reply in any mode; one verdict per response in the order of presentation. Never raises.

    `material` are the texts that the judge was shown: a verdict that stands in one of them is quoted, not given.
    """
    if mode == PAIRWISE:
        verdicts = parse_pairwise(reply.text, material)
    else:
        verdicts = parse_reply(reply.text, count, rubric, material)
    if reply.finished or all(verdict.status == OK for verdict in verdicts):
        return verdicts
    return [Verdict(CUT_OFF, detail=reply.text)] * count


def parse_pairwise(text: str, material: Sequence[str] = ()) -> list[Verdict]:
    """Read a reply on two responses: two verdicts. Never raises."""
    payload, fault = only_object(text, "better", material)
    better = payload.get("better") if payload else None
    if isinstance(better, bool) or better not in (0, 1, 2):
        return [Verdict(UNPARSABLE, detail=fault or f"better is {better!r}: {text}")] * 2
    first = {0: 0.5, 1: 1.0, 2: 0.0}[int(better)]
    return [Verdict(OK, first), Verdict(OK, 1.0 - first)]


def parse_reply(text: str, count: int, rubric: Rubric = SIX_CRITERIA, material: Sequence[str] = ()) -> list[Verdict]:
    """Read a judge's reply on `count` responses; one verdict per response in the order of presentation.

    Text around the JSON object (a code fence, a preamble) is ignored. Never raises: what cannot be read is a verdict
    whose status says so.
    """
    payload, fault = only_object(text, "responses", material)
    if payload is None or not isinstance(payload.get("responses"), list):
        return [Verdict(UNPARSABLE, detail=fault or text)] * count
    entries: dict[int, Any] = {}
    for entry in payload["responses"]:
        number = entry.get("response") if isinstance(entry, dict) else None
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= count or number in entries:
            # A number that is unknown or comes twice: which text the judge meant is anyone's guess, for all of them.
            return [Verdict(UNPARSABLE, detail=f"response number {number!r}: {text}")] * count
        entries[number] = entry
    found = [_verdict(entries[n], rubric) if n in entries else Verdict(MISSING) for n in range(1, count + 1)]
    return [v if v.status == OK else replace(v, detail=f"{v.detail}: {text}" if v.detail else text) for v in found]


def overall(criteria: dict[str, dict[str, float]]) -> float:
    """Weighted mean of the scores, sum(weight * score) / sum(weight), 0 to 10."""
    total = sum(item["weight"] for item in criteria.values())
    return sum(item["weight"] * item["score"] for item in criteria.values()) / total


def reply_schema(mode: str, count: int, ordered: bool = False) -> dict[str, Any]:
    """JSON schema of a reply on `count` responses, for engines that can constrain their output to one.

    Every text and number is bounded: a weak model would go on with either to the length limit of a reply.

    Args:
        mode: of the reply.
        count: of the responses.
        ordered: whether each response has its entry in its place. Else a weak model may give one number to two entries;
            but endpoints are known to refuse a schema that has it so.
    """
    if mode == PAIRWISE:
        return {
            "type": "object",
            "properties": {
                "reference": {"type": "string", "maxLength": 800},
                "analysis": {"type": "string", "maxLength": 800},
                "better": {"type": "integer", "enum": [0, 1, 2]},
            },
            "required": ["reference", "analysis", "better"],
            "additionalProperties": False,
        }
    criterion = {
        "type": "object",
        "properties": {
            "weight": {"type": "number", "minimum": 0, "maximum": 1},
            "analysis": {"type": "string", "maxLength": 400},
            "score": {"type": "integer", "enum": list(range(MAX_SCORE + 1))},
        },
        "required": ["weight", "analysis", "score"],
        "additionalProperties": False,
    }
    criteria = {
        "type": "object",
        "properties": dict.fromkeys(CRITERIA, criterion),
        "required": list(CRITERIA),
        "additionalProperties": False,
    }

    def response(numbers: list[int]) -> dict[str, Any]:
        return {
            "type": "object",
            "properties": {
                "response": {"type": "integer", "enum": numbers},
                "criteria": criteria,
                "overall": {"type": "number", "minimum": 0, "maximum": MAX_SCORE},
            },
            "required": ["response", "criteria", "overall"],
            "additionalProperties": False,
        }

    numbers = list(range(1, count + 1))
    entries: dict[str, Any] = {"items": response(numbers)}
    if ordered:
        entries = {"prefixItems": [response([number]) for number in numbers], "items": False}
    return {
        "type": "object",
        "properties": {
            "reference": {"type": "string", "maxLength": 800},
            "responses": {"type": "array", **entries, "minItems": count, "maxItems": count},
        },
        "required": ["reference", "responses"],
        "additionalProperties": False,
    }


def _verdict(entry: dict[str, Any], rubric: Rubric) -> Verdict:
    given = entry.get("criteria")
    if not isinstance(given, dict):
        return Verdict(BAD_CRITERIA, detail="no criteria")
    criteria: dict[str, dict[str, float]] = {}
    for name in rubric.names:
        item = given.get(name)
        if not isinstance(item, dict) or "score" not in item or "weight" not in item:
            return Verdict(BAD_CRITERIA, detail=name)
        score, weight = item["score"], item["weight"]
        whole = not rubric.whole or (_is_number(score) and score == int(score))
        if not _is_number(score) or not whole or not 0 <= score <= MAX_SCORE:
            return Verdict(BAD_SCORE, detail=f"{name}: {score!r}")
        if not _is_number(weight) or not 0 <= weight <= 1:
            return Verdict(BAD_WEIGHTS, detail=f"{name}: {weight!r}")
        criteria[name] = {"weight": float(weight), "score": float(score)}
    total = sum(item["weight"] for item in criteria.values())
    if abs(total - 1) > WEIGHT_TOLERANCE:
        return Verdict(BAD_WEIGHTS, detail=f"sum {total:g}")
    stated = entry.get("overall")
    return Verdict(
        OK, overall(criteria), criteria, stated=float(stated) if stated is not None and _is_number(stated) else None
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9  # JSON has NaN, Infinity


def only_object(text: str, key: str, material: Sequence[str] = ()) -> tuple[dict[str, Any] | None, str]:
    """The object with `key` in the text, or None and why.

    There must be one: a judge that quotes a verdict which a response asks for has two, and which is its own is anyone's
    guess. The same object twice counts once. Where the only one stands in the `material` that the judge was shown, it
    may be quoted, too.
    """
    found: list[tuple[dict[str, Any], str]] = []
    for value, words in _objects(_THOUGHTS.sub("", text)):
        if key in value and all(value != other for other, _ in found):
            found.append((value, _without_space(words)))
    if len(found) > 1:
        return None, f"{len(found)} different verdicts: {text}"
    if found and any(found[0][1] in _without_space(each) for each in material):
        return None, f"the only verdict stands in what was to be judged, too: {text}"
    return (found[0][0], "") if found else (None, "")


def _objects(text: str) -> Iterator[tuple[dict[str, Any], str]]:
    """The outermost JSON objects in a text, keys in English; with each, its words. One with a key twice is none."""
    decoder = json.JSONDecoder(object_pairs_hook=distinct_keys)
    start = text.find("{")
    while start != -1:
        end = start + 1
        try:
            value, end = decoder.raw_decode(text, start)
            yield _english(value), text[start:end]
        except (ValueError, RecursionError):
            pass
        start = text.find("{", end)


def _without_space(text: str) -> str:
    return "".join(text.split())


def _english(value: Any) -> Any:
    """The same value with the keys that a reply must have in English, whatever stands in brackets behind them."""
    if isinstance(value, list):
        return [_english(item) for item in value]
    if not isinstance(value, dict):
        return value
    plain = {_BRACKETED.sub("", key): item for key, item in value.items()}
    english = {_CHINESE.get(key, key): _english(item) for key, item in plain.items()}
    if isinstance(english.get("response"), list):  # one word in Chinese, whether it is one or several
        english["responses"] = english.pop("response")
    return english
