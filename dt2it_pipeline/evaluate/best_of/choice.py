"""Which of several answers to a prompt a reward model prefers.

What belongs here: the choice, given scores or a loaded model. What does not: files (files.py) and what the choice is
worth (curve.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


class Scores(Protocol):
    """What gives scores: a `RewardModel` or a `RewardEnsemble`."""

    def score(
        self, prompts: Sequence[Mapping[str, Any]], responses: Sequence[Sequence[str]], **options: Any
    ) -> list[np.ndarray]:
        """One array of scores per prompt."""
        ...


@dataclass(frozen=True)
class BestAnswer:
    """The answer that is chosen for a prompt.

    Attributes:
        place: of the answer among those given, from 0; None where no answer has a score.
        text: of the answer; None likewise.
        score: of the answer; None likewise.
        margin: score minus that of the next different answer, 0 where they are tied; None where there is no other.
        tied: how many different answers share the highest score; the first of them is chosen.
        unscored: answers without a score, which are never chosen.
    """

    place: int | None
    text: str | None
    score: float | None
    margin: float | None
    tied: int
    unscored: int


def best_answer(scores: Sequence[float | None], texts: Sequence[str]) -> BestAnswer:
    """Choose the answer of the highest score; the first of equals. Answers of the same text count as one.

    Args:
        scores: of each answer; None or NaN where it has none.
        texts: of the answers.

    Raises:
        ValueError: there are not as many scores as texts.

    >>> best_answer([0.5, None, 2.0, 2.0], ["a", "b", "c", "d"])
    BestAnswer(place=2, text='c', score=2.0, margin=0.0, tied=2, unscored=1)
    """
    if len(scores) != len(texts):
        raise ValueError(f"{len(scores)} scores but {len(texts)} answers; give one score per answer")
    first: dict[str, tuple[float, int]] = {}
    unscored = 0
    for place, (score, text) in enumerate(zip(scores, texts, strict=True)):
        if score is None or math.isnan(score):
            unscored += 1
        else:
            first.setdefault(text, (float(score), place))
    if not first:
        return BestAnswer(None, None, None, None, 0, unscored)
    ranked = sorted(first.values(), key=lambda entry: (-entry[0], entry[1]))
    score, place = ranked[0]
    margin = score - ranked[1][0] if len(ranked) > 1 else None
    tied = sum(other == score for other, _ in ranked)
    return BestAnswer(place, texts[place], score, margin, tied, unscored)


def best_of(
    model: Scores,
    prompts: Sequence[Mapping[str, Any]],
    responses: Sequence[Sequence[str]],
    **options: Any,
) -> list[BestAnswer]:
    """The best answer to each prompt, by a loaded reward model or an ensemble of them.

    Examples:
        >>> from dt2it_pipeline import RewardModel, best_of
        >>> from dt2it_pipeline.config.paths import model_path
        >>> model = RewardModel.from_pretrained(model_path("demo"), new_head_seed=0)  # a trained one needs no seed
        >>> question = {"turns": [{"role": "user", "text": "Is the sky blue?"}]}
        >>> [best] = best_of(model, [question], [["Yes.", "No.", "Yes."]])
        >>> best.text in ("Yes.", "No."), best.tied
        (True, 1)

    Args:
        model: what scores: `RewardModel`, `RewardEnsemble`, or anything with their method `score`.
        prompts: as for `RewardModel.score`.
        responses: the answers to each prompt, at least one.
        options: further arguments of the model's `score`, such as `media_root`.

    Returns:
        One answer per prompt, with its place, score, margin, ties and unscored answers; see `BestAnswer`.

    Raises:
        ValueError: as `RewardModel.score`.
    """
    found = model.score(prompts, responses, **options)
    return [best_answer(scores.tolist(), texts) for scores, texts in zip(found, responses, strict=True)]
