"""Multimodal reward models from noisy preference data: DT2IT-MRM as a Dagster pipeline (arXiv 2604.19544).

    from dt2it_pipeline import (
        RewardEnsemble, RewardModel, best_of, best_of_curve, clean_preferences, export_pairs, load_recipe,
        read_preferences, score_benchmark, style_probe
    )

What belongs here: the names that notebooks and other programs use. Each is imported from its home when it is first
asked for, so that `import dt2it_pipeline` loads neither torch nor pandas.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dt2it_pipeline.errors import naming_missing_engines

if TYPE_CHECKING:
    from dt2it_pipeline.config.recipe import load_recipe
    from dt2it_pipeline.curate.preferences import clean_preferences
    from dt2it_pipeline.evaluate.benchmarks.metrics import score_benchmark
    from dt2it_pipeline.evaluate.best_of.choice import best_of
    from dt2it_pipeline.evaluate.best_of.curve import best_of_curve
    from dt2it_pipeline.export import export_pairs
    from dt2it_pipeline.ingest.preferences import read_preferences
    from dt2it_pipeline.reward.ensemble import RewardEnsemble
    from dt2it_pipeline.reward.reward_model import RewardModel
    from dt2it_pipeline.style import style_probe

__all__ = [
    "RewardEnsemble",
    "RewardModel",
    "best_of",
    "best_of_curve",
    "clean_preferences",
    "export_pairs",
    "load_recipe",
    "read_preferences",
    "score_benchmark",
    "style_probe",
]

_HOMES = {
    "RewardEnsemble": "dt2it_pipeline.reward.ensemble",
    "RewardModel": "dt2it_pipeline.reward",
    "best_of": "dt2it_pipeline.evaluate.best_of.choice",
    "best_of_curve": "dt2it_pipeline.evaluate.best_of.curve",
    "clean_preferences": "dt2it_pipeline.curate.preferences",
    "export_pairs": "dt2it_pipeline.export",
    "load_recipe": "dt2it_pipeline.config.recipe",
    "read_preferences": "dt2it_pipeline.ingest.preferences",
    "score_benchmark": "dt2it_pipeline.evaluate.benchmarks.metrics",
    "style_probe": "dt2it_pipeline.style",
}


def __getattr__(name: str) -> Any:
    """A public name, imported from its home. Raises NotInstalledError where that needs an engine that is missing."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with naming_missing_engines():
        found = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
