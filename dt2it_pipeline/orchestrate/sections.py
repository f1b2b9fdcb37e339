"""The sections of a recipe that several assets take together, so that none takes the whole of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from dt2it_pipeline.config.recipe import Recipe
from dt2it_pipeline.config.sections.annotation import AnnotationSettings
from dt2it_pipeline.config.sections.curation import CurationSettings
from dt2it_pipeline.config.sections.evaluation import EvaluationSettings
from dt2it_pipeline.config.sections.ray import RaySettings
from dt2it_pipeline.config.sections.scoring import ScoringSettings
from dt2it_pipeline.config.sections.training import TrainingSettings


class ModelSections(NamedTuple):
    """What training and scoring a reward model takes."""

    training: TrainingSettings
    scoring: ScoringSettings
    ray: RaySettings | None
    seed: int

    @classmethod
    def of(cls, recipe: Recipe) -> ModelSections:
        """Those of a recipe."""
        return cls(recipe.training, recipe.scoring, recipe.ray, recipe.seed)


@dataclass(frozen=True)
class ReportSections:
    """What the report computes by, and what of a recipe it prints."""

    name: str
    seed: int
    rounds: int
    sources: tuple[str, ...]
    settings: Mapping[str, Any]  # the whole recipe as JSON values: what its digest and comparisons of runs go by
    has_truth: bool  # whether the demo's true labels are there to grade by
    evaluation: EvaluationSettings
    curation: CurationSettings
    annotation: AnnotationSettings
    training: TrainingSettings  # its trackers

    @classmethod
    def of(cls, recipe: Recipe) -> ReportSections:
        """Those of a recipe."""
        return cls(
            recipe.name,
            recipe.seed,
            recipe.rounds,
            tuple(recipe.datasets),
            recipe.model_dump(mode="json"),
            recipe.demo is not None,
            recipe.evaluation,
            recipe.curation,
            recipe.annotation,
            recipe.training,
        )
