"""Prints records of `duel.run`: a table per set and size, where the project's methods lose, and who does harm."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Record = Mapping[str, Any]
Key = tuple[str, ...]


def grouped(records: Iterable[Record], *names: str) -> dict[Key, list[Record]]:
    """Records by their values of `names`, in the order in which these come first."""
    made: dict[Key, list[Record]] = {}
    for record in records:
        made.setdefault(tuple(str(record[name]) for name in names), []).append(record)
    return made


def mean(values: Iterable[float]) -> float:
    """Mean of the values that are not NaN; NaN where there is none."""
    usable = [value for value in values if not math.isnan(value)]
    return float(np.mean(usable)) if usable else math.nan


def harmed(record: Record) -> bool:
    """The interval of the harm lies wholly below 0."""
    return bool(record["harm"]["high"] < 0)


def worse(record: Record) -> bool:
    """Significantly worse than the best simple baseline at the same share kept."""
    return bool(record["advantage"]["high"] < 0)


def cell(records: Sequence[Record]) -> str:
    """Draws of one scenario and method: label accuracy and share kept in percent, and the marks.

    `!`: the harm's interval lies wholly below 0; `<`: significantly worse than the best simple baseline at the same
    share kept; `+`: the harm's interval lies wholly above 0. Each mark stands for at least half of the draws; `(!)` for
    fewer.
    """
    if not records:
        return ""
    text = f"{_percent(mean(r['accuracy'] for r in records))} of {_percent(mean(r['kept'] for r in records), 0)}"
    marks = ""
    for mark, count in (
        ("+", sum(r["harm"]["low"] > 0 for r in records)),
        ("!", sum(map(harmed, records))),
        ("<", sum(map(worse, records))),
    ):
        if 2 * count >= len(records):
            marks += mark
        elif count and mark == "!":
            marks += "(!)"
    return f"{text} {marks}".rstrip()


def tables(records: Sequence[Record]) -> str:
    """One Markdown table per set and size: a row per method, a column per scenario, then means over the scenarios."""
    parts = []
    for (name, size), rows in grouped(records, "set", "size").items():
        names = list(grouped(rows, "scenario"))
        before = _percent(mean(r["before"] for r in rows))
        draws = max(int(r["repeat"]) for r in rows) + 1
        lines = [
            f"### {name}, {size} pairs ({before}% of labels right; draws: {draws})",
            "",
            f"| method | {' | '.join(key[0] for key in names)} | gain | against the best simple | overclaim "
            "| calibration error | calls per pair | utility |",
            "|---|" + "---|" * (len(names) + 6),
        ]
        for (method,), theirs in grouped(rows, "method").items():
            cells = [cell([r for r in theirs if r["scenario"] == key[0]]) for key in names]
            lines.append(f"| {method} | {' | '.join(cells)} | {' | '.join(_means(theirs))} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _means(records: Sequence[Record]) -> list[str]:
    return [
        _signed(mean(r["harm"]["estimate"] for r in records)),
        _signed(mean(r["advantage"]["estimate"] for r in records)),
        _signed(mean(r["overclaim"] for r in records)),
        _percent(mean(r["calibration_error"] for r in records)),
        _number(mean(r["calls"] for r in records)),
        _number(mean(r["utility"] for r in records)),
    ]


def losses(records: Sequence[Record], ours: Iterable[str]) -> str:
    """Where a method of the project does harm or is significantly worse than the best simple baseline: a list."""
    chosen = set(ours)
    lines = []
    for key, rows in grouped(records, "method", "set", "size", "scenario").items():
        if key[0] not in chosen:
            continue
        harms, loses = [r for r in rows if harmed(r)], [r for r in rows if worse(r)]
        said = []
        if harms:
            said.append(f"harm {_interval(harms[0]['harm'])} in {len(harms)} of {len(rows)} draws")
        if loses:
            rival = loses[0]["rival"]
            said.append(f"{_interval(loses[0]['advantage'])} against `{rival}` in {len(loses)} of {len(rows)} draws")
        if said:
            method, name, size, scenario = key
            lines.append(f"- {method}; {name}, {size} pairs; {scenario}: {'; '.join(said)}")
    return "\n".join(lines) or "- nowhere"


def harm_summary(records: Sequence[Record]) -> str:
    """Per method: draws with harm, significantly worse draws, means, whether stated ranges held; most harm first."""
    lines = [
        "| method | draws | harm | greatest harm | worse than the best simple | gain, mean "
        "| against the best simple, mean | overclaim, mean | utility, mean | stated range holds the observed |",
        "|---" * 10 + "|",
    ]
    groups = sorted(grouped(records, "method").items(), key=lambda item: -np.mean([harmed(r) for r in item[1]]))
    for (method,), rows in groups:
        stated = [r for r in rows if "after" in r and not math.isnan(r["accuracy"])]
        held = sum(r["after"][1] <= r["accuracy"] <= r["after"][2] for r in stated)
        least = min((r["harm"]["estimate"] for r in rows if harmed(r)), default=math.nan)
        gain, advantage, overclaim, _, _, useful = _means(rows)
        cells = [
            method,
            str(len(rows)),
            str(sum(map(harmed, rows))),
            _signed(least),
            str(sum(map(worse, rows))),
            gain,
            advantage,
            overclaim,
            useful,
            f"{held} of {len(stated)}" if stated else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _interval(value: Mapping[str, float]) -> str:
    return f"{_signed(value['estimate'])} ({_signed(value['low'])} to {_signed(value['high'])})"


def _percent(value: float, digits: int = 1) -> str:
    return "" if math.isnan(value) else f"{100 * value:.{digits}f}"


def _signed(value: float) -> str:
    return "" if math.isnan(value) else f"{100 * value:+.1f}"


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}"
