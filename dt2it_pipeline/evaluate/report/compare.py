"""Several runs side by side: what differs in their recipes, and what came of it.

    dt2it report --compare runs/paper runs/joint --output comparison.html

What belongs here: reading the last report of each artifact home, and the tables. What does not: any figure of one run
(`facts`), and how a page looks (`html`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ValidationError

from dt2it_pipeline.errors import UserError
from dt2it_pipeline.evaluate.benchmarks.comparison import compare
from dt2it_pipeline.evaluate.benchmarks.metrics import ALL, MACRO, OVERALL, wilson_interval
from dt2it_pipeline.evaluate.report.facts import FACTS_FILE, RunFacts, Three
from dt2it_pipeline.evaluate.report.formatting import markdown_table, markdown_text, number, p_value, percent, points
from dt2it_pipeline.evaluate.report.html import page
from dt2it_pipeline.storage.artifacts import Store

_REPORT, _NONE = "round_report", "–"
_MISSING = object()


class CompareError(UserError, ValueError):
    """Runs cannot be compared; the message says which, and what to do."""


@dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
        name: as the tables call it.
        facts: its numbers after the last round.
        accuracy: rows of `benchmark_scores` of its last round.
        items: the pairs of its benchmarks (table kind `benchmark_items`).
        scores: of its last reward model (table kind `scores`).
    """

    name: str
    facts: RunFacts
    accuracy: pd.DataFrame
    items: pd.DataFrame
    scores: pd.DataFrame


@dataclass(frozen=True)
class Table:
    """One table of the comparison: a title, a sentence or two, and cells as they are printed."""

    title: str
    how: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


def read_runs(homes: Sequence[Path]) -> list[Run]:
    """The last finished round of every artifact home, in the order given.

    Raises:
        CompareError: fewer than two homes, one that is given twice, or one without a report.
        StoreError: an artifact is damaged.
    """
    if len(homes) < 2:
        raise CompareError("a comparison needs two artifact homes or more: dt2it report --compare HOME HOME")
    again = [str(home) for home, count in Counter(home.resolve() for home in homes).items() if count > 1]
    if again:
        raise CompareError(f"{again[0]} is given twice; name every artifact home once")
    return [_read(home, name) for home, name in zip(homes, _names(homes), strict=True)]


def compared(runs: Sequence[Run]) -> list[Table]:
    """The tables of a comparison; those that have nothing to say are left out."""
    names = [run.name for run in runs]
    tables = [
        Table(
            "What differs in the recipes",
            "Settings that are not the same in all runs; all others are.",
            ["setting", *names],
            recipe_differences([run.facts.settings for run in runs]),
        ),
        Table(
            "What came of it",
            "After the last round of each run. Estimates stand with their 95% intervals. Style AUC: how well style "
            "alone tells the chosen side, 0.50 not at all, 1.00 always.",
            ["", *names],
            _results(runs),
        ),
        Table(
            "Accuracy on benchmarks, %",
            "Share of held-out pairs in which the last reward model scores the better answer above the worse one, with "
            "its 95% interval; 50 is guessing.",
            ["benchmark", *names],
            _accuracies(runs),
        ),
        *(_difference(runs[0], run) for run in runs[1:]),
    ]
    return [table for table in tables if table.rows]


