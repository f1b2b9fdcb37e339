"""Sections `cleaning` and `decontamination`: which preference pairs are quarantined before training."""

from __future__ import annotations

from pydantic import Field

from dt2it_pipeline.config.base import Settings, unit


class CleaningSettings(Settings):
    """Which preference pairs are quarantined at ingestion, besides repeated and contradictory ones."""

    near_duplicate: float | None = Field(
        0.9,
        gt=0,
        le=1,
        json_schema_extra=unit("Jaccard similarity"),
        description="a pair whose two sides are at least this similar to those of an earlier pair of the same question "
        "is a near-duplicate (similarity of 5-character shingles). null: near-duplicates stay",
    )


class DecontaminationSettings(Settings):
    """When a training pair counts as benchmark content, besides equal files and equal questions without media."""

    perceptual_distance: int | None = Field(
        6,
        ge=0,
        le=16,
        json_schema_extra=unit("bits of 64"),
        description="two images whose perceptual hashes differ in at most this many bits are one image, scaled or "
        "recompressed. null: only equal files count, for drawn images that look alike without being the same",
    )
    response_characters: int | None = Field(
        64,
        ge=1,
        json_schema_extra=unit("characters"),
        description="a response of at least this length whose question and text are in a benchmark counts, whatever "
        "the image. null: never, for answers that follow templates",
    )
