"""Manifests: one YAML per data source: what it holds, where it lies and how its columns are named."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from dt2it_pipeline.config.base import fault_message, guessed_key
from dt2it_pipeline.config.paths import (
    config_files,
    config_folders,
    is_hub_id,
    named_file,
    project_root,
    what_there_is,
)
from dt2it_pipeline.config.recipe import Settings
from dt2it_pipeline.config.strict_yaml import load_yaml
from dt2it_pipeline.errors import UserError
from dt2it_pipeline.ingest.adapters import UnknownAdapterError, adapter
from dt2it_pipeline.ingest.forms.verdicts import value_text

SOURCES = "{sources}"  # in paths: the folder sources/ of the artifact home
FORMATS = ("jsonl", "json", "csv", "tsv", "parquet", "parts", "dataset")


class ManifestError(UserError, ValueError):
    """A manifest cannot be read, or does not describe a source."""

    help_page: ClassVar[str] = "troubleshooting#manifest"


class Manifest(Settings):
    """One data source.

    It lies at `path`, on the Hub at `hub`, or both: then `path` is a local copy, which is read where it exists, and the
    network is not touched. `columns` maps a column that the adapter reads (for `auto`, a field of ours) to the name
    that it has in the source; a column that is not named there is looked for under its own name (for `auto`, under the
    names that public files use).
    """

    name: str = Field(
        min_length=1,
        max_length=100,  # it is part of a file's name
        pattern=r"^[a-zA-Z0-9_][a-zA-Z0-9_.-]*$",
        description="name of the source in tables and in the report",
    )
    kind: Literal["prompts", "preferences", "t2i", "benchmark", "t2i_benchmark", "truth"] = Field(
        description="prompts: questions with a reference answer. preferences: noisy pairs. t2i: text-to-image "
        "preferences. benchmark, t2i_benchmark: the same, held out. truth: true labels of the demo"
    )
    path: str | None = Field(
        None,
        min_length=1,
        description="a file, a folder of files or an archive, from the manifest's folder (in configs/datasets: "
        "from the project root); `{sources}`: the artifact home's sources folder",
    )
    hub: str | None = Field(None, description="dataset id on the Hugging Face Hub, owner/name")
    revision: str | None = Field(
        None,
        pattern=r"^[0-9a-f]{40}$",
        description="commit of the Hub's dataset; a branch or tag may change its content",
    )
    config: str | None = Field(None, description="configuration of the dataset, where it has several")
    split: str | None = Field(None, description="split of the dataset; `train` when absent")
    format: Literal["jsonl", "json", "csv", "tsv", "parquet", "parts", "dataset"] | None = Field(
        None,
        description="by the files' names when absent. parts: MMPR's meta.json; dataset: a folder for `datasets`",
    )
    adapter: str = Field(
        "auto",
        description="schema of the rows; auto finds out by looking at the columns, other names are those of published "
        "data sets",
    )
    media_root: str | None = Field(
        None,
        min_length=1,
        description="folder, .zip or .tar that no media path may leave; none where rows hold their images",
    )
    media_prefix: str = Field(
        "", description="removed from the front of media paths, for sources that write the root of another machine"
    )
    media_urls: bool = Field(
        False,
        description="fetch images that rows name by an address of the web (http, https). Only public hosts are asked, "
        "and no more than 64 MiB an image",
    )
    columns: dict[str, str] = Field(
        default_factory=dict, description="our field: name of the column in the source, where they differ"
    )
    verdict: dict[str, Literal["first", "second", "tie"]] = Field(
        default_factory=dict,
        description="value of the verdict column: the side that it prefers, where the value does not show it",
    )
    benchmark: str | None = Field(None, description="benchmark that the rows belong to; else the manifest's name")
    group: str | None = Field(None, description="benchmark group of every row; else the adapter's")
    language: str = Field("en", description="language of the rows, where their text does not show it")
    licence: str = Field(min_length=1, description="licence of the data, for the cards of models and exports")
    citation: str = Field("", description="how the data is cited, for the same cards")
    limit: int | None = Field(None, ge=1, description="read at most this many rows")
    phrasings: int | None = Field(
        None, ge=1, description="t2i_benchmark: ask in the first so many phrasings of each language; all when absent"
    )

    @field_validator("verdict", mode="before")
    @classmethod
    def _values_as_texts(cls, value: Any) -> Any:
        """YAML reads 1 and true as what they are; a column's values are compared as texts."""
        return {value_text(key): side for key, side in value.items()} if isinstance(value, dict) else value

    @field_validator("hub")
    @classmethod
    def _is_of_the_hub(cls, value: str | None) -> str | None:
        if value is not None and not is_hub_id(value):
            raise ValueError(f"{value!r} is no id of the Hub (owner/name)")
        return value

    @model_validator(mode="after")
    def _is_whole(self) -> Manifest:
        if self.path is None and self.hub is None:
            raise ValueError("name the source's place: `path`, `hub` or both")
        if self.revision is not None and self.hub is None:
            raise ValueError("`revision` belongs to `hub`, which is not given")
        try:
            known = adapter(self.adapter)
        except UnknownAdapterError as error:
            raise ValueError(str(error)) from None
        if self.kind not in known.kinds:
            raise ValueError(
                f"adapter {self.adapter!r} reads sources of kind {', '.join(known.kinds)}, not {self.kind}"
            )
        if self.verdict and "verdict" not in known.columns:
            raise ValueError(f"adapter {self.adapter!r} knows its own verdicts; `verdict` belongs to adapter 'auto'")
        if self.verdict and not {"first", "second"} <= set(self.verdict.values()):
            given = ", ".join(f"{value!r}: {side}" for value, side in self.verdict.items())
            raise ValueError(f"`verdict` must say which values mean `first` and which mean `second`; it has {given}")
        unknown = sorted(set(self.columns) - {"id", *known.columns})
        if unknown:
            raise ValueError(f"columns names unknown fields {unknown}; known: {sorted({'id', *known.columns})}")
        return self

    def column(self, field: str) -> str:
        """The source's name of one of the adapter's columns."""
        return self.columns.get(field, field)

    def located(self, sources: Path) -> tuple[Path | None, Path | None]:
        """Data and media root as absolute paths.

        `load_catalogue` has made relative paths of a manifest's file absolute; others count from the project root.

        The data's is None where the source is to be read from the Hub: no path is given, or nothing lies there.
        """
        data, media = (
            None
            if text is None
            else (Path(text.replace(SOURCES, str(sources))) if SOURCES in text else project_root() / text)
            for text in (self.path, self.media_root)
        )
        return (None if data is not None and self.hub and not data.exists() else data), media


