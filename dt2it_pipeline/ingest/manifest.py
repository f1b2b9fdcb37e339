"""Manifests: one YAML per data source, which says what it holds, where it lies and how its columns are named."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from dt2it_pipeline.recipe import Settings, project_root
from dt2it_pipeline.strict_yaml import load_yaml

REQUIRED_COLUMNS = {
    "prompts": ("question", "reference"),
    "preferences": ("question", "chosen", "rejected"),
    "t2i": ("caption", "preferred", "other"),
    "benchmark": ("question", "chosen", "rejected"),
    "t2i_benchmark": ("caption", "preferred", "other"),
}
SOURCES = "{sources}"  # in paths: the folder sources/ of the artifact home


class ManifestError(ValueError):
    """A manifest cannot be read, or does not describe a source."""


class Manifest(Settings):
    """One data source.

    `columns` maps a field of ours (question, chosen, rejected, image, video, ...) to the source's column; a field that
    is not named there is looked for under its own name.
    """

    name: str = Field(min_length=1, pattern=r"^[a-zA-Z0-9_.-]+$")
    kind: Literal["prompts", "preferences", "t2i", "benchmark", "t2i_benchmark", "truth"]
    path: str = Field(description="a JSON Lines file; `{sources}` stands for the artifact home's sources folder")
    media_root: str = Field(description="folder that no media path may leave")
    columns: dict[str, str] = Field(default_factory=dict)
    benchmark: str | None = Field(None, description="benchmark that the rows belong to; else the manifest's name")
    group: str | None = Field(None, description="benchmark group of every row; else the column `group`")
    language: str = "en"
    licence: str = Field(min_length=1)
    citation: str = ""
    limit: int | None = Field(None, ge=1, description="read at most this many rows")

    @model_validator(mode="after")
    def _columns_are_fields(self) -> Manifest:
        known = {"id", "image", "images", "video", "videos", "group", "system", *self.required_fields()}
        unknown = sorted(set(self.columns) - known)
        if unknown:
            raise ValueError(f"columns names unknown fields {unknown}; known: {sorted(known)}")
        return self

    def required_fields(self) -> tuple[str, ...]:
        """Fields that every row of this kind must have."""
        return REQUIRED_COLUMNS["preferences" if self.kind == "truth" else self.kind]

    def column(self, field: str) -> str:
        """The source's name of one of our fields."""
        return self.columns.get(field, field)

    def located(self, sources: Path) -> tuple[Path, Path]:
        """Data file and media root as absolute paths; relative ones count from the project root."""
        data, media = (
            Path(text.replace(SOURCES, str(sources))) if SOURCES in text else project_root() / text
            for text in (self.path, self.media_root)
        )
        return data, media


def load_manifest(path: Path) -> Manifest:
    """Load and check one manifest. Raises ManifestError naming the file and the wrong key."""
    try:
        return Manifest.model_validate(load_yaml(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ManifestError(f"cannot read manifest {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ManifestError(f"manifest {path.name} is not valid YAML: {error}") from error
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, f['loc'])) or '(manifest)'}: {f['msg']}" for f in error.errors())
        raise ManifestError(f"manifest {path.name}: {faults}") from None


def load_catalogue(names: tuple[str, ...]) -> list[Manifest]:
    """Load the manifests that a recipe names from configs/datasets; their own names must differ."""
    manifests = [load_manifest(project_root() / "configs/datasets" / f"{name}.yaml") for name in names]
    seen: set[str] = set()
    for manifest in manifests:
        if manifest.name in seen:
            raise ManifestError(f"two manifests of the recipe are named {manifest.name!r}")
        seen.add(manifest.name)
    return manifests


def require_first_training_set(manifests: list[Manifest], recipe: str) -> None:
    """Raise ManifestError where no source can give D0, the training set of round 0.

    Every other kind may be missing: without `preferences` there is nothing to curate, without a benchmark no accuracy
    is measured, and the stages that would have read them hand on empty tables.
    """
    if not {"prompts", "t2i"} & {manifest.kind for manifest in manifests}:
        found = ", ".join(f"{manifest.name} ({manifest.kind})" for manifest in manifests) or "none at all"
        raise ManifestError(
            f"recipe {recipe!r} names no source of kind `prompts` or `t2i`, from which round 0's training set is made: "
            f"describe one in configs/datasets and add it to the recipe's `datasets`; it names {found}"
        )
