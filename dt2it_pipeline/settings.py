"""What every section of a recipe shares; the sections stand in recipe.py and construct/settings.py."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

DEMO_BASE_MODEL = "demo"  # the name under which recipes ask for the base model that ships with the package


class Settings(BaseModel):
    """Base of every section: unknown keys are errors, values are not coerced, instances do not change."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)