def load_manifest(path: Path) -> Manifest:
    """Load and check one manifest. Raises ManifestError naming the file and the wrong key."""
    try:
        return Manifest.model_validate(load_yaml(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ManifestError(f"cannot read manifest {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ManifestError(f"manifest {path.name} is not UTF-8 (at byte {error.start}): save it as UTF-8") from error
    except yaml.YAMLError as error:
        raise ManifestError(f"manifest {path.name} is not valid YAML: {error}") from error
    except ValidationError as error:
        raise ManifestError(f"manifest {path.name}: {'; '.join(map(_described, error.errors()))}") from None


def _described(fault: ErrorDetails) -> str:
    """A fault in words: the key, and what is wrong with it."""
    key, message = ".".join(map(str, fault["loc"])) or "(manifest)", fault_message(fault)
    if fault["type"] == "extra_forbidden":
        meant = guessed_key(Manifest, fault["loc"])
        message = "unknown key" + (f"; did you mean {meant}?" if meant else "")
    return f"{key}: {message}"


def load_catalogue(names: tuple[str, ...]) -> list[Manifest]:
    """Load the manifests that a recipe names: names in configs/datasets, or paths that end in .yaml.

    These paths count from the project root. Paths in a manifest count from the folder in which it lies; in one of
    configs/datasets, from the project root.

    Raises:
        ManifestError: a manifest is missing or wrong, or two have one name.
    """
    manifests = []
    for name in names:
        path = named_file("datasets", name)
        if not _is_file(path):
            raise ManifestError(f"datasets: there is no manifest {path}; {_instead(name)}")
        ours = path.parent in config_folders("datasets")
        manifests.append(_placed(load_manifest(path), project_root() if ours else path.parent))
    seen: set[str] = set()
    for manifest in manifests:
        if manifest.name in seen:
            raise ManifestError(f"two manifests of the recipe are named {manifest.name!r}")
        seen.add(manifest.name)
    return manifests


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no file can have, or a folder that may not be looked into
        return False


def _instead(name: str) -> str:
    """What somebody may have meant by the name of a manifest that there is not."""
    known = [file.stem for file in config_files("datasets", "*.yaml").values()]
    given = Path(name).stem
    close = difflib.get_close_matches(given.lower(), known, n=3, cutoff=0.7)
    close += [stem for stem in known if given and stem.startswith(given.lower()) and stem not in close]
    if given in known:  # by a path, where none was needed
        return f"did you mean {given}, which lies in configs/datasets? A path counts from the project's root"
    return (f"did you mean {' or '.join(close)}? " if close else "") + what_there_is("datasets", "*.yaml")


def _placed(manifest: Manifest, folder: Path) -> Manifest:
    """The same with absolute paths; those in the manifest count from its folder."""
    given = {"path": manifest.path, "media_root": manifest.media_root}
    placed = {key: str(folder / text) for key, text in given.items() if text is not None and SOURCES not in text}
    return manifest.model_copy(update=placed)


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
