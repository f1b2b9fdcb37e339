"""What every section of a recipe shares; the sections stand in recipe.py and construct/settings.py."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

DEMO_BASE_MODEL = "demo"  # the name under which recipes ask for the base model that ships with the package


class Settings(BaseModel):
    """Base of every section: unknown keys are errors, values are not coerced, instances do not change."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


def kind_of(section: Any) -> str:
    """The `kind` of a section of which there are several, empty where it has none; for `pydantic.Discriminator`.

    A function, since pydantic then tells the kinds that there are of a section without any, too.
    """
    found = section.get("kind") if isinstance(section, dict) else getattr(section, "kind", None)
    return found if isinstance(found, str) else ""
