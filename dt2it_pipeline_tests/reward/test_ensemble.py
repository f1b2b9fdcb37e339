from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dt2it_pipeline.reward.calibration import Calibration
from dt2it_pipeline.reward.ensemble import RewardEnsemble, combine_scores

A = [np.array([0.0, 1.0, 2.0]), np.array([5.0, 6.0])]


def test_scale_and_offset_of_a_model_do_not_matter() -> None:
    shifted = [10 * A[0] + 7, 10 * A[1] - 3]
    for rule in ("mean", "worst"):
        alone, both = combine_scores([A], rule), combine_scores([A, shifted], rule)
        for one, other in zip(alone.scores, both.scores, strict=True):
            assert one == pytest.approx(other)
        assert np.concatenate(both.spread) == pytest.approx(0, abs=1e-12)


def test_the_worst_case_punishes_what_one_model_rejects() -> None:
    first, second = [np.array([3.0, 1.5, 0.0])], [np.array([0.0, 2.5, 2.0])]
    worst = combine_scores([first, second], "worst", scales=(1.0, 1.0))
    assert worst.scores[0] == pytest.approx([-1.5, 0.0, -1.5])
    assert worst.spread[0] == pytest.approx([1.5, 0.5, 1.0])
    assert combine_scores([first, second], scales=(1.0, 1.0)).scores[0] == pytest.approx([0.0, 0.5, -0.5])


def test_an_answer_without_a_score_of_one_model_has_none_and_harms_no_other() -> None:
    holed = [np.array([0.0, np.nan, 2.0]), np.array([np.nan, np.nan])]
    made = combine_scores([A, holed])
    assert np.isnan(made.scores[0]).tolist() == [False, True, False]
    assert np.isnan(made.scores[1]).all() and made.scores[0][2] > made.scores[0][0]


def test_an_answer_that_one_model_lacks_moves_no_model_against_the_others() -> None:
    first, second = [np.array([3.0, 1.5, 0.0, 900.0])], [np.array([0.0, 2.5, 2.0, np.nan])]
    for missing in (np.nan, np.inf):
        second[0][3] = missing
        made = combine_scores([first, second], "worst", scales=(1.0, 1.0))
        assert made.scores[0][:3] == pytest.approx([-1.5, 0.0, -1.5]) and np.isnan(made.scores[0][3])
        assert made.spread[0][:3] == pytest.approx([1.5, 0.5, 1.0])
    with_gap = combine_scores([[np.array([1.0, 2.0, 9.0])], [np.array([1.0, 2.0, np.nan])]])
    assert with_gap.scales[0] == with_gap.scales[1]


def test_a_model_that_cannot_tell_answers_apart_does_not_count() -> None:
    flat = [np.zeros(3), np.zeros(2)]
    made = combine_scores([A, flat])
    assert made.scales[1] == 1.0 and made.scores[0] == pytest.approx(combine_scores([A]).scores[0] / 2)


def test_what_cannot_be_combined_is_said() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        (dict(scores=[]), "at least one model"),
        (dict(scores=[A], rule="best"), "'mean' or 'worst'"),
        (dict(scores=[A, A[:1]]), "different prompts"),
        (dict(scores=[A], scales=(0.0,)), "numbers above 0"),
        (dict(scores=[A, A], scales=(1.0,)), "2 numbers above 0"),
    ]
    for given, message in cases:
        with pytest.raises(ValueError, match=message):
            combine_scores(**given)


class Fixed:
    """A model with given scores."""

    def __init__(self, scores: list[np.ndarray], temperature: float | None) -> None:
        self._scores = scores
        self.calibration = None if temperature is None else Calibration(temperature, 1, 2, 1, 1, 1, 1, 1, 1, 1)

    def score(self, *given: Any, **options: Any) -> list[np.ndarray]:
        return self._scores


def test_temperatures_are_the_scales_where_all_models_have_one() -> None:
    models: Any = [Fixed(A, 2.0), Fixed(A, 4.0)]
    assert RewardEnsemble(models).score_with_spread([], []).scales == (2.0, 4.0)
    models[1].calibration = None
    made = RewardEnsemble(models).score_with_spread([], [])
    assert made.scales[0] == made.scales[1] == pytest.approx(np.sqrt(2.5 / 3))
    assert RewardEnsemble(models, scales=(3.0, 1.0)).score_with_spread([], []).scales == (3.0, 1.0)
    assert RewardEnsemble(models).score([], [])[0].dtype == np.float32
    with pytest.raises(ValueError, match="at least one model"):
        RewardEnsemble([])
