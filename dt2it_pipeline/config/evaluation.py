"""Section `evaluation`: benchmarks, control arms and the report."""

from __future__ import annotations

from pydantic import Field

from dt2it_pipeline.config.base import Settings


class EvaluationSettings(Settings):
    """Benchmarks, grading and the report."""

    control_arm: bool = Field(
        True, description="also train on D0 + the uncurated preferences and show it in the report"
    )
    ceiling_arm: bool = Field(False, description="demo only: also train on D0 + true labels")
    style_probe_folds: int = Field(5, ge=2, le=20)
    examples: int = Field(6, ge=0, le=50, description="example pairs per kind in the report")
    patience: int | None = Field(
        2,
        ge=1,
        description="the round sensor stops after this many rounds in a row whose gain of benchmark accuracy is within "
        "its 95% interval of zero; null: only at the last round",
    )
