"""Voters that learn from no feedback and may therefore judge every pair of every round.

Models that differ in their seed alone err on different pairs, and together they err less (deep ensembles,
Lakshminarayanan et al. 2017). Reward models from elsewhere bring what they learned from other data; whether that held
labels of the pairs that they are to judge is for whoever names them to know.
"""

from __future__ import annotations

from pathlib import Path

from dt2it_pipeline.config.paths import model_path
from dt2it_pipeline.config.sections.curation import EnsembleSettings


def seed_voters(settings: EnsembleSettings, seed: int) -> dict[str, int]:
    """Voter -> the seed of its training: those that follow `seed`, the round models' own."""
    return {f"seed/{number}": number for number in range(seed + 1, seed + 1 + settings.seeds)}


def checkpoint_voters(settings: EnsembleSettings) -> dict[str, str]:
    """Voter -> folder of its checkpoint, by the folders' names."""
    return {f"checkpoint/{Path(path).name}": model_path(path) for path in settings.checkpoints}
