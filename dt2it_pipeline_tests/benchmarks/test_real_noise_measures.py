"""Measures of the benchmark of real noise, by hand and by their properties."""

import math

import numpy as np
import pandas as pd
import pytest

from benchmarks.real_noise.evidence import Evidence, answer
from benchmarks.real_noise.measures import (
    Stated,
    benjamini_hochberg,
    better_than,
    calibration,
    difference,
    expected_calibration_error,
    holm,
    measure,
    resample_counts,
    squared_calibration_error,
    stated_level_spread,
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
    found = measure(made, label_right, simple, 0, cost=3.0)
    assert found.kept == 0.75
    assert found.accuracy == pytest.approx(2 / 3)  # a stays right, b is flipped wrongly, d is flipped rightly
    assert found.harm.estimate == pytest.approx(2 / 3 - 3 / 4)
    assert found.overclaim == pytest.approx(0.9 - 2 / 3)
    assert found.calibration.error == pytest.approx((0.8 + 0.1 + 0.0) / 3)
    assert found.calls == 0.5
    assert found.utility == pytest.approx((1 - 3 + 0 + 1) / 4)
    assert (found.rival, found.advantage.estimate) == ("oracle", pytest.approx(2 / 3 - 1))


def test_nothing_kept_is_no_number() -> None:
    evidence = four_pairs()
    found = measure(
        answer(evidence, np.zeros(4, dtype=bool)),
        np.ones(4, dtype=bool),
        {"nothing": answer(evidence)},
        0,
    )
    assert math.isnan(found.accuracy) and math.isnan(found.harm.estimate) and not found.harm.below
    assert found.utility == 0
    assert math.isnan(found.calibration.error) and math.isnan(found.calibration.chance.median)
    assert found.beaten_by == {} and found.held is None


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


def claims(count: int, seed: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Claims between 0.75 and 1, and outcomes that are right that much less often."""
    rng = np.random.default_rng(seed)
    probability = rng.uniform(0.75, 1.0, count)
    return probability, rng.random(count) < probability - shift


def test_chance_explains_the_error_of_right_claims_and_not_that_of_wrong_ones() -> None:
    """Of right claims, 5% lie above the 95% quantile, and the median is a median, give or take chance."""
    right = [calibration(*claims(200, seed), seed) for seed in range(120)]
    assert np.mean([each.error > each.chance.high for each in right]) < 0.12
    assert np.mean([each.error > each.chance.median for each in right]) == pytest.approx(0.5, abs=0.15)
    assert np.mean([each.chance.share < 0.05 for each in right]) < 0.12
    wrong = calibration(*claims(1000, 0, shift=0.1), 0)
    assert wrong.error > wrong.chance.high and wrong.chance.share < 0.01
    assert wrong.chance.median < 0.05 < wrong.error


def test_squared_error_has_no_chance_in_it() -> None:
    """Its mean is that of perfectly known shares, with few pairs too: 0 of right claims, the square of a shift."""
    for shift, expected in ((0.0, 0.0), (0.1, 0.01)):
        found = [squared_calibration_error(*claims(60, seed, shift)) for seed in range(1500)]
        assert np.mean(found) == pytest.approx(expected, abs=4 * np.std(found) / math.sqrt(len(found)))
    assert min(squared_calibration_error(*claims(60, seed)) for seed in range(20)) < 0
    probability = np.array([0.9, 0.9, 0.9, 0.9])
    by_hand = (0.9 - 0.75) ** 2 - 0.75 * 0.25 / 3
    assert squared_calibration_error(probability, np.array([1, 1, 1, 0]) == 1, bins=1) == pytest.approx(by_hand)
    assert math.isnan(squared_calibration_error(probability[:1], np.array([True])))


def test_a_stated_range_gives_the_spread_of_the_level() -> None:
    """A range made of a known spread and of chance gives that spread back, known labels beside the others or not."""
    claimed = np.full(300, 0.9)
    for others in (0, 50):
        variance = (0.04 * 300) ** 2 + 300 * 0.09
        half = 1.96 * math.sqrt(variance) / (300 + others)
        assert stated_level_spread(claimed, others, 0.9 - half, 0.9 + half) == pytest.approx(0.04)
    assert stated_level_spread(claimed, 0, 0.899, 0.901) == 0
    assert math.isnan(stated_level_spread(claimed, 0, math.nan, math.nan))


def test_stated_doubt_explains_a_level_that_is_off_and_no_wrong_order() -> None:
    probability, right = claims(600, 1, shift=0.05)
    sure, doubtful = calibration(probability, right, 0, 0.0), calibration(probability, right, 0, 0.05)
    assert sure.stated == sure.chance and sure.error > sure.chance.high
    assert doubtful.error < doubtful.stated.high and doubtful.chance == sure.chance
    assert math.isnan(calibration(probability, right, 0).stated.mean)
    swapped = calibration(np.repeat([0.55, 0.95], 300), np.arange(600) % 20 >= np.repeat([1, 9], 300), 0, 0.03)
    assert swapped.error > swapped.stated.high


def test_a_stated_range_is_about_audited_pairs_too() -> None:
    """Three of four measured labels are right; with six audited ones, nine of ten."""
    evidence = four_pairs()
    made = answer(evidence, probability=np.full(4, 0.9))
    right = np.array([True, True, True, False])
    for known, low, high, held in ((6, 0.88, 0.92, True), (0, 0.88, 0.92, False), (0, 0.7, 0.8, True)):
        assert measure(made, right, {}, 0, stated=Stated(0.9, low, high, np.ones(known))).held is held


def test_better_than_allows_for_the_number_of_baselines() -> None:
    """Where nobody is better, the least probability of twenty baselines is below 5% in 5% of the draws."""
    count, kept = 200, np.ones(200)
    least, alone = [], []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        ours = rng.random(count) < 0.8, kept
        others = {str(k): (rng.random(count) < 0.8, kept) for k in range(20)}
        found = better_than(ours, others, resample_counts(count, seed, 500))
        least.append(min(found.values()))
        alone.append(
            difference(*ours, *others[min(found, key=lambda name: found[name])], resample_counts(count, seed, 500))
        )
    assert np.mean(np.array(least) < 0.05) < 0.1
    assert np.mean([each.below for each in alone]) > 0.15  # as if the best had been named before


def test_better_than_finds_what_is_better() -> None:
    rng = np.random.default_rng(0)
    kept, ours = np.ones(400), rng.random(400) < 0.8
    better = ours | (rng.random(400) < 0.5)
    counts = resample_counts(400, 0, 2000)
    found = better_than((ours, kept), {"better": (better, kept), "same": (ours, kept)}, counts)
    assert found == {"better": pytest.approx(1 / 2001), "same": 1.0}
    assert better_than((ours, np.zeros(400)), {"better": (better, kept)}, counts) == {}


def test_adjusted_probabilities_are_those_of_scipy_and_of_holm_by_hand() -> None:
    from scipy.stats import false_discovery_control

    given = np.random.default_rng(1).random(50) ** 3
    np.testing.assert_allclose(benjamini_hochberg(given), false_discovery_control(given))
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]).tolist() == [1.0, 1.0]
