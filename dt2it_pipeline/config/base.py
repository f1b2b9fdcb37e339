"""What all sections of a recipe share: the strict base class, units, and the search for a misspelt key."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, JsonValue
from pydantic_core import ErrorDetails

DEMO_BASE_MODEL = "demo"  # the name under which recipes ask for the base model that ships with the package


class Settings(BaseModel):
    """Base of every section: unknown keys are errors, values are not coerced, instances do not change."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


def unit(name: str) -> dict[str, JsonValue]:
    """The unit of a setting, as its `json_schema_extra`: reference.py and the JSON schema show it."""
    return {"unit": name}


def kind_of(section: Any) -> str:
    """The `kind` of a section of which there are several, empty where it has none; for `pydantic.Discriminator`.

    A function, since pydantic's error then names the kinds that there are, also for a section without any.
    """
    found = section.get("kind") if isinstance(section, dict) else getattr(section, "kind", None)
    return found if isinstance(found, str) else ""


def guessed_key(section: type[Settings], place: Sequence[int | str]) -> str | None:
    """The key that somebody may have meant who wrote the last part of `place`, a path of keys from a section."""
    sections = [section]
    for part in place[:-1]:
        found = [each.model_fields[part].annotation for each in sections if part in each.model_fields]
        sections = [inner for annotation in found for inner in _sections(annotation)] or sections  # else a list's place
    known = {key for each in sections for key in each.model_fields}
    return next(iter(difflib.get_close_matches(str(place[-1]), sorted(known), n=1, cutoff=0.75)), None)


def fault_message(fault: ErrorDetails) -> str:
    """What is wrong, in the words of whoever checked it: pydantic puts `Value error, ` before those of a validator."""
    return fault["msg"].removeprefix("Value error, ")


def _sections(annotation: Any) -> list[type[Settings]]:
    """The sections that a field may hold, in lists and unions too."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    return [section for inner in get_args(annotation) for section in _sections(inner)]
