"""Section `demo`: how much of the embedded world becomes which source."""

from __future__ import annotations

from pydantic import Field

from dt2it_pipeline.config.base import Settings


class DemoSettings(Settings):
    """The embedded world: how much of easy-VQA becomes which source."""

    prompts: int = Field(600, ge=1, le=10_000, description="questions with a gold answer, for construction")
    preferences: int = Field(3000, ge=1, le=30_000, description="noisy preference pairs, for curation")
    t2i: int = Field(500, ge=1, le=10_000, description="text-to-image preferences")
    benchmark_per_group: int = Field(300, ge=1, le=2_000, description="held-out pairs per benchmark group")
    noise: float = Field(0.3, ge=0, le=0.5, description="share of preference labels that are wrong")
    style_bias: float = Field(
        0.9, ge=0.5, le=1, description="share of pairs whose labelled-chosen side is the verbose one"
    )
    corrupt_images: int = Field(
        0, ge=0, description="image files of the preference slice to truncate, to test quarantine"
    )
