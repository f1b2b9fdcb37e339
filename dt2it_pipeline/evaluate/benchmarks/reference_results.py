"""Models beside published systems, on the same benchmarks (figures: configs/benchmarks/published.yaml)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from pydantic import ConfigDict, Field, ValidationError, model_validator

from dt2it_pipeline.config.base import fault_message
from dt2it_pipeline.config.paths import ConfigFileError, find_config
from dt2it_pipeline.config.recipe import Settings
from dt2it_pipeline.config.strict_yaml import load_yaml
from dt2it_pipeline.evaluate.benchmarks.metrics import ALL
from dt2it_pipeline.evaluate.benchmarks.spec import BenchmarkError, find_entry, get_entry

BOTH = ("pooled", "mean")  # over all three benchmarks; see measure.combine


class System(Settings):
    """One published system: percent by benchmark, and both overalls where they are given."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    system: str = Field(min_length=1)
    note: str = ""

    def percent(self, column: str) -> float | None:
        """Its figure in a column, None where it is not published."""
        return (self.__pydantic_extra__ or {}).get(column)


class Published(Settings):
    """Published systems, and which figure of each benchmark theirs are."""

    source: str
    benchmarks: dict[str, str]
    systems: list[System]

    @model_validator(mode="after")
    def _columns_are_known(self) -> Published:
        known = {*self.benchmarks, *BOTH}
        for system in self.systems:
            figures = system.__pydantic_extra__ or {}
            if unknown := sorted(set(figures) - known):
                raise ValueError(f"{system.system}: unknown figures {unknown}; known: {sorted(known)}")
            if wrong := [name for name, value in figures.items() if not isinstance(value, int | float)]:
                raise ValueError(f"{system.system}: {wrong} must be numbers, in percent")
        return self


def load_published(path: Path | None = None) -> Published:
    """The data file. Raises BenchmarkError naming the key that is wrong."""
    try:
        path = path or find_config("benchmarks", "published.yaml")
        return Published.model_validate(load_yaml(path.read_text(encoding="utf-8")))
    except ConfigFileError as error:
        raise BenchmarkError(str(error)) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BenchmarkError(f"cannot read {path}: {error}") from error
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, f['loc']))}: {fault_message(f)}" for f in error.errors())
        raise BenchmarkError(f"{path}: {faults}") from None


def comparison(figures: pd.DataFrame, published: Published | None = None) -> pd.DataFrame:
    """Published systems and our models, one row each: percent by benchmark, both overalls, and where they come from.

    Args:
        figures: rows of table kind `benchmark_figures`; benchmarks that no published system was measured on are left
            out, and both overalls are given only to a model that has all the published benchmarks and no other.
        published: by default the data file.

    Returns:
        Columns system, a column per benchmark, pooled, mean, origin; the published systems first. Empty where no model
        was measured on one of the benchmarks.
    """
    published = published or load_published()
    columns = [*published.benchmarks, *BOTH]
    ours: dict[str, dict[str, Any]] = {}
    held: dict[str, set[str]] = {}
    for row in figures.to_dict("records"):
        entry = None if row["benchmark"] == ALL else find_entry(row["benchmark"])
        name = entry.name if entry is not None else row["benchmark"]
        held.setdefault(row["model"], set()).add(name)
        if row["benchmark"] == ALL and row["figure"] in BOTH:
            ours.setdefault(row["model"], {})[row["figure"]] = 100 * row["value"]
        elif published.benchmarks.get(name) == row["figure"]:
            ours.setdefault(row["model"], {})[name] = 100 * row["value"]
    for model, own in ours.items():
        if held[model] - {ALL} != set(published.benchmarks):
            for overall in BOTH:
                own.pop(overall, None)
    rows = [
        {"system": model, **{column: own.get(column) for column in columns}, "origin": "measured here"}
        for model, own in sorted(ours.items())
        if set(own) & set(published.benchmarks)
    ]
    theirs = [
        {
            "system": system.system,
            **{column: system.percent(column) for column in columns},
            "origin": published.source + (f" ({system.note})" if system.note else ""),
        }
        for system in published.systems
    ]
    return pd.DataFrame([*theirs, *rows] if rows else [], columns=["system", *columns, "origin"])


def comparison_markdown(table: pd.DataFrame) -> str:
    """The comparison as a Markdown table in percent, empty cells where nothing is known."""
    titles = {name: get_entry(name).title or name for name in table.columns if find_entry(name)}
    lines = ["| " + " | ".join(titles.get(name, name) for name in table.columns) + " |"]
    lines.append("| " + " | ".join("---" if name in ("system", "origin") else "---:" for name in table.columns) + " |")
    for row in table.to_dict("records"):
        cells = [
            value if isinstance(value, str) else "" if value is None or value != value else f"{value:.1f}"
            for value in row.values()
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
