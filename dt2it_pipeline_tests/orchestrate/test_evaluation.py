"""What the evaluation's steps say in a run's log."""

from __future__ import annotations

import pandas as pd

from dt2it_pipeline.evaluate.benchmarks.metrics import score_items
from dt2it_pipeline.orchestrate.assets.evaluation import accuracy_lines


def test_accuracy_is_told_by_benchmark_and_group() -> None:
    groups = [("mine", "easy"), ("mine", "easy"), ("mine", "hard"), ("other", "only")]
    items = pd.DataFrame(
        [
            {"item_id": f"{i}", "benchmark": benchmark, "group": group, "chosen_id": f"c{i}", "rejected_id": f"r{i}"}
            for i, (benchmark, group) in enumerate(groups)
        ]
    )
    better = {"c0": 2.0, "r0": 1.0, "c1": 2.0, "r1": 1.0, "c2": 1.0, "r2": 1.0, "c3": 2.0, "r3": 1.0}
    scores = pd.DataFrame([{"response_id": key, "voter": "v", "score": score} for key, score in better.items()])
    assert accuracy_lines(score_items(items, scores, model="round 1").benchmark_scores) == [
        "round 1 is right in 75.0% of 4 pairs of all benchmarks",
        "round 1 is right in 66.7% of 3 pairs of mine (easy 100.0%, hard 0.0%)",  # a tie is wrong
        "round 1 is right in 100.0% of 1 pairs of other (only 100.0%)",
    ]


def test_nothing_is_told_without_benchmarks() -> None:
    items = pd.DataFrame(columns=["item_id", "benchmark", "group", "chosen_id", "rejected_id"])
    scores = pd.DataFrame(columns=["response_id", "voter", "score"])
    assert accuracy_lines(score_items(items, scores, model="round 1").benchmark_scores) == []
