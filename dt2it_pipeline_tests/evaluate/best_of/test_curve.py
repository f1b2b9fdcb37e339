"""The estimator of best-of-n against all sets of n answers, and what the curve counts."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from dt2it_pipeline.evaluate.best_of.curve import (
    ORACLE,
    CurveError,
    best_of_curve,
    best_of_weights,
    expected_quality,
)


def by_all_sets(scores: list[float | None], quality: list[float], n: int) -> float:
    """The mean over all sets of n answers of the mean quality of those that share the set's highest score."""
    values = [-math.inf if score is None or math.isnan(score) else score for score in scores]
    found = []
    for members in itertools.combinations(range(len(values)), n):
        highest = max(values[i] for i in members)
        found.append(np.mean([quality[i] for i in members if values[i] == highest]))
    return float(np.mean(found))


@pytest.mark.parametrize("seed", range(6))
def test_the_estimate_is_the_mean_over_all_sets_with_ties_and_unscored_answers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores: list[float | None] = [None if rng.random() < 0.2 else float(rng.integers(0, 4)) for _ in range(7)]
    quality = rng.normal(size=7).tolist()
    expected = [by_all_sets(scores, quality, n) for n in range(1, 8)]
    assert expected_quality(scores, quality, 7) == pytest.approx(expected)
    assert expected_quality([math.nan if s is None else s for s in scores], quality, 7) == pytest.approx(expected)


def test_weights_are_probabilities_for_many_answers_too() -> None:
    weights = best_of_weights(1024, 1024)
    assert np.isfinite(weights).all() and weights.min() >= 0
    assert weights.sum(axis=1) == pytest.approx(np.ones(1024))
    assert weights[0] == pytest.approx(np.full(1024, 1 / 1024)) and weights[-1, -1] == 1.0


def test_the_estimate_is_unbiased_for_fresh_answers() -> None:
    """Best of 3 of 6 answers, averaged over many prompts, against the best of 3 fresh ones."""
    rng = np.random.default_rng(0)
    quality = rng.normal(size=(8_000, 6))
    scores = quality + rng.normal(size=quality.shape)
    estimate = np.mean([expected_quality(s, q, 3)[2] for s, q in zip(scores, quality, strict=True)])
    fresh = rng.normal(size=(200_000, 3))
    best = (fresh + rng.normal(size=fresh.shape)).argmax(axis=1)
    assert estimate == pytest.approx(fresh[np.arange(len(fresh)), best].mean(), abs=0.03)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """Scores equal to quality, quality 0 or 1 with probability 0.3: the best of 2 is right with 1 - 0.7^2."""
    held = 0
    for seed in range(50):
        rng = np.random.default_rng(seed)
        quality = (rng.random((80, 4)) < 0.3).astype(float).tolist()
        row: Any = (
            best_of_curve({"m": quality}, quality, repeats=400, seed=seed).table.set_index(["model", "n"]).loc[("m", 2)]
        )
        held += row["low"] <= 1 - 0.7**2 <= row["high"]
    assert 43 <= held <= 50


def test_prompts_that_cannot_count_are_counted_and_models_share_resamples() -> None:
    quality: Any = [[0.0, 1.0, 0.0]] * 19 + [[1.0], [0.5, None, 0.0], [], [None, None]]
    scores: Any = {
        "good": [[0.0, 2.0, 1.0]] * 19 + [[1.0], [0.0, 0.0, 1.0], [], [1.0, 2.0]],
        "bad": [[None, 0.0, 1.0]] * 19 + [[1.0], [0.0, 0.0, 1.0], [], [1.0, 2.0]],
    }
    curve = best_of_curve(scores, quality, repeats=200)
    assert (curve.prompts, curve.without_quality, curve.too_few_answers) == (19, 3, 1)
    assert curve.unscored == {"good": 0, "bad": 19}
    table: Any = curve.table.set_index(["model", "n"])
    assert table.index.get_level_values("n").max() == 3  # what nine of ten prompts have
    assert table.loc[("good", 3), "quality"] == 1.0 and table.loc[("bad", 3), "quality"] == 0.0
    assert table.loc[("bad", 3), ["difference", "difference_low", "difference_high"]].tolist() == [-1.0] * 3
    assert not table.xs("good")["difference"].to_numpy().any()
    best, good = (table.xs(name)["quality"].to_numpy() for name in (ORACLE, "good"))
    assert (best >= good).all()
    with_short = best_of_curve(scores, quality, up_to=1, repeats=0)
    assert with_short.prompts == 20 and with_short.table["low"].isna().all()


def test_what_gives_no_curve_is_said() -> None:
    with pytest.raises(CurveError, match="no prompt has a quality for every answer"):
        best_of_curve({"m": [[1.0]]}, [[None]])
    with pytest.raises(CurveError, match="no prompt has 3 answers with a quality; the most is 2"):
        best_of_curve({"m": [[1.0, 2.0]]}, [[0.0, 1.0]], up_to=3)
    with pytest.raises(ValueError, match="the scores of 'm' are not one for each quality"):
        best_of_curve({"m": [[1.0]]}, [[0.0, 1.0]])
