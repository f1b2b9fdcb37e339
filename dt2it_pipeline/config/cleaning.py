"""Sections `cleaning` and `decontamination`: what is taken out of preference pairs before training."""

from __future__ import annotations

from pydantic import Field

from dt2it_pipeline.config.base import Settings


class CleaningSettings(Settings):
    """What is taken out of the preference pairs when they come in, besides repeated and contradictory ones."""

    near_duplicate: float | None = Field(
        0.9,
        gt=0,
        le=1,
        description="Jaccard similarity of both sides' 5-character shingles to those of an earlier pair "
        "of the same question, from which on a pair is a near-duplicate; null: not looked for",
    )


class DecontaminationSettings(Settings):
    """What counts as a benchmark's content in training pairs, besides equal files and equal questions without media."""

    perceptual_distance: int | None = Field(
        6,
        ge=0,
        le=16,
        description="bits of 64 in which the perceptual hashes of two images may differ that count as one image, "
        "scaled or recompressed; null: equal files only, for drawn images that look alike without being the same",
    )
    response_characters: int | None = Field(
        64,
        ge=1,
        description="a response of at least this many characters whose question and words are a benchmark's counts, "
        "whatever the image; null: never, for answers that follow templates",
    )
