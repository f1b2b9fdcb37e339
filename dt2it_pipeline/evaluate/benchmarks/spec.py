"""Benchmarks as declarative, versioned entries: configs/benchmarks/<name>.yaml.

An entry names the columns of the published rows, how a row's id or category maps to a group, and which
figures are computed. What it computes follows from its content, so its hash goes into the keys of stages.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import yaml
from pydantic import Field, ValidationError, model_validator

from dt2it_pipeline.config.base import fault_message
from dt2it_pipeline.config.paths import config_files, looked_in
from dt2it_pipeline.config.recipe import Settings
from dt2it_pipeline.config.strict_yaml import load_yaml
from dt2it_pipeline.errors import UserError
from dt2it_pipeline.storage import content_ids

RESERVED = ("overall", "macro", "acc_plus")  # figures of every benchmark, so no name of a group
SAME = {"acc": "overall", "accuracy": "overall", "macro_mean": "macro"}  # other names of these
_FORMS = (("chosen", "rejected"), ("first", "second", "better"), ("responses", "ranks"))  # of a row's sides
_PUBLISHED = "published.yaml"  # not an entry, but the figures of published systems


class BenchmarkError(UserError, ValueError):
    """An evaluation table, a benchmark's rows or its entry are malformed."""

    help_page: ClassVar[str] = "troubleshooting#benchmark"


class Rule(Settings):
    """A group and the rows that belong to it: every kind of condition that is given must hold.

    Each condition maps a field of the entry to values; one of its fields must have one of its values. All compare
    without regard to case. `folder` asks whether one of the folders of a path has that name.
    """

    group: str = Field(min_length=1)
    equals: dict[str, list[str]] = Field(default_factory=dict)
    prefix: dict[str, list[str]] = Field(default_factory=dict)
    folder: dict[str, list[str]] = Field(default_factory=dict)

    def fits(self, fields: Mapping[str, Any]) -> bool:
        """Whether a row, given as field -> value, fulfils the rule."""
        tests = ((self.equals, _equals), (self.prefix, _starts), (self.folder, _lies_in))
        return all(
            not conditions
            or any(
                test(_text(fields[field]).casefold(), value.casefold())
                for field, values in conditions.items()
                if fields.get(field) is not None
                for value in values
            )
            for conditions, test in tests
        )

    def named_fields(self) -> set[str]:
        """Fields that the rule looks at."""
        return {*self.equals, *self.prefix, *self.folder}


class Part(Rule):
    """A part of a group that is reported beside it and does not count in the macro mean."""

    of: str


