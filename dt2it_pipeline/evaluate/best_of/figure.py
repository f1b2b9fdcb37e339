"""The curves of best-of-n as a table in Markdown and as a figure."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, ScalarFormatter

from dt2it_pipeline.evaluate.best_of.curve import ORACLE, BestOfCurve
from dt2it_pipeline.evaluate.figure_style import COLOURS, INK, STYLE, svg_bytes

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def shown_counts(largest: int) -> list[int]:
    """The n of a table or axis: powers of two, and the largest.

    >>> shown_counts(12)
    [1, 2, 4, 8, 12]
    """
    powers = [1 << k for k in range(largest.bit_length()) if 1 << k < largest]
    return [*powers, largest]


def curve_markdown(curve: BestOfCurve) -> str:
    """Quality with its 95% interval by model and n, the difference from the first model, and what was left out."""
    table = curve.table
    counts = shown_counts(int(table["n"].max()))
    first = table["model"].iloc[0]
    lines = [
        "| model | " + " | ".join(f"n = {n}" for n in counts) + f" | n = {counts[-1]}, less {first} |",
        "| --- |" + " ---: |" * (len(counts) + 1),
    ]
    for model, rows in table.groupby("model", sort=False):
        by_n = rows.set_index("n")
        cells = [_with_interval(by_n.loc[n], "quality", "low", "high") for n in counts]
        last = by_n.loc[counts[-1]]
        apart = "" if model == first else _with_interval(last, "difference", "difference_low", "difference_high", "+")
        lines.append(f"| {model} | " + " | ".join(cells) + f" | {apart} |")
    return "\n".join([*lines, "", *notes(curve)]) + "\n"


def notes(curve: BestOfCurve) -> list[str]:
    """Sentences about what counts and what does not."""
    found = [f"{curve.prompts:,} prompts. Intervals: 95%, bootstrap over prompts. The oracle chooses by the quality."]
    if curve.without_quality:
        found.append(f"Left out: {curve.without_quality:,} prompts with an answer whose quality is not known.")
    if curve.too_few_answers:
        longest = int(curve.table["n"].max())
        found.append(f"Left out: {curve.too_few_answers:,} prompts with fewer than {longest} answers.")
    for model, count in curve.unscored.items():
        if count:
            found.append(f"{count:,} answers have no score of {model}; they rank last.")
    return found


def curve_svg(curve: BestOfCurve, quality: str = "quality of the chosen answer") -> str:
    """The curves with their 95% intervals; `quality` is the label of their axis."""
    table = curve.table
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.add_subplot()
        for place, (model, rows) in enumerate(table.groupby("model", sort=False)):
            oracle = model == ORACLE
            colour = INK if oracle else COLOURS[place % (len(COLOURS) - 1)]
            axes.fill_between(rows["n"], rows["low"], rows["high"], color=colour, alpha=0.13, linewidth=0)
            look: dict[str, Any] = {"linestyle": (0, (4, 3))} if oracle else {"marker": _MARKERS[place % len(_MARKERS)]}
            axes.plot(rows["n"], rows["quality"], color=colour, ms=5, linewidth=1.6, label=str(model), **look)
        largest = int(table["n"].max())
        if largest > 1:
            axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator([float(n) for n in shown_counts(largest)]))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("n, answers to choose from")
        axes.set_ylabel(quality)
        axes.grid(axis="y")
        figure.legend(loc="outside upper left", ncols=min(4, table["model"].nunique()))
        return svg_bytes(figure).decode("utf-8")


def _with_interval(row: Any, value: str, low: str, high: str, sign: str = "") -> str:
    shown, start, end = (row[name] for name in (value, low, high))
    return f"{shown:{sign}.3f} ({start:{sign}.3f} to {end:{sign}.3f})"
