"""Arms to compare with: models that train on D0 and the uncurated pairs, or on true labels."""

from __future__ import annotations

from dt2it_pipeline.config.sections.evaluation import EvaluationSettings

CONTROL, CEILING = "control", "ceiling"


def arms(settings: EvaluationSettings) -> dict[str, str]:
    """Arms that the recipe asks for: name -> the asset whose preferences join D0 in its training set."""
    asked = {CONTROL: settings.control_arm, CEILING: settings.ceiling_arm}
    preferences = {CONTROL: "raw_preferences", CEILING: "demo_truth"}
    return {arm: preferences[arm] for arm, wanted in asked.items() if wanted}
