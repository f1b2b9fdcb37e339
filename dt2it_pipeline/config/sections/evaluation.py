"""Section `evaluation`: control arms, the style probe, the report, and when rounds stop."""

from __future__ import annotations

from pydantic import Field

from dt2it_pipeline.config.base import Settings, unit


class EvaluationSettings(Settings):
    """What is trained for comparison, what the report shows, and when the round sensor stops."""

    control_arm: bool = Field(
        True,
        description="also train on D0 and the uncurated preferences, for comparison in the report; not where there is "
        "no benchmark to compare by",
    )
    ceiling_arm: bool = Field(False, description="demo only: also train on D0 and the true labels")
    style_probe_folds: int = Field(
        5, ge=2, le=20, json_schema_extra=unit("folds"), description="cross-validation folds of the style probe"
    )
    examples: int = Field(
        6, ge=0, le=50, json_schema_extra=unit("pairs"), description="example pairs per kind in the report"
    )
    patience: int | None = Field(
        2,
        ge=1,
        json_schema_extra=unit("rounds"),
        description="the round sensor stops after this many rounds in a row whose gain in benchmark accuracy is within "
        "its 95% interval of zero. null: only at the last round",
    )
