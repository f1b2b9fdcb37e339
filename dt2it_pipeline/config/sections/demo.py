"""Section `demo`: how many rows the embedded world gives to each source, and how noisy its labels are."""

from __future__ import annotations

from pydantic import Field

from dt2it_pipeline.config.base import Settings, unit


class DemoSettings(Settings):
    """The embedded world, made of easy-VQA images: sizes of its sources and faults of its labels."""

    prompts: int = Field(
        600,
        ge=1,
        le=10_000,
        json_schema_extra=unit("prompts"),
        description="questions with a reference answer, for construction",
    )
    preferences: int = Field(
        3000, ge=1, le=30_000, json_schema_extra=unit("pairs"), description="noisy preference pairs, for curation"
    )
    t2i: int = Field(
        500, ge=1, le=10_000, json_schema_extra=unit("preferences"), description="text-to-image preferences"
    )
    benchmark_per_group: int = Field(
        300, ge=1, le=2_000, json_schema_extra=unit("pairs"), description="held-out pairs per benchmark group"
    )
    noise: float = Field(
        0.3, ge=0, le=0.5, json_schema_extra=unit("share"), description="share of preference labels that are wrong"
    )
    style_bias: float = Field(
        0.9,
        ge=0.5,
        le=1,
        json_schema_extra=unit("share"),
        description="share of pairs whose labelled-chosen side is the verbose one",
    )
    corrupt_images: int = Field(
        0,
        ge=0,
        json_schema_extra=unit("files"),
        description="image files of the noisy pairs that are truncated, to test quarantine",
    )
