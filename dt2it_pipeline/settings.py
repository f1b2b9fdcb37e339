"""What sections of a recipe share, and the section `ray`; see recipe.py, construct/settings.py, curate/settings.py."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator

DEMO_BASE_MODEL = "demo"  # the name under which recipes ask for the base model that ships with the package
_LEAST = 1e-4  # of a CPU or GPU; Ray counts in such parts


class Settings(BaseModel):
    """Base of every section: unknown keys are errors, values are not coerced, instances do not change."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


def kind_of(section: Any) -> str:
    """The `kind` of a section of which there are several, empty where it has none; for `pydantic.Discriminator`.

    A function, since pydantic then tells the kinds that there are of a section without any, too.
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


def _sections(annotation: Any) -> list[type[Settings]]:
    """The sections that a field may hold, in lists and unions too."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    return [section for inner in get_args(annotation) for section in _sections(inner)]


class RaySettings(Settings):
    """Scoring and sampling on the workers of a Ray cluster instead of local processes (extra `ray`).

    `scoring.processes` and `sampling.data_parallel` then do not count. All machines need the artifact home, the
    models, the project and Python under the same paths, on file systems that they share. Results are those of local
    processes with as many threads each.
    """

    address: str | None = Field(
        None,
        pattern=r"^(auto|[^\s/]+:[0-9]{1,5})$",
        description="host:port of the cluster that this machine belongs to, or auto to find it; when absent, Ray is "
        "started on this machine for the step",
    )
    workers: int = Field(2, ge=1, le=4096, description="most workers at once; each holds a copy of the model")
    cpus_per_worker: float = Field(1, ge=_LEAST, le=1024, description="CPU cores, and threads, of a worker")
    gpus_per_worker: float = Field(
        0, ge=0, le=64, description="GPUs of a worker, whole ones or a share of one; 0: it computes on its CPU"
    )
    retries: int = Field(3, ge=0, le=100, description="times a shard is begun anew after its worker has died")
    wait_seconds: float = Field(600, gt=0, le=86_400, description="seconds to wait for the first worker")

    @field_validator("gpus_per_worker")
    @classmethod
    def _ray_has_so_many(cls, value: float) -> float:
        if 0 < value < _LEAST or (value > 1 and value != int(value)):
            raise ValueError(f"Ray gives a worker whole GPUs, or a share of one, at least {_LEAST:g}")
        return value
