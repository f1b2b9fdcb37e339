from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from dt2it_pipeline import best_of
from dt2it_pipeline.evaluate.best_of.choice import BestAnswer, best_answer


def test_the_highest_score_wins_and_unscored_answers_never_do() -> None:
    assert best_answer([None, -3.0, math.nan, -2.0], ["a", "b", "c", "d"]) == BestAnswer(3, "d", -2.0, 1.0, 1, 2)
    assert best_answer([None, math.nan], ["a", "b"]) == BestAnswer(None, None, None, None, 0, 2)
    assert best_answer([], []) == BestAnswer(None, None, None, None, 0, 0)
    with pytest.raises(ValueError, match="1 scores but 2 answers"):
        best_answer([1.0], ["a", "b"])


def test_the_first_of_tied_answers_is_chosen_and_the_same_text_is_no_tie() -> None:
    assert best_answer([1.0, 2.0, 2.0], ["a", "b", "c"]) == BestAnswer(1, "b", 2.0, 0.0, 2, 0)
    assert best_answer([2.0, 1.0, 2.0], ["a", "b", "a"]) == BestAnswer(0, "a", 2.0, 1.0, 1, 0)
    assert best_answer([2.0, 2.0], ["a", "a"]) == BestAnswer(0, "a", 2.0, None, 1, 0)


class LikesLength:
    """Scores by length."""

    def score(
        self, prompts: Sequence[Mapping[str, Any]], responses: Sequence[Sequence[str]], **options: Any
    ) -> list[np.ndarray]:
        self.options = options
        return [np.array([len(text) for text in row], dtype=np.float32) for row in responses]


def test_from_python_with_any_model() -> None:
    model = LikesLength()
    found = best_of(model, [{"turns": []}] * 2, [["a", "bbb", "cc"], ["d"]], media_root="x")
    assert [(one.place, one.text, one.score, one.margin) for one in found] == [
        (1, "bbb", 3.0, 1.0),
        (0, "d", 1.0, None),
    ]
    assert model.options == {"media_root": "x"}
