"""The temperature: right where the truth is known, refused where there is too little, never worse than T = 1."""

from __future__ import annotations

import numpy as np
import pytest

from dt2it_pipeline.reward.calibration import (
    Calibration,
    CalibrationError,
    calibration_of,
    card_entry,
    fit_calibration,
    probability_better,
)


def drawn(pairs: int, temperature: float, seed: int, per_prompt: int = 1) -> tuple[np.ndarray, list[str]]:
    """Margins of a model whose right temperature is known; pairs of one prompt share part of their difference."""
    rng = np.random.default_rng(seed)
    prompts: np.ndarray = np.arange(pairs) // per_prompt
    log_odds = rng.normal(size=pairs) + rng.normal(size=pairs)[prompts]
    better = rng.random(pairs) < probability_better(log_odds)
    return temperature * log_odds * np.where(better, 1, -1), [f"p{number}" for number in prompts]


@pytest.mark.parametrize("temperature", [0.1, 1.7, 40.0])
def test_the_temperature_that_made_the_labels_is_found(temperature: float) -> None:
    fitted = fit_calibration(*drawn(6000, temperature, 1), source="drawn.jsonl")
    assert fitted.temperature == pytest.approx(temperature, rel=0.08)
    assert fitted.low is not None and fitted.high is not None
    assert fitted.low < temperature < fitted.high < 1.3 * fitted.low
    assert fitted.log_loss_after < fitted.log_loss_before and fitted.error_after < 0.03 and not fitted.fallback
    assert calibration_of({"calibration": card_entry(fitted), "name": "x"}) == fitted


def test_the_likelihood_has_its_maximum_there() -> None:
    margins, prompts = drawn(500, 3.0, 2)
    best = fit_calibration(margins, prompts).temperature
    loss = [np.logaddexp(0, -margins / t).mean() for t in (0.97 * best, best, 1.03 * best)]
    assert loss[1] == min(loss)


@pytest.mark.parametrize("per_prompt", [1, 4])
def test_intervals_hold_the_truth_about_as_often_as_they_say(per_prompt: int) -> None:
    held = 0
    for seed in range(60):
        fitted = fit_calibration(*drawn(400, 2.0, 100 + seed, per_prompt))
        held += fitted.low is not None and fitted.high is not None and fitted.low < 2.0 < fitted.high
    assert 52 <= held <= 60  # 95% of 60 is 57


def test_weights_count_as_repeated_pairs_do_in_the_estimate() -> None:
    margins, prompts = drawn(300, 2.5, 3)
    twice = [2.0 if place % 2 else 1.0 for place in range(300)]
    repeated = [(m, p) for m, p, w in zip(margins, prompts, twice, strict=True) for _ in range(int(w))]
    weighted = fit_calibration(margins, prompts, weights=twice)
    doubled = fit_calibration([m for m, _ in repeated], [p for _, p in repeated])
    assert weighted.temperature == pytest.approx(doubled.temperature)
    assert weighted.log_loss_after == pytest.approx(doubled.log_loss_after)
    assert (weighted.low, weighted.high) == (pytest.approx(doubled.low), pytest.approx(doubled.high))
    assert weighted.pairs == 300


def test_t_is_1_where_the_fitted_one_does_no_better_on_held_out_pairs() -> None:
    """Labels drawn with T = 1 exactly: in many draws the fit is worse, and never is it used then."""
    fallbacks = 0
    for seed in range(30):
        fitted = fit_calibration(*drawn(150, 1.0, 1000 + seed))
        assert fitted.log_loss_after <= fitted.log_loss_before
        if fitted.fallback:
            fallbacks += 1
            assert (fitted.temperature, fitted.low, fitted.high) == (1.0, None, None)
            assert "does no better on held-out pairs" in fitted.fallback and "not fitted" in fitted.in_words()
    assert 10 <= fallbacks < 30


def test_models_whose_temperature_has_no_maximum_keep_1() -> None:
    rng = np.random.default_rng(0)
    names = [str(n) for n in range(400)]
    right = fit_calibration(np.abs(rng.normal(size=400)), names)
    assert right.temperature == 1.0 and "right about every pair" in right.fallback and right.accuracy == 1.0
    wrong = fit_calibration(-np.abs(rng.normal(size=400)), names)
    assert wrong.temperature == 1.0 and "no better than chance" in wrong.fallback
    flat = fit_calibration(np.zeros(400), names)
    assert flat.temperature == 1.0 and flat.accuracy == 0.5 and flat.log_loss_before == pytest.approx(np.log(2))


def test_extreme_margins_do_no_harm() -> None:
    margins, prompts = drawn(400, 1.0, 4)
    huge = fit_calibration(margins * 1e12, prompts)
    assert huge.temperature == pytest.approx(1e12, rel=0.3) and np.isfinite(huge.log_loss_after)
    tiny = fit_calibration(margins * 1e-12, prompts)
    assert tiny.temperature == pytest.approx(1e-12, rel=0.3)
    assert probability_better(np.array([-1e300, 0.0, 1e300])).tolist() == [0.0, 0.5, 1.0]


def test_too_few_pairs_or_prompts_are_refused() -> None:
    margins, prompts = drawn(99, 1.0, 5)
    with pytest.raises(CalibrationError, match="99 pairs of 99 prompts are too few"):
        fit_calibration(margins, prompts)
    margins, _ = drawn(400, 1.0, 5)
    with pytest.raises(CalibrationError, match="400 pairs of 10 prompts"):
        fit_calibration(margins, [str(n % 10) for n in range(400)])
    with pytest.raises(ValueError, match="margins must be finite"):
        fit_calibration([np.nan] * 200, [str(n) for n in range(200)])
    with pytest.raises(ValueError, match="2 margins, 1 prompts"):
        fit_calibration([1.0, 2.0], ["a"])


def test_pairs_of_a_prompt_stand_in_one_fold() -> None:
    """With every margin of a prompt the same, folds that cut through prompts would see the answers."""
    rng = np.random.default_rng(7)
    sign: np.ndarray = np.repeat(np.where(rng.random(60) < 0.6, 1.0, -1.0), 10)
    fitted = fit_calibration(sign * 2.0, [str(n // 10) for n in range(600)])
    again = fit_calibration(sign[::-1] * 2.0, [str(n // 10) for n in range(600)][::-1])
    assert fitted.temperature == pytest.approx(again.temperature)
    assert fitted.log_loss_after == pytest.approx(again.log_loss_after)  # folds go by the prompt, not by the order


def test_a_damaged_entry_is_said() -> None:
    for entry in (
        {"temperature": 1.0},
        3,
        {**card_entry(Calibration(1, 1, 1, 1, 1, 1, 1, 1, 1, 1)), "temperature": -1},
    ):
        with pytest.raises(CalibrationError, match="calibrate again"):
            calibration_of({"calibration": entry})
