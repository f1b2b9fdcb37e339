"""How far a judge can be relied on, from its own judgements: does it keep its mind when the order changes?"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

import pyarrow as pa

from dt2it_pipeline.judges.protocol import LISTWISE, PAIRWISE, POINTWISE
from dt2it_pipeline.judges.rubric import OK

OVERALL = "Overall"  # key in `criteria` under which the overall score that a judge stated stands
AGAINST = "against"  # key in `criteria` under which a pairwise judgement names the other response

_Scores = dict[tuple[str, ...], dict[str, float]]  # presentation -> response -> score


def judge_quality(judgements: pa.Table) -> dict[str, dict[str, float | int | None]]:
    """Per judge, from a judgements table:

    - position_consistency: share of (two responses, two orders of their list) in which both orders prefer the same one,
      or neither prefers any; pairwise judgements of both orders count, too. None where everything was presented in one
      order. `position_comparisons` is how many there were.
    - list_point_agreement: share of pairs of responses that lists and single judgements put in the same order.
    - stated_difference: mean absolute difference of the overall score that the judge stated to the one computed from
      its scores and weights; None where it stated none.
    """
    by_judge: dict[str, list[dict[str, Any]]] = {}
    for row in judgements.to_pylist():
        if row["status"] == OK:
            by_judge.setdefault(row["judge"], []).append(row)
    return {name: _quality(rows) for name, rows in sorted(by_judge.items())}


def _quality(rows: Iterable[Mapping[str, Any]]) -> dict[str, float | int | None]:
    lists: dict[str, _Scores] = {}
    single: dict[str, dict[str, float]] = {}
    pairs: dict[tuple[str, ...], _Scores] = {}
    stated: list[float] = []
    for row in rows:
        criteria = json.loads(row["criteria"])
        presentation = tuple(map(str, row["order"] or ()))
        key, score = row["response_id"], row["score"]
        if row["mode"] == POINTWISE:
            single.setdefault(row["prompt_id"], {})[key] = score
        elif row["mode"] == LISTWISE:
            lists.setdefault(row["prompt_id"], {}).setdefault(presentation, {})[key] = score
        elif row["mode"] == PAIRWISE:
            two = tuple(sorted((key, criteria[AGAINST])))
            pairs.setdefault(two, {}).setdefault(presentation, {})[key] = score
        if OVERALL in criteria:
            stated.append(abs(criteria[OVERALL]["difference"]))
    same: list[bool] = []
    for orders in (*lists.values(), *pairs.values()):
        for one, other in itertools.combinations(orders.values(), 2):
            same += _same_order(one, other)
    agree: list[bool] = []
    for prompt, scores in single.items():
        for one in lists.get(prompt, {}).values():
            agree += _same_order(one, scores)
    return {
        "position_consistency": _share(same),
        "position_comparisons": len(same),
        "list_point_agreement": _share(agree),
        "stated_difference": round(fmean(stated), 4) if stated else None,
    }


def _same_order(one: Mapping[str, float], other: Mapping[str, float]) -> list[bool]:
    """For every two responses that both have, whether both prefer the same one."""
    shared = sorted(one.keys() & other.keys())
    return [_sign(one[a] - one[b]) == _sign(other[a] - other[b]) for a, b in itertools.combinations(shared, 2)]


def _sign(value: float) -> int:
    return (value > 1e-9) - (value < -1e-9)


def _share(values: list[bool]) -> float | None:
    return round(fmean(values), 4) if values else None
