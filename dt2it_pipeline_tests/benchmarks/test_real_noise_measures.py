"""Measures of the benchmark of real noise, by hand and by their properties."""

import math

import numpy as np
import pandas as pd
import pytest

from benchmarks.real_noise.evidence import Evidence, answer
from benchmarks.real_noise.measures import (
    difference,
    expected_calibration_error,
    measure,
    resample_counts,
    utility,
)
from dt2it_pipeline_tests.support.four_pairs import four_pairs


def test_measures_by_hand() -> None:
    label_right = np.array([True, True, True, False])
    pairs = pd.DataFrame({"pair_id": list("abcd"), "chosen_id": list("1234"), "rejected_id": list("5678")})
    evidence = Evidence(pairs, pd.DataFrame(columns=["response_id", "voter", "score"]), pd.DataFrame(columns=["judge"]))
    made = answer(
        evidence,
        keep=np.array([True, True, False, True]),
        flip=np.array([False, True, False, True]),
        probability=np.array([0.9, 0.8, np.nan, 1.0]),
        calls=np.array([2, 0, 0, 0]),
    )
    simple = {
        "nothing": answer(evidence),
        "oracle": answer(evidence, score=np.array([3.0, 2.0, 1.0, 0.0])),
    }
    found = measure(made, label_right, simple, resample_counts(4, 0), cost=3.0)
    assert found.kept == 0.75
    assert found.accuracy == pytest.approx(2 / 3)  # a stays right, b is flipped wrongly, d is flipped rightly
    assert found.harm.estimate == pytest.approx(2 / 3 - 3 / 4)
    assert found.overclaim == pytest.approx(0.9 - 2 / 3)
    assert found.calibration_error == pytest.approx((0.8 + 0.1 + 0.0) / 3)
    assert found.calls == 0.5
    assert found.utility == pytest.approx((1 - 3 + 0 + 1) / 4)
    assert (found.rival, found.advantage.estimate) == ("oracle", pytest.approx(2 / 3 - 1))


def test_nothing_kept_is_no_number() -> None:
    evidence = four_pairs()
    found = measure(
        answer(evidence, np.zeros(4, dtype=bool)),
        np.ones(4, dtype=bool),
        {"nothing": answer(evidence)},
        resample_counts(4, 0),
    )
    assert math.isnan(found.accuracy) and math.isnan(found.harm.estimate) and not found.harm.below
    assert found.utility == 0


def test_doing_nothing_is_no_harm_and_its_interval_is_zero() -> None:
    right = np.arange(50) % 5 > 0
    found = difference(right, np.ones(50), right, np.ones(50), resample_counts(50, 0))
    assert (found.estimate, found.low, found.high) == (0, 0, 0)
    assert not found.below and not found.above


def test_bootstrap_interval_is_as_wide_as_the_normal_one() -> None:
    count = 2000
    right = np.arange(count) % 10 > 0
    worse = right & (np.arange(count) % 10 > 1)
    found = difference(worse, np.ones(count), right, np.ones(count), resample_counts(count, 0))
    error = math.sqrt(0.1 * 0.9 / count)
    assert found.estimate == pytest.approx(-0.1) and found.below
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_calibration_error_has_bins_of_equal_mass() -> None:
    probability, right = np.repeat([0.6, 0.9], 10), np.repeat([True, False], 10)
    assert expected_calibration_error(probability, right, bins=2) == pytest.approx((0.4 + 0.9) / 2)
    assert math.isnan(expected_calibration_error(probability[:0], right[:0]))
    assert utility(np.array([True, False]), np.array([True, True]), 3) == -1
