"""Section `scoring`: how every unique response is scored once."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from dt2it_pipeline.config.base import unit
from dt2it_pipeline.config.compute import ComputeSettings, Precision, VllmRunSettings

LEAST_PIXELS, PAPER_PIXELS = 1024, 1_310_720
MaxPixels: TypeAlias = Literal["trained", "paper"] | Annotated[int, Field(ge=LEAST_PIXELS)]


def pixel_limit(max_pixels: MaxPixels) -> int | None:
    """Pixels to which larger images are scaled down; None where the model's own files say.

    >>> pixel_limit("trained"), pixel_limit("paper"), pixel_limit(65536)
    (None, 1310720, 65536)
    """
    if isinstance(max_pixels, int):
        return max_pixels
    return PAPER_PIXELS if max_pixels == "paper" else None


class ScoringSettings(ComputeSettings, VllmRunSettings):
    """Scoring every unique response once, for the votes of iterative training (arXiv 2604.19544)."""

    engine: Literal["transformers", "vllm"] = Field(
        "transformers",
        description="transformers: our model, with one prompt for all its responses (shared prefix). vllm: its pooling "
        "engine",
    )
    precision: Precision = Field(
        "auto",
        description="number format of weights and activations; head and scores are float32 in any case. auto: bfloat16 "
        "on a GPU that computes in it, float32 elsewhere",
    )
    processes: int = Field(
        2,
        ge=1,
        le=1024,
        json_schema_extra=unit("processes"),
        description="scoring processes on this machine, each with a copy of the model. Local models that judge or "
        "rewrite have as many. What vLLM runs, and judges, have at most one copy per tensor_parallel GPUs",
    )
    tokens_per_batch: int = Field(
        8192, ge=64, json_schema_extra=unit("tokens"), description="most tokens of one forward pass"
    )
    shard_responses: int = Field(
        4096,
        ge=1,
        json_schema_extra=unit("responses"),
        description="responses per shard; a killed run loses at most one shard per process",
    )
    max_length: int | None = Field(
        None,
        ge=16,
        le=1_048_576,
        json_schema_extra=unit("tokens"),
        description="a response that is longer than this together with its prompt is quarantined, and counted in the "
        "log and the report; set it where memory needs a limit. null: the context of the model",
    )
    max_pixels: MaxPixels = Field(
        "trained",
        json_schema_extra=unit("pixels"),
        description="larger images are scaled down to this size. trained: that of the model's training, as its own "
        "files say, and so that of any server. paper: 1,310,720, with which the paper scores and evaluates "
        "(arXiv 2604.19544)",
    )

    @model_validator(mode="after")
    def _vllm_runs_what_is_set_for_it(self) -> ScoringSettings:
        given = [
            name
            for name, field in VllmRunSettings.model_fields.items()
            if self.engine != "vllm" and getattr(self, name) != field.default
        ]
        if given:
            raise ValueError(f"{', '.join(given)} of scoring need engine: vllm")
        return self

    @property
    def pixel_limit(self) -> int | None:
        """`max_pixels` as a number, None where it is that of the model's training."""
        return pixel_limit(self.max_pixels)