class Entry(Settings):
    """One benchmark.

    A row's sides stand in `chosen` and `rejected`, or in `responses` with their `ranks` (0 is the better one), or in
    `first` and `second` with `better` naming the column of the better one; an entry may name the columns of several of
    these forms, for copies of the benchmark that differ.
    """

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    version: int = Field(1, ge=1, description="raised when the entry's meaning changes")
    title: str = Field("", description="the name as published")
    aliases: list[str] = Field(default_factory=list)
    citation: str = ""
    pairs: int | None = Field(None, ge=1, description="rows of the public file")
    fields: dict[str, list[str]] = Field(
        default_factory=dict,
        description="field -> columns of the published rows, of which the first that is present counts; a dot goes "
        "into a nested one",
    )
    text_rows: bool = Field(
        False, description="rows without image and video are text-only questions; else they are not scored"
    )
    groups: list[Rule] = Field(default_factory=list, description="the first rule that fits names the group")
    parts: list[Part] = Field(default_factory=list)
    unions: dict[str, list[str]] = Field(default_factory=dict, description="name -> groups pooled under it")
    macro: bool = Field(True, description="also the mean of the groups' accuracies")
    all_right_by: str | None = Field(
        None, description="field that pairs share; Acc+ is the share of its values all of whose pairs are right"
    )
    without: dict[str, list[str]] = Field(default_factory=dict, description="name -> groups left out of that overall")

    @model_validator(mode="after")
    def _names_fit(self) -> Entry:
        groups = {rule.group for rule in self.groups}
        used = {part.of for part in self.parts} | {
            group for listed in (*self.unions.values(), *self.without.values()) for group in listed
        }
        if unknown := sorted(used - groups):
            raise ValueError(f"unknown groups {unknown}; known: {sorted(groups)}")
        named = {field for rule in (*self.groups, *self.parts) for field in rule.named_fields()}
        named |= {self.all_right_by} if self.all_right_by else set()
        if unknown := sorted(named - set(self.fields)):
            raise ValueError(f"unknown fields {unknown}; known: {sorted(self.fields)}")
        if len({(part.group, part.of) for part in self.parts}) > len({part.group for part in self.parts}):
            raise ValueError("a part belongs to one group, and one here stands under two; give them names of their own")
        names = sorted(groups) + self.figure_names
        reserved = sorted(name for name in names if plain(name) in {*RESERVED, *SAME})
        if reserved:
            raise ValueError(f"{reserved} are names of figures that every benchmark has; rename them")
        counts = Counter(map(plain, names))
        if repeated := sorted(name for name in names if counts[plain(name)] > 1):
            raise ValueError(f"one figure would overwrite another of the same name: {repeated}; rename one")
        return self

    @property
    def figure_names(self) -> list[str]:
        """Names of the figures that the entry adds to the groups' accuracies and those of RESERVED; each once."""
        plus = [f"acc_plus/{name}" for name in dict.fromkeys(rule.group for rule in self.groups) if self.all_right_by]
        left_out = [f"{figure}_{name}" for name in self.without for figure in ("overall", "macro")]
        return [*dict.fromkeys(part.group for part in self.parts), *self.unions, *left_out, *plus]

    def with_columns(self, columns: Mapping[str, str]) -> Entry:
        """The entry for a file that calls some columns otherwise, field -> column.

        Raises BenchmarkError where there is no such field.
        """
        if unknown := sorted(set(columns) - set(self.fields)):
            raise BenchmarkError(f"{self.name} has no fields {unknown}; it has {', '.join(sorted(self.fields))}")
        fields = self.fields | {field: [name] for field, name in columns.items()}
        named = {form for form in _FORMS if {*form} & set(columns)}
        if named:  # the sides stand where the user says, whatever else the rows hold
            others = {field for form in _FORMS if form not in named for field in form}
            fields = {field: names for field, names in fields.items() if field not in others}
        return self.model_copy(update={"fields": fields})

    @property
    def hash(self) -> str:
        """Content hash of the entry, for the keys of stages and for results."""
        return content_ids.content_hash("benchmark", self.model_dump(mode="json"))

    def read(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The entry's fields of one published row; a field whose columns are all missing or null is None."""
        return {field: next((v for c in columns if (v := _column(row, c)) is not None), None)
                for field, columns in self.fields.items()}  # fmt: skip

    def group_of(self, row: Mapping[str, Any], place: int | str = "?") -> str:
        """Group of one published row; `place` names the row in errors.

        Raises:
            BenchmarkError: no rule fits, with the values that were found.
        """
        fields = self.read(row)
        for rule in self.groups:
            if rule.fits(fields):
                return rule.group
        looked = sorted({field for rule in self.groups for field in rule.named_fields()})
        found = ", ".join(f"{'/'.join(self.fields[field])}: {fields[field]!r}" for field in looked)
        missing = [field for field in looked if fields[field] is None]
        hint = f"; the row has the columns {sorted(row)}" if missing else ""
        raise BenchmarkError(f"{self.name}, row {place}: no group fits ({found[:300]}){hint}")

    def parts_of(self, row: Mapping[str, Any], group: str) -> list[str]:
        """Part of the row's group that it belongs to: the first one that fits, as a list of at most one name."""
        fields = self.read(row)
        return [part.group for part in self.parts if part.of == group and part.fits(fields)][:1]


def plain(name: str) -> str:
    """A figure's name without regard to case and punctuation: `Acc+` -> acc_plus."""
    return name.casefold().replace("+", "_plus").replace(" ", "_").replace("-", "_")


def canonical(name: str) -> str:
    """A benchmark's name without case, owner and punctuation: VL-RewardBench, vl_reward_bench -> vlrewardbench."""
    return re.sub(r"[^a-z0-9]", "", name.rsplit("/", 1)[-1].casefold())


def load_entries(folder: Path | None = None) -> dict[str, Entry]:
    """All entries by name: the project's and the package's, or those of `folder`.

    Raises:
        BenchmarkError: a file is malformed, or two entries share a name or an alias.
    """
    found = config_files("benchmarks", "*.yaml", folder)
    files = tuple(file for name, file in found.items() if name != _PUBLISHED)
    return dict(_load(files, tuple((file.stat().st_size, file.stat().st_mtime_ns) for file in files)))


def find_entry(name: str, folder: Path | None = None) -> Entry | None:
    """The entry that a name or alias means, whatever its case and punctuation, or None."""
    entries = load_entries(folder)
    wanted = canonical(name)
    return next(
        (entry for entry in entries.values() if wanted in {canonical(n) for n in (entry.name, *entry.aliases)}), None
    )


def get_entry(name: str, folder: Path | None = None) -> Entry:
    """The entry that a name or alias means. Raises BenchmarkError, naming those that exist, where there is none."""
    found = find_entry(name, folder)
    if found is None:
        known = ", ".join(sorted(load_entries(folder)))
        raise BenchmarkError(f"there is no benchmark {name!r} in {folder or looked_in('benchmarks')}; known: {known}")
    return found


@functools.lru_cache(maxsize=8)
def _load(files: tuple[Path, ...], stamp: tuple[tuple[int, int], ...]) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    owners: dict[str, str] = {}
    for file in files:
        try:
            entry = Entry.model_validate(load_yaml(file.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise BenchmarkError(f"cannot read benchmark entry {file}: {error}") from error
        except ValidationError as error:
            faults = "; ".join(
                f"{'.'.join(map(str, f['loc'])) or '(entry)'}: {fault_message(f)}" for f in error.errors()
            )
            raise BenchmarkError(f"benchmark entry {file.name}: {faults}") from None
        for name in {canonical(n) for n in (entry.name, *entry.aliases)}:
            if name in owners:
                raise BenchmarkError(f"benchmark entries {owners[name]} and {file.name} share the name {name!r}")
            owners[name] = file.name
        entries[entry.name] = entry
    return entries


def _column(row: Mapping[str, Any], name: str) -> Any:
    value: Any = row.get(name)
    if value is None and "." in name:
        value = row
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
    return None if isinstance(value, float) and value != value else value  # a frame's missing text is NaN


def _text(value: Any) -> str:
    """A value as text; of an image as `datasets` hands it over, its path."""
    return str(value.get("path") or "" if isinstance(value, Mapping) else value)


def _equals(found: str, wanted: str) -> bool:
    return found == wanted


def _starts(found: str, wanted: str) -> bool:
    return found.startswith(wanted)


def _lies_in(found: str, wanted: str) -> bool:
    return wanted in PurePosixPath(found).parts[:-1]
