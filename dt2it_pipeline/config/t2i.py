"""Section `t2i`: text-to-image preferences as two-image questions."""

from __future__ import annotations

from pydantic import Field

from dt2it_pipeline.config.base import Settings


class T2ISettings(Settings):
    """Text-to-image preferences as two-image questions (arXiv 2604.19544, reformulation of T2I preferences)."""

    max_pairs: int | None = Field(None, ge=1, description="use at most this many; all when absent")
    phrasings: int | None = Field(
        None,
        ge=1,
        description="ask in the first so many phrasings of each language (configs/prompts/t2i.*.yaml); all when absent",
    )
