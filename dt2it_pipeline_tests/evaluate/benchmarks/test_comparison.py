from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from dt2it_pipeline.evaluate.benchmarks.comparison import compare, holm, paired_interval, paired_test
from dt2it_pipeline.evaluate.benchmarks.metrics import ALL, OVERALL, BenchmarkError, score_items


def items(*groups: tuple[str, str, int]) -> pd.DataFrame:
    """Items of (benchmark, group, pairs), each with a prompt of its own."""
    names = [(benchmark, group) for benchmark, group, count in groups for _ in range(count)]
    numbers = range(len(names))
    return pd.DataFrame(
        {
            "item_id": [f"i{i}" for i in numbers],
            "benchmark": [name[0] for name in names],
            "group": [name[1] for name in names],
            "prompt_id": [f"p{i}" for i in numbers],
            "chosen_id": [f"c{i}" for i in numbers],
            "rejected_id": [f"r{i}" for i in numbers],
        }
    )


def scores(right: list[bool], voter: str = "v") -> pd.DataFrame:
    rows = [(f"c{i}", voter, 1.0 if one else 0.0) for i, one in enumerate(right)]
    rows += [(f"r{i}", voter, 0.5) for i in range(len(right))]
    return pd.DataFrame(rows, columns=["response_id", "voter", "score"])


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (5, 5), (10, 25), (21, 36), (60, 3)])
def test_with_one_pair_per_prompt_the_test_is_mcnemars_exact_one(gained: int, lost: int) -> None:
    sums = np.array([1] * gained + [-1] * lost + [0] * 40)
    expected = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert paired_test(sums) == pytest.approx(expected)


def test_pairs_of_one_prompt_count_together() -> None:
    sums = np.array([3, -1, 2, 0, 2])
    patterns = [
        sum(s * abs(x) for s, x in zip(signs, sums, strict=True)) for signs in itertools.product((1, -1), repeat=5)
    ]
    assert paired_test(sums) == pytest.approx(np.mean(np.abs(patterns) >= 6))
    together, apart = paired_test(np.array([5, 5])), paired_test(np.ones(10))
    assert together == 0.5
    assert apart < 0.01


def test_the_interval_covers_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    covered = []
    for _ in range(2000):
        signs = random.choice([-1, 0, 1], size=200, p=[0.05, 0.8, 0.15])
        low, high = paired_interval(signs.astype(float), np.ones(200))
        covered.append(low <= 0.10 <= high)
    assert 0.93 < np.mean(covered) < 0.975
    low, high = paired_interval(np.zeros(50), np.ones(50))
    assert low < 0 < high  # models that never differ are not known to be equal


def test_holm_stops_at_the_first_that_fails() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == [True, False, False, True]
    assert holm([]) == []


def test_changes_are_the_differences_of_the_accuracies() -> None:
    table = items(("b", "up", 40), ("b", "down", 40), ("c", "same", 10))
    first = [False] * 30 + [True] * 10 + [True] * 40 + [True] * 10
    second = [True] * 40 + [False] * 5 + [True] * 35 + [True] * 10
    made = compare(table, scores(first), scores(second), ("one", "two"))
    found = {(change.benchmark, change.group): change for change in made.changes}
    accuracy = [
        score_items(table, scores(right), "m", repeats=0).benchmark_scores.set_index(["benchmark", "group"])["accuracy"]
        for right in (first, second)
    ]
    for key, change in found.items():
        assert change.difference == pytest.approx(accuracy[1][key] - accuracy[0][key])
        assert change.low <= change.difference <= change.high
    up, down = found["b", "up"], found["b", "down"]
    assert (up.gained, up.lost, up.beyond_chance) == (30, 0, True)
    assert (down.gained, down.lost, down.beyond_chance) == (0, 5, False)  # p = 0.0625
    assert found["c", "same"].p == 1.0
    assert (made.changes[-1].benchmark, made.changes[-1].group) == (ALL, OVERALL)


def test_a_tie_or_a_missing_score_is_wrong() -> None:
    table = items(("b", "g", 3))
    tied = scores([True, True, True]).assign(score=0.5)
    missing = scores([True, True, True]).query("response_id != 'c0'")
    assert compare(table, scores([True] * 3), tied, ("a", "b")).changes[0].lost == 3
    assert compare(table, scores([True] * 3), missing, ("a", "b")).changes[0].lost == 1


def test_a_response_with_two_scores_is_refused() -> None:
    twice = pd.concat([scores([True]), scores([False])])
    with pytest.raises(BenchmarkError, match="'c0' has two different scores"):
        compare(items(("b", "g", 1)), twice, scores([True]), ("a", "b"))
