"""What a perfect method is measured as in `benchmarks.real_noise`: lost comparisons and errors of claims by chance."""

import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.real_noise import duel
from benchmarks.real_noise.measures import (
    errors_of_audited_level,
    errors_of_known_level,
    lost_by_chance,
    resample_counts,
)
from benchmarks.real_noise.report import assumed_claims, mean_claims
from benchmarks.real_noise.report import lost_by_chance as lost_table
from benchmarks.real_noise.sets import load_set
from dt2it_pipeline_tests.support.noisy_set import write_set

PAIRS = 600
COUNTS = resample_counts(PAIRS, 0, 2000)
ALL = np.ones(PAIRS)


def labels(accuracy: float, seed: int) -> np.ndarray:
    """Labels that are right in just that share, at random places."""
    right = np.arange(PAIRS) < round(accuracy * PAIRS)
    return np.random.default_rng(seed).permutation(right)


def rate(ours: float, *theirs: float, alike: bool = False) -> float:
    others = {str(place): (labels(accuracy, 1 + place), ALL) for place, accuracy in enumerate(theirs)}
    return float(lost_by_chance((labels(ours, 0), ALL), others, COUNTS, alike=alike).mean())


def test_as_good_as_one_rival_is_worse_in_one_of_forty_wherever_it_was() -> None:
    for ours in (0.5, 0.8, 0.9):
        assert rate(ours, 0.8) == pytest.approx(0.025, abs=0.012)
        assert rate(ours, 0.8, 0.3) == pytest.approx(0.025, abs=0.012)  # one that is far behind is never the best


def test_the_best_of_many_alike_is_better_by_luck() -> None:
    assert 2 * rate(0.8, 0.8) < rate(0.8, *[0.8] * 5) < 0.15
    behind = [0.8, 0.3, 0.3, 0.3, 0.3]
    assert 2 * rate(0.8, *behind) < rate(0.8, *behind, alike=True)


def test_who_agrees_with_the_rival_on_every_pair_never_loses() -> None:
    same = labels(0.7, 1)
    assert not lost_by_chance((same, ALL), {"same": (same, ALL)}, COUNTS, alike=True).any()


def test_errors_of_claims_by_hand() -> None:
    known = errors_of_known_level(0.5, 2, within=0.1)  # half of the time one of two is right, else none or both
    assert (known.absolute, known.squared, known.within) == pytest.approx((0.25, 0.125, 0.5))
    audited = errors_of_audited_level(0.5, 1, 1, within=0.1)  # either label is right or wrong
    assert (audited.absolute, audited.squared, audited.within) == pytest.approx((0.5, 0.5, 0.5))
    large = errors_of_audited_level(0.9, 400, 50, within=1.0)
    assert large.squared == pytest.approx(0.09 / 50 + 0.09 / 400) and large.within == pytest.approx(1.0)


def test_the_project_s_methods_are_compared_with_both_kinds_of_rivals(tmp_path: Path) -> None:
    given = load_set(write_set(tmp_path / "one", 60))
    records, _ = duel.run([given], duel.Plan([None], repeats=1, methods=["paper", "nothing"]))
    ours = [r for r in records if r["method"] == "paper"]
    nothing = [r for r in records if r["method"] == "nothing"]
    assert ours and nothing and all(each["rival"] != "nothing" for r in nothing for each in r["against"].values())
    for record in ours:
        assert record["against"]["all"]["rival"] == record["rival"]
        assert record["against"]["all"]["advantage"] == record["advantage"]
        for kind in record["against"].values():
            assert set(kind["by_chance"]) <= set(range(1000))
            assert kind["advantage"]["estimate"] >= record["against"]["all"]["advantage"]["estimate"]


def test_draws_of_one_set_are_lost_together() -> None:
    """The same 100 of 1,000 resamples lose both draws of a set: 2 at the 95% quantile, where two sets rarely do."""
    lost = {"estimate": -0.1, "low": -0.2, "high": -0.01}
    against = {"all": {"advantage": lost, "by_chance": list(range(100)), "if_alike": list(range(500))}}
    row = {"method": "ours", "scenario": "one", "against": against}
    together = lost_table([row | {"set": "a"}, row | {"set": "a"}], {"one": False})
    assert together.splitlines()[2] == "| ours | all | no | 2 | -10.0 | 2 | 0.2 | 2 | 1.0 | 2 |"
    apart = lost_table([row | {"set": "a"}, row | {"set": "b"}], {"one": False})
    assert apart.splitlines()[2] == "| ours | all | no | 2 | -10.0 | 2 | 0.2 | 1 | 1.0 | 2 |"


def test_table_of_claims_without_an_audit() -> None:
    base = {"method": "ours", "scenario": "none", "accuracy": 0.7, "bounds": (0.6, 1.0), "after": (0.8, 0.5, 0.9)}
    rows = [
        base | {"overclaim": 0.1, "held": True},
        base | {"overclaim": -0.2, "held": False, "bounds": (0.8, 1.0), "after": (0.5, 0.4, 0.6)},
        base | {"overclaim": 0.5, "scenario": "audit", "held": True},
    ]
    found = assumed_claims(rows, {"none": False, "audit": True}).splitlines()
    assert found[2:] == ["| ours | 2 | -5.0 | 1 | +10.0 | 1 of 2 | 30 | 1 of 2 | 30 |"]


def test_table_of_mean_claims() -> None:
    base = {"method": "ours", "kept": 0.5, "pairs": 4, "accuracy": 0.5, "scenario": "audit"}
    rows = [base | {"overclaim": 0.3}, base | {"overclaim": -0.1}, base | {"overclaim": math.nan}]
    audited = mean_claims(rows, {"audit": True}, audited=2, within=0.2).splitlines()
    assert audited[0].endswith("| within 20 points |")
    assert audited[2] == "| ours | yes | its own | 2 | +10.0 | 20.0 | 22.4 | 50% |"
    assert audited[3] == "| ours | yes | probabilities known | 2 | +0.0 | 25.0 | 35.4 | 50% |"
    assert audited[4].startswith("| ours | yes | share right in the audit | 2 | +0.0 |")
    assert len(mean_claims(rows, {"audit": False}, audited=2).splitlines()) == 4
