"""What a training is asked: its job, which loads without torch."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from dt2it_pipeline.config.sections.training import TrainingSettings
from dt2it_pipeline.engines.jobs import Job
from dt2it_pipeline.ingest.provenance import Provenance


class TrainJob(Job):
    """Train one reward model on a pairs table.

    Attributes:
        name: of the model, for its card and its curves.
        base_model: model folder or Hub id.
        pairs: Parquet of kind `pairs`.
        prompts: Parquet of kind `prompts`; those of the pairs, at least.
        media_root: folder that the rows' media paths are relative to.
        output: checkpoint folder; it appears whole or not at all.
        work: folder that holds what a killed run needs to go on to the same weights.
        settings: the recipe's section `training`.
        seed: of the order of pairs, of the head's and adapters' first values, and of who is held out.
        sources: what the card says of the pairs' sources, by name.
    """

    entry_point: ClassVar[str] = "dt2it_pipeline.reward.training.train:run"

    name: str = ""
    base_model: str
    pairs: Path
    prompts: Path
    media_root: Path
    output: Path
    work: Path
    settings: TrainingSettings
    seed: int
    sources: dict[str, Provenance] = Field(default_factory=dict)
