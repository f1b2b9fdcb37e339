"""Several reward models behind the interface of one.

Scores of different models have different scales, and only their differences within a prompt mean something. So each
model's scores are standardised before they are combined: the mean over the prompt's answers is subtracted (those that
all models scored, so that an answer that one of them lacks moves no model against the others), and the rest
is divided by the model's scale. That is its calibrated temperature where all models have one (differences are then
log-odds), else the standard deviation within prompts over the prompts of the call.

- `mean`: the mean over models. Errors that the models do not share cancel.
- `worst`: the minimum over models. An answer is good where every model says so, which is harder to exploit by
  optimisation (Coste et al. 2024, arXiv 2310.02743).
- The spread, the standard deviation over models, is a warning sign: where it is as large as the differences between
  answers, the models do not agree which answer is better. Models that share data and errors agree even where they are
  wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from dt2it_pipeline.reward.reward_model import RewardModel

Rule: TypeAlias = Literal["mean", "worst"]


@dataclass(frozen=True)
class EnsembleScores:
    """Scores of an ensemble, one array per prompt, [its responses]; NaN where a model has no score.

    Attributes:
        scores: combined by the rule.
        spread: standard deviation over models of the standardised scores.
        scales: what each model's scores were divided by.
    """

    scores: list[np.ndarray]
    spread: list[np.ndarray]
    scales: tuple[float, ...]


def combine_scores(
    scores: Sequence[Sequence[np.ndarray]], rule: Rule = "mean", scales: Sequence[float] | None = None
) -> EnsembleScores:
    """Combine the scores of several models.

    >>> one, ten_times = [np.array([0.0, 1.0])], [np.array([0.0, 10.0])]
    >>> combine_scores([one, ten_times]).scores[0].round(3).tolist()
    [-0.707, 0.707]

    Args:
        scores: by model and prompt, [responses of the prompt]; NaN where there is no score.
        rule: `mean` or `worst`.
        scales: positive, one per model; by default each one's standard deviation within prompts, over all of them.

    Raises:
        ValueError: there are no models, the rule is unknown, models differ in prompts or responses, or a scale is none.
    """
    if not scores:
        raise ValueError("an ensemble needs at least one model")
    if rule not in ("mean", "worst"):
        raise ValueError(f"rule must be 'mean' or 'worst', found {rule!r}")
    shapes = [[np.shape(prompt) for prompt in model] for model in scores]
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError("the models have scores for different prompts or responses")
    centred = [list(model) for model in zip(*map(_centred, zip(*scores, strict=True)), strict=True)]
    centred = centred or [[] for _ in scores]
    if scales is None:
        scales = [_deviation(model) for model in centred]
    if len(scales) != len(scores) or not all(np.isfinite(scale) and scale > 0 for scale in scales):
        raise ValueError(f"scales must be {len(scores)} numbers above 0, found {list(scales)}")
    combined, spread = [], []
    for prompt in zip(*centred, strict=True):
        every = np.stack([own / scale for own, scale in zip(prompt, scales, strict=True)])
        combined.append(every.mean(axis=0) if rule == "mean" else every.min(axis=0))
        spread.append(every.std(axis=0))
    return EnsembleScores(combined, spread, tuple(map(float, scales)))


def _centred(scores: Sequence[np.ndarray]) -> np.ndarray:
    """Scores of one prompt's answers, [models, answers], around the mean of the answers that all models scored."""
    every = np.asarray(scores, dtype=np.float64)
    known = np.isfinite(every).all(axis=0)
    if not known.any():
        return np.full(every.shape, np.nan)
    return np.where(known, every - every[:, known].mean(axis=1, keepdims=True), np.nan)


def _deviation(centred: Sequence[np.ndarray]) -> float:
    """Standard deviation within prompts; 1 where a model's scores never differ, which then do not count."""
    known = [prompt[np.isfinite(prompt)] for prompt in centred]
    freedom = sum(max(0, len(prompt) - 1) for prompt in known)
    total = float(sum((prompt**2).sum() for prompt in known))
    return float(np.sqrt(total / freedom)) if freedom and total > 0 else 1.0


class RewardEnsemble:
    """Several reward models that score as one.

    Examples:
        >>> from dt2it_pipeline import RewardEnsemble
        >>> from dt2it_pipeline.config.paths import model_path
        >>> ensemble = RewardEnsemble.from_pretrained([model_path("demo")] * 2, new_head_seed=0)
        >>> question = {"turns": [{"role": "user", "text": "Is the sky blue?"}]}
        >>> [scores] = ensemble.score([question], [["Yes.", "No."]])
        >>> round(float(scores.sum()), 6), scores.dtype
        (0.0, dtype('float32'))

    Args:
        models: loaded reward models, at least one.
        rule: `mean` or `worst`; see the module.
        scales: what the models' scores are divided by; by default their temperatures where all are calibrated, else
            their standard deviations within prompts in the call. Give them where scores of several calls are compared.
    """

    def __init__(
        self, models: Sequence[RewardModel], rule: Rule = "mean", scales: Sequence[float] | None = None
    ) -> None:
        if not models:
            raise ValueError("an ensemble needs at least one model")
        self.models, self.rule = tuple(models), rule
        if scales is None:
            found = [model.calibration for model in self.models]
            temperatures = [one.temperature for one in found if one is not None]
            scales = temperatures if len(temperatures) == len(found) else None
        self.scales = None if scales is None else tuple(scales)

    @classmethod
    def from_pretrained(
        cls,
        paths: Sequence[str | Path],
        *,
        rule: Rule = "mean",
        scales: Sequence[float] | None = None,
        **options: Any,
    ) -> Self:
        """Load several checkpoints; `options` are those of `RewardModel.from_pretrained`."""
        from dt2it_pipeline.reward import RewardModel

        return cls([RewardModel.from_pretrained(path, **options) for path in paths], rule, scales)

    def score(
        self, prompts: Sequence[Mapping[str, Any]], responses: Sequence[Sequence[str]], **options: Any
    ) -> list[np.ndarray]:
        """Combined scores of responses to prompts, one float32 array per prompt; arguments as `RewardModel.score`."""
        return [scores.astype(np.float32) for scores in self.score_with_spread(prompts, responses, **options).scores]

    def score_with_spread(
        self, prompts: Sequence[Mapping[str, Any]], responses: Sequence[Sequence[str]], **options: Any
    ) -> EnsembleScores:
        """Combined scores and how far the models are apart; arguments as `RewardModel.score`."""
        found = [model.score(prompts, responses, **options) for model in self.models]
        return combine_scores(found, self.rule, self.scales)
