"""The figures of all models so far, which stand in a file, as a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rounds_under_noise.cells import CEILING, GROUPS, ROUND_0, ROUND_1, ROUND_2, UNCURATED, UNJUDGED, row_key


def read_results(output: Path) -> list[dict[str, Any]]:
    """What stands in the results, in the order in which it was computed."""
    path = output / "models.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]


def print_table(rows: list[dict[str, Any]]) -> None:
    """The results as Markdown: mean (least to greatest) over seeds, in percent.

    Cells with the same seeds stand together, below the models that they share.
    """
    print(
        "| wrong labels | seeds | model | style-random | style-congruent | style-incongruent | all | label accuracy "
        "| kept | judge calls "
        "| no judge: label accuracy | kept | label accuracy of the most certain 85% |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|---|")
    cells: dict[tuple[int, ...], set[tuple[int, str]]] = {}
    seeds_of: dict[tuple[int, str], list[int]] = {}
    for row in rows:
        if row["model"] == ROUND_1:
            seeds_of.setdefault((row["percent"], row["kind"]), []).append(row["seed"])
    for cell, seeds in seeds_of.items():
        cells.setdefault(tuple(sorted(seeds)), set()).add(cell)
    for shared, together in sorted(cells.items()):
        for model in (ROUND_0, CEILING):
            _print_row("any", model, [row for row in rows if row["model"] == model and row["seed"] in shared])
        for percent, kind in sorted(together):
            keys = {
                (model, kind, percent, seed) for model in (UNCURATED, ROUND_1, ROUND_2, UNJUDGED) for seed in shared
            }
            found = [row for row in rows if row_key(row) in keys]
            for model in (UNCURATED, ROUND_1, ROUND_2, UNJUDGED):
                label = f"{percent}%" if kind == "none" else f"{percent}%, {kind}"
                _print_row(label, model, [row for row in found if row["model"] == model])


def _print_row(label: str, model: str, found: list[dict[str, Any]]) -> None:
    """A line of the table: a model with its rows of all seeds; nothing without any."""
    if not found:
        return

    def cells_of(*names: str) -> list[str]:
        values = ([row[name] for row in found if name in row] for name in names)
        return [mean_spread(given) if given else "" for given in values]

    calls = [row["judge_calls"] for row in found if "judge_calls" in row]
    cells = [*cells_of(*GROUPS, "all", "label_accuracy", "kept"), f"{np.mean(calls):.0f}" if calls else ""]
    cells += cells_of("label_accuracy_without_judges", "kept_without_judges", "label_accuracy_of_the_most_certain")
    print(f"| {label} | {len(found)} | {model} | {' | '.join(cells)} |")


def mean_spread(shares: list[float]) -> str:
    """Mean of shares in percent, with the least and greatest where there are several."""
    values = [100 * share for share in shares]
    middle = f"{np.mean(values):.1f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.1f} to {max(values):.1f})"