def recipe_differences(recipes: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Settings that differ: key, and the value in every recipe.

    >>> recipe_differences([{"seed": 0, "curation": {"policy": "paper"}}, {"seed": 0, "curation": {"policy": "joint"}}])
    [['curation.policy', 'paper', 'joint']]
    """
    flat = [dict(_flattened(recipe)) for recipe in recipes]
    keys = dict.fromkeys(key for one in flat for key in one)
    rows = []
    for key in keys:
        values = [one.get(key, _MISSING) for one in flat]
        if any(value != values[0] for value in values[1:]):
            rows.append([key, *(_NONE if value is _MISSING else _setting(value) for value in values)])
    return rows


def compared_markdown(tables: Sequence[Table]) -> str:
    """The comparison as Markdown."""
    parts = ["# Runs side by side"]
    for table in tables:
        parts += [f"## {markdown_text(table.title)}", markdown_text(table.how), markdown_table(table.heads, table.rows)]
    return "\n\n".join(parts) + "\n"


def compared_html(tables: Sequence[Table]) -> str:
    """The comparison as one HTML page, which needs no other file and no network."""
    return page("compare.html.jinja", tables=tables)


def _read(home: Path, name: str) -> Run:
    store = Store(home)
    done = store.partitions(_REPORT)
    if not done:
        raise CompareError(
            f"{home} has no finished round to compare; run one (`dt2it run round --round 0 --home {home}`), or name "
            "another artifact home"
        )
    report, last = store.read(_REPORT, done[-1]), done[-1]
    file = report.folder / FACTS_FILE
    try:
        facts = RunFacts.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError) as error:
        problem = "is not there" if isinstance(error, FileNotFoundError) else "cannot be read"
        raise CompareError(
            f"{file} {problem}: the report of round {last} was made by another version of this project; run the round "
            f"again (`dt2it run round --round {last} --home {home}`), which makes the report anew"
        ) from error
    benchmark = store.read("benchmark_scores", last)
    return Run(
        name,
        facts,
        benchmark["benchmark_scores"].to_pandas(),
        store.read("raw_benchmarks")["benchmark_items"].to_pandas(),
        benchmark["scores"].to_pandas(),
    )


def _names(homes: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell the homes apart."""
    paths = [home.resolve().parts for home in homes]
    for length in range(1, max(map(len, paths)) + 1):
        names = ["/".join(parts[-length:]) for parts in paths]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("different paths have different names")


def _flattened(value: Any, key: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        return [
            pair for name, part in value.items() for pair in _flattened(part, f"{key}.{name}" if key else str(name))
        ]
    return [(key, value)]


def _setting(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _results(runs: Sequence[Run]) -> list[list[str]]:
    facts = [run.facts for run in runs]
    rows = [
        ["last round", *(str(one.round) for one in facts)],
        ["noisy preferences (digest)", *(one.preferences[:12] for one in facts)],
        ["estimated label accuracy before, %", *(_shares(one.estimated_before) for one in facts)],
        ["estimated label accuracy after, %", *(_shares(one.estimated_after) for one in facts)],
        ["the estimate rests on", *(one.rests_on or _NONE for one in facts)],
        ["true label accuracy before, %", *(_share(one.true_before) for one in facts)],
        ["true label accuracy after, %", *(_share(one.true_after) for one in facts)],
        *(
            [f"pairs {name}", *(_count(getattr(one, name), one) for one in facts)]
            for name in ("kept", "flipped", "dropped", "contested")
        ),
        ["style AUC before", *(_auc(one.style_before) for one in facts)],
        ["style AUC after", *(_auc(one.style_after) for one in facts)],
        ["judge calls", *(number(one.judge_calls) for one in facts)],
        ["cached replies", *(number(one.cached_replies) if one.cached_replies else _NONE for one in facts)],
        ["tokens of judges", *(number(one.tokens) if one.tokens else _NONE for one in facts)],
        ["hours", *(f"{one.hours:.2f}" for one in facts)],
        ["GPU hours", *(f"{one.gpu_hours:.2f}" if one.gpu_hours else _NONE for one in facts)],
    ]
    return [row for row in rows if any(cell != _NONE for cell in row[1:])]


def _accuracies(runs: Sequence[Run]) -> list[list[str]]:
    """Accuracy per benchmark group and run, the pooled ones of a benchmark last."""
    tables = [
        {(row["benchmark"], row["group"]): row for row in run.accuracy.to_dict("records") if row["group"] != MACRO}
        for run in runs
    ]
    keys = sorted(
        {key for table in tables for key in table}, key=lambda key: (key[0] == ALL, key[0], key[1] == OVERALL)
    )
    return [[_group(*key), *(_accuracy(table.get(key)) for table in tables)] for key in keys]


def _difference(first: Run, other: Run) -> Table:
    """How much better or worse the second run's last model is; without a test where the pairs were not the same."""
    title = f"Difference on benchmarks: {other.name} against {first.name}"
    keys = ["benchmark", "group", "prompt_id", "chosen_id", "rejected_id"]
    heads = ["benchmark", "points", "95% interval", "p", "beyond chance"]
    one, two = (run.items[keys].sort_values(keys).reset_index(drop=True) for run in (first, other))
    if not len(one) or not one.equals(two):
        why = "Their benchmarks do not hold the same pairs, so that no difference can be tested."
        rows = [["benchmark pairs", number(len(one)), number(len(two))]] if len(one) and len(two) else []
        return Table(title, why, ["", first.name, other.name], rows)
    made = compare(first.items, first.scores, other.scores, (first.name, other.name))
    rows = [
        [
            _group(change.benchmark, change.group),
            points(change.difference),
            f"{points(change.low)} to {points(change.high)}",
            p_value(change.p),
            "yes" if change.beyond_chance else "no",
        ]
        for change in made.changes
    ]
    how = (
        "Both models answered the same pairs. Change in percentage points; p: how often chance alone would give one "
        "this large. Beyond chance: p stays below 0.05 after Holm's correction for the number of groups."
    )
    return Table(title, how, heads, rows)


def _group(benchmark: str, group: str) -> str:
    if benchmark == ALL:
        return "all benchmarks pooled"
    return f"{benchmark}: {'all pooled' if group == OVERALL else group}"


def _accuracy(row: Mapping[Any, Any] | None) -> str:
    if row is None or not row["pairs"]:
        return _NONE
    low, high = wilson_interval(int(row["correct"]), int(row["pairs"]))
    return f"{percent(row['accuracy'])} ({percent(low)} to {percent(high)})"


def _shares(three: Three | None) -> str:
    return _NONE if three is None else f"{percent(three[0])} ({percent(three[1])} to {percent(three[2])})"


def _share(value: float | None) -> str:
    return _NONE if value is None else percent(value)


def _auc(three: Three | None) -> str:
    return _NONE if three is None else f"{three[0]:.2f} ({three[1]:.2f} to {three[2]:.2f})"


def _count(count: int, facts: RunFacts) -> str:
    whole = facts.kept + facts.flipped + facts.dropped
    return f"{number(count)} ({percent(count / whole)}%)" if whole else number(count)
