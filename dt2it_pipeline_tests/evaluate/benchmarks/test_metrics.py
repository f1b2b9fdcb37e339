from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from dt2it_pipeline.curate.tables import to_table
from dt2it_pipeline.evaluate.benchmarks import metrics
from dt2it_pipeline.evaluate.benchmarks.metrics import ALL, MACRO, OVERALL, BenchmarkError, wilson_interval
from dt2it_pipeline.storage import schemas


def items(*rows: tuple[str, str]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "item_id": f"i{i}",
                "benchmark": benchmark,
                "group": group,
                "pair_id": f"p{i}",
                "prompt_id": "q",
                "chosen_id": f"c{i}",
                "rejected_id": f"r{i}",
                "chosen": "",
                "rejected": "",
            }
            for i, (benchmark, group) in enumerate(rows)
        ]
    )


def scores(margins: list[float | None], voter: str = "m") -> pd.DataFrame:
    rows = []
    for i, margin in enumerate(margins):
        rows.append({"response_id": f"r{i}", "voter": voter, "score": 0.0})
        if margin is not None:
            rows.append({"response_id": f"c{i}", "voter": voter, "score": margin})
    return pd.DataFrame(rows)


def score_items(*given, **named):
    return metrics.score_items(*given, **named).benchmark_scores


def row(table: pd.DataFrame, benchmark: str, group: str) -> dict:
    found = table[(table["benchmark"] == benchmark) & (table["group"] == group)]
    assert len(found) == 1
    return found.iloc[0].to_dict()


def test_groups_pooled_and_macro_mean() -> None:
    given = items(("b", "x"), ("b", "x"), ("b", "x"), ("b", "y"), ("b", "y"))
    table = score_items(given, scores([1.0, 0.0, None, np.nan, 2.0]))
    x = {"model": "m", "benchmark": "b", "group": "x", "pairs": 3, "correct": 1, "ties": 1, "unscored": 1}
    assert row(table, "b", "x") == x | {"accuracy": 1 / 3}
    assert row(table, "b", "y")["accuracy"] == 0.5
    overall = row(table, "b", OVERALL)
    assert (overall["pairs"], overall["correct"], overall["ties"], overall["unscored"]) == (5, 2, 1, 2)
    assert overall["accuracy"] == 2 / 5
    assert row(table, "b", MACRO)["accuracy"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert to_table(table, "benchmark_scores").schema.equals(schemas.SCHEMAS["benchmark_scores"])


def test_several_benchmarks_have_both_overalls() -> None:
    table = score_items(items(("a", "x"), ("a", "x"), ("a", "x"), ("b", "y")), scores([1.0, 1.0, -1.0, -1.0]))
    assert row(table, ALL, OVERALL)["accuracy"] == 2 / 4
    assert row(table, ALL, MACRO)["accuracy"] == pytest.approx((2 / 3 + 0) / 2)
    assert (table["group"] == MACRO).sum() == 1  # one group: its mean would repeat it


def test_voters_and_names() -> None:
    given = items(("b", "x"))
    both = pd.concat([scores([1.0], "two"), scores([-1.0], "one")])
    table = score_items(given, both)
    assert table[table["group"] == "x"][["model", "correct"]].to_numpy().tolist() == [["one", 0], ["two", 1]]
    assert set(score_items(given, scores([1.0]), model="round 0")["model"]) == {"round 0"}
    failed = score_items(given, scores([1.0]).iloc[:0], model="round 0")
    assert row(failed, "b", "x")["unscored"] == 1
    with pytest.raises(BenchmarkError, match="2 voters"):
        score_items(given, both, model="round 0")


def test_empty_items_and_errors() -> None:
    assert len(score_items(items(("b", "x")).iloc[:0], scores([1.0]))) == 0
    with pytest.raises(BenchmarkError, match="reserved"):
        score_items(items(("b", OVERALL)), scores([1.0]))
    with pytest.raises(BenchmarkError, match="two different scores"):
        score_items(items(("b", "x")), pd.concat([scores([1.0]), scores([2.0])]))
    with pytest.raises(BenchmarkError, match="missing columns"):
        score_items(items(("b", "x")).drop(columns="group"), scores([1.0]))


def test_wilson_interval() -> None:
    low, high = wilson_interval(50, 100)
    assert low == pytest.approx(0.4038, abs=1e-4)
    assert high == pytest.approx(0.5962, abs=1e-4)
    assert wilson_interval(0, 10)[0] == 0
    assert math.isnan(wilson_interval(0, 0)[0])
