"""Section `sampling`: candidate responses from one pool of models with one style."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from dt2it_pipeline.config.base import DEMO_BASE_MODEL, unit
from dt2it_pipeline.config.compute import VllmRunSettings
from dt2it_pipeline.config.models import MODEL_NAME


class SamplingSettings(VllmRunSettings):
    """Candidate responses from one pool of models with one style.

    An answer is drawn from a model of the pool, with an instruction and at a temperature; a prompt's answers take the
    combinations in turn, each prompt starting elsewhere, so that all occur equally often.
    """

    model: str = Field(DEMO_BASE_MODEL, min_length=1, description=MODEL_NAME)
    models: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (), strict=False, description="several models instead of `model`; they should write in one style"
    )
    instructions: tuple[str, ...] = Field(
        ("",), strict=False, min_length=1, description="texts added to the question, for instance how long to answer"
    )
    samples: int = Field(
        4, ge=1, le=64, json_schema_extra=unit("answers"), description="answers per prompt to the true image"
    )
    mismatched_samples: int = Field(
        2,
        ge=0,
        le=64,
        json_schema_extra=unit("answers"),
        description="answers per prompt to the image of another prompt (diversity)",
    )
    noised_samples: int = Field(
        0,
        ge=0,
        le=64,
        json_schema_extra=unit("answers"),
        description="answers per prompt to its own image under noise (diversity)",
    )
    noise: float = Field(
        0.7, gt=0, le=1, json_schema_extra=unit("share"), description="share of a noised image that is noise"
    )
    temperature: float = Field(
        1.0,
        ge=0,
        le=5,
        json_schema_extra=unit("sampling temperature"),
        description="temperature of sampling; 0: greedy",
    )
    temperatures: tuple[float, ...] = Field(
        (),
        strict=False,
        json_schema_extra=unit("sampling temperature"),
        description="several temperatures, 0 to 5, instead of `temperature`: answers are sampled at these in turn",
    )
    top_p: float = Field(
        0.95,
        gt=0,
        le=1,
        json_schema_extra=unit("probability"),
        description="nucleus sampling: the likeliest tokens up to this cumulative probability",
    )
    max_new_tokens: int = Field(
        48, ge=1, le=8192, json_schema_extra=unit("tokens"), description="a longer answer is quarantined"
    )
    min_characters: int = Field(
        1, ge=1, le=100_000, json_schema_extra=unit("characters"), description="a shorter answer is quarantined"
    )
    max_model_len: int = Field(
        512,
        ge=64,
        le=131_072,
        json_schema_extra=unit("tokens"),
        description="context length, prompt and answer together",
    )
    max_pixels: int | None = Field(
        None,
        ge=1024,
        json_schema_extra=unit("pixels"),
        description="larger images are scaled down to this size. null: the model's own limit",
    )
    data_parallel: int = Field(
        1, ge=1, le=64, json_schema_extra=unit("copies"), description="copies of the model that share the prompts"
    )
    shard_prompts: int = Field(
        512,
        ge=1,
        json_schema_extra=unit("prompts"),
        description="prompts per shard; a killed run loses at most one shard per copy",
    )

    @property
    def pool(self) -> tuple[str, ...]:
        """The models that answers are drawn from."""
        return self.models or (self.model,)

    @property
    def schedule(self) -> tuple[float, ...]:
        """The temperatures that answers are drawn at."""
        return self.temperatures or (self.temperature,)

    @model_validator(mode="after")
    def _pool_is_clear(self) -> SamplingSettings:
        if len(set(self.models)) < len(self.models):
            raise ValueError("models must differ")
        if len({name.rstrip("/").rsplit("/", 1)[-1] for name in self.models}) < len(self.models):
            raise ValueError("models need different last parts: answers say by it which model wrote them")
        if any(not 0 <= value <= 5 for value in self.temperatures):
            raise ValueError("temperatures must lie between 0 and 5")
        return self
