"""What a training is asked: its job, which loads without torch."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field

from dt2it_pipeline.config.sections.training import TrainingSettings
from dt2it_pipeline.engines.jobs import Job
from dt2it_pipeline.ingest.provenance import Provenance


class MicroBatch(BaseModel):
    """The most that a forward pass of one rank holds.

    Attributes:
        pairs: as the setting `micro_batch_size` counts them.
        tokens: padding included, as the setting `micro_batch_tokens` counts them; None: without limit.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    pairs: int = Field(ge=1)
    tokens: int | None = Field(None, ge=1)

    def in_words(self) -> str:
        """For a message.

        >>> MicroBatch(pairs=4).in_words(), MicroBatch(pairs=64, tokens=8192).in_words()
        ('4 pairs', '8192 tokens')
        """
        return f"{self.pairs} pairs" if self.tokens is None else f"{self.tokens} tokens"


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
        micro_batch: in the place of that of the settings, after memory ran out; see restarts.py. States of the
            training before are gone on from.
        fallbacks: how often kernels did not fit the GPU, so that less is asked of it; see there, too.
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
    micro_batch: MicroBatch | None = None
    fallbacks: int = Field(0, ge=0)

    @property
    def imports(self) -> str:
        """See `Job`."""
        return "dt2it_pipeline.reward.job_imports:training"

    @property
    def most_per_pass(self) -> MicroBatch:
        """The most that a forward pass holds."""
        settings = self.settings
        return self.micro_batch or MicroBatch(pairs=settings.micro_batch_size, tokens=settings.micro_batch_tokens)
