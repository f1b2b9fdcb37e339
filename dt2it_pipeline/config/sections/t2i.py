"""Section `t2i`: text-to-image preferences as two-image questions."""

from __future__ import annotations

from pydantic import Field

from dt2it_pipeline.config.base import Settings, unit


class T2ISettings(Settings):
    """Text-to-image preferences as two-image questions (arXiv 2604.19544, reformulation of T2I preferences)."""

    max_pairs: int | None = Field(
        None, ge=1, json_schema_extra=unit("pairs"), description="most pairs that are made. null: no limit"
    )
    phrasings: int | None = Field(
        None,
        ge=1,
        json_schema_extra=unit("phrasings"),
        description="use only the first phrasings of each language (configs/prompts/t2i.*.yaml). null: all of them",
    )
