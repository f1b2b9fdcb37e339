"""Figures of the report, each drawn by Matplotlib and returned as an SVG element that stands in the page itself.

They are drawn as narrow as a phone is, panels below each other, and scale with the page: their words can be read at
390 pixels and in print. Letters are outlines, so that no text of strangers is markup, and the page needs no font.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from dt2it_pipeline.evaluate.benchmarks.metrics import MACRO, OVERALL, wilson_interval
from dt2it_pipeline.evaluate.figure_style import COLOURS, GREY, INK, STYLE, svg_bytes
from dt2it_pipeline.evaluate.report.data import Arm, CallCurve, Curve, Headline, Quality, Round
from dt2it_pipeline.evaluate.report.formatting import clean, percent

_ROUND_COLOURS = ("#6FB1DC", "#3C91C9", "#0072B2", "#004C7A", "#00263D")
_ROUND_MARKERS = ("o", "^", "v", "P", "X")
_ARM_COLOURS = {"control": "#D55E00", "ceiling": "#000000"}
_WIDTH = 5.0  # inches: 480 CSS pixels, so that letters keep 75% of their size on a phone


def accuracy_figure(table: Headline) -> Markup | None:
    """Accuracy of every arm per benchmark group, with 95% intervals; None without groups."""
    columns = [i for i, (_, group) in enumerate(table.columns) if group != MACRO]
    if not columns or not table.rows:
        return None
    several = len({benchmark for benchmark, _ in table.columns}) > 1
    arms = [arm for arm, _ in table.rows]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, 1.0 + (0.19 * len(arms) + 0.2) * len(columns)), layout="constrained")
        axes = figure.add_subplot()
        step = 0.76 / max(1, len(arms))
        looks = _arm_looks(arms)
        for row, (arm, cells) in enumerate(table.rows):
            for place, column in enumerate(columns):
                cell = cells[column]
                if cell is None or np.isnan(cell.accuracy):
                    continue
                y = place + (row - (len(arms) - 1) / 2) * step
                low, high = wilson_interval(cell.correct, cell.pairs)
                colour, marker = looks[row]
                axes.plot([100 * low, 100 * high], [y, y], color=colour, linewidth=1.6, alpha=0.55, zorder=2)
                face = "white" if arm.kind == "ceiling" else colour
                label = _short(arm.model, 40) if place == 0 else None
                (mark,) = axes.plot([100 * cell.accuracy], [y], marker, color=colour, mfc=face, ms=6.5, label=label)
                mark.set(zorder=3, clip_on=False)  # at 0 and 100 half of it lies outside the axes
        names = [f"{b}: {g}" if several else ("all groups pooled" if g == OVERALL else g) for b, g in table.columns]
        axes.set_yticks(range(len(columns)), [_wrapped(names[i]) for i in columns])
        for place in range(len(columns) - 1):
            axes.axhline(place + 0.5, color="#edf0f2", linewidth=1, zorder=1)
        axes.set_ylim(len(columns) - 0.45, -0.55)
        axes.set_xlim(-1.5, 101.5)
        axes.axvline(50, color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.set_xlabel("accuracy, % of pairs (dashed: guessing)")
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        handles, labels = axes.get_legend_handles_labels()
        if labels:
            figure.legend(handles, labels, loc="outside upper left", ncols=min(3, len(labels)), handletextpad=0.4)
        return _svg(figure, "accuracy")


def quality_figure(rounds: Sequence[Round], before: Sequence[Quality]) -> Markup | None:
    """Label accuracy of every graded set, from the noisy pool to each round's curated set; None without grades."""
    bars: list[tuple[str, float, str, str]] = []
    for group, quality, colour in _quality_groups(rounds, before):
        for item in quality:
            if item.grade is not None and item.grade.graded:
                note = f"{percent(item.grade.accuracy)}% of {item.pairs:,}"
                bars.append((f"{group}{item.name}", 100 * item.grade.accuracy, note, colour))
    if not bars:
        return None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, 0.8 + 0.4 * len(bars)), layout="constrained")
        axes = figure.add_subplot()
        places = range(len(bars))
        axes.barh(places, [bar[1] for bar in bars], color=[bar[3] for bar in bars], height=0.66)
        for place, (_, value, note, _) in enumerate(bars):
            axes.text(value + 0.8, place, note, va="center", fontsize=9)
        axes.set_yticks(places, [_wrapped(bar[0]) for bar in bars])
        axes.set_ylim(len(bars) - 0.4, -0.6)
        axes.set_xlim(0, 150)
        axes.set_xticks(range(0, 101, 20))
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("label accuracy, %")
        return _svg(figure, "labels")


def probe_figure(rounds: Sequence[Round], before: Sequence[Quality]) -> Markup | None:
    """Style probe of every probed set with its 95% interval; None without probes."""
    points = [
        (f"{group}{item.name}", (item.probe.auc, item.probe.ci_low, item.probe.ci_high), colour)
        for group, quality, colour in _quality_groups(rounds, before)
        for item in quality
        if item.probe is not None
        and item.probe.auc is not None
        and item.probe.ci_low is not None
        and item.probe.ci_high is not None
    ]
    if not points:
        return None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, 0.8 + 0.4 * len(points)), layout="constrained")
        axes = figure.add_subplot()
        for place, (_, (auc, low, high), colour) in enumerate(points):
            axes.plot([low, high], [place, place], color=colour, linewidth=2, alpha=0.6)
            axes.plot([auc], [place], "o", color=colour, ms=7)
            axes.text(
                high + 0.012, place, f"{auc:.2f}", va="center", fontsize=9,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},  # where the dashed line would cross it
            )  # fmt: skip
        axes.axvline(0.5, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_yticks(range(len(points)), [_wrapped(point[0]) for point in points])
        axes.set_ylim(len(points) - 0.4, -0.6)
        axes.set_xlim(min(0.42, *(low for _, (_, low, _), _ in points)) - 0.02, 1.05)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        axes.set_xlabel("area under the ROC curve\n(dashed: style predicts nothing; 1.0: every pair)")
        return _svg(figure, "style")


def training_figure(curves: Sequence[Curve]) -> Markup | None:
    """Loss and accuracy of every training against its step; None where no log has them."""
    usable = [curve for curve in curves if len(curve.log) and "step" in curve.log and "loss" in curve.log]
    if not usable:
        return None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, 4.6 + 0.2 * len(usable)), layout="constrained")
        left, right = figure.subplots(2, 1)
        styles = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (5, 1, 1, 1)))
        apart = [colour for colour in COLOURS if colour not in _ARM_COLOURS.values()]
        for place, curve in enumerate(usable):
            colour = _ARM_COLOURS.get(curve.kind, apart[place % len(apart)])
            style = styles[place % len(styles)]
            for axes, column, scale in ((left, "loss", 1.0), (right, "accuracy", 100.0)):
                if column not in curve.log:
                    continue
                steps = curve.log["step"].to_numpy(dtype=float)
                values = curve.log[column].to_numpy(dtype=float, na_value=np.nan) * scale
                label = _short(curve.name, 40) if axes is left else None
                axes.plot(steps, values, color=colour, linestyle=style, linewidth=1.7, label=label)
        left.set(title="Training loss", xlabel="optimiser step", ylabel="−log σ(chosen − rejected)")
        right.set(title="Training accuracy", xlabel="optimiser step", ylabel="% of pairs in the batch")
        for axes in (left, right):
            axes.grid()
        figure.legend(loc="outside lower left", ncols=1 if max(len(curve.name) for curve in usable) > 22 else 2)
        return _svg(figure, "training")


def strength_figure(rounds: Sequence[Round], unit: str = "") -> Markup | None:
    """Histograms of preference strength in `unit`: one panel per round, one outline per part; None without any."""
    panels = [(item.number, _finite(item.strengths)) for item in rounds]
    panels = [(number, parts) for number, parts in panels if parts]
    if not panels:
        return None
    everything = np.concatenate([values for _, parts in panels for values in parts.values()])
    low, high = np.quantile(
        everything, [0.002, 0.998]
    )  # a few outliers must not squeeze the rest; they land in the last bins
    margin = 0.15 * (high - low) or 0.5
    low, high = max(low - margin, everything.min() - 1e-9), min(high + margin, everything.max() + 1e-9)
    bins = np.linspace(low, high, 41)
    names = list(dict.fromkeys(name for _, parts in panels for name in parts))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, 0.5 + 2.1 * len(panels)), layout="constrained")
        grid = figure.subplots(len(panels), 1, squeeze=False, sharex=True)
        for axes, (number, parts) in zip(grid.flat, panels, strict=True):
            _histograms(axes, parts, names, bins)
            axes.set_title(f"Round {number}")
            axes.axvline(0, color=INK, linewidth=0.8)
            axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.set(xlabel=_short(f"strength, {unit}" if unit else "strength", 50), ylabel="pairs")
        seen: dict[str, Any] = {}
        for axes in grid.flat:
            handles, labels = axes.get_legend_handles_labels()
            seen |= dict(zip(labels, handles, strict=True))
        figure.legend(list(seen.values()), list(seen), loc="outside upper left", ncols=3)
        return _svg(figure, "strength")


def call_figure(rounds: Sequence[tuple[int, Sequence[CallCurve]]]) -> Markup | None:
    """Label accuracy and pairs kept against judge calls, a line per round and rule; None where no judge was called."""
    lines = [
        (f"round {number}, {curve.rule}", _round_colour(place, len(rounds)), second, curve)
        for place, (number, curves) in enumerate(rounds)
        for second, curve in enumerate(curves)
        if len(curve.calls) > 1
    ]
    if not lines:
        return None
    graded = any(curve.right is not None for *_, curve in lines)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, 0.4 + 2.2 * (1 + graded) + 0.2 * len(lines)), layout="constrained")
        panels = figure.subplots(1 + graded, 1, squeeze=False)[:, 0]
        for name, colour, second, curve in lines:
            for axes, shares in zip(reversed(panels), (curve.kept, curve.right), strict=False):
                if shares is None:
                    continue
                axes.plot(
                    curve.calls,
                    [100 * share for share in shares],
                    color="#D55E00" if second else colour,
                    linestyle=(0, (5, 2)) if second else "-",
                    marker="s" if second else "o",
                    markersize=3.5,
                    linewidth=1.7,
                    label=_short(name, 60) if axes is panels[-1] else None,
                    clip_on=False,
                )
        titles = ["Label accuracy", "Pairs kept"][-len(panels) :]
        for axes, title in zip(panels, titles, strict=True):
            axes.set(title=title, xlabel="judge calls", ylabel="% of the pool" if axes is panels[-1] else "%")
            axes.set_xlim(left=0)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.xaxis.set_major_formatter("{x:,.0f}")
            axes.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))  # as many decimals as the ticks need
            axes.grid()
        figure.legend(loc="outside lower left")
        return _svg(figure, "calls")


def calibration_figure(rounds: Sequence[Round]) -> Markup | None:
    """Observed against claimed probability per round and kind of known truth; None where no truth is known."""
    lines = []
    for place, one in enumerate(rounds):
        rows = [] if one.estimate is None else one.estimate.calibration
        for kind, marker in (("audited", "o"), ("trusted", "s")):
            if points := [row for row in rows if row["kind"] == kind]:
                name = f"round {one.number}, {kind} ({sum(int(row['pairs']) for row in points):,} pairs)"
                lines.append((name, _round_colour(place, len(rounds)), marker, points))
    if not lines:
        return None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, 3.2), layout="constrained")
        axes = figure.subplots()
        axes.plot([50, 100], [50, 100], color=GREY, linestyle=(0, (4, 3)), linewidth=1)
        for place, (name, colour, marker, points) in enumerate(lines):
            claimed = np.array([100 * row["claimed"] for row in points]) + 0.25 * place  # bars do not hide each other
            shares = [row["observed"] for row in points]
            ends = [wilson_interval(round(row["observed"] * row["pairs"]), int(row["pairs"])) for row in points]
            reach = np.array([[share - low, high - share] for share, (low, high) in zip(shares, ends, strict=True)])
            axes.errorbar(
                claimed,
                100 * np.array(shares),
                yerr=np.clip(100 * reach.T, 0, None),
                color=colour,
                marker=marker,
                markersize=4,
                linewidth=1.2,
                label=_short(name, 60),
            )
        axes.set(xlabel="claimed, %", ylabel="observed, %", xlim=(49, 102))
        axes.grid()
        figure.legend(loc="outside lower left")
        return _svg(figure, "calibration")


def _histograms(axes: Axes, parts: Mapping[str, np.ndarray], names: Sequence[str], bins: np.ndarray) -> None:
    for name, values in parts.items():
        colour = COLOURS[names.index(name) % len(COLOURS)]
        clipped = np.clip(values, bins[0], bins[-1])
        axes.hist(clipped, bins=bins.tolist(), histtype="stepfilled", color=colour, alpha=0.25)
        axes.hist(clipped, bins=bins.tolist(), histtype="step", color=colour, linewidth=1.6, label=_short(name, 24))


def _finite(parts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    cleaned = {name: np.asarray(values, dtype=float) for name, values in parts.items()}
    cleaned = {name: values[np.isfinite(values)] for name, values in cleaned.items()}
    return {name: values for name, values in cleaned.items() if len(values)}


def _quality_groups(rounds: Sequence[Round], before: Sequence[Quality]) -> list[tuple[str, Sequence[Quality], str]]:
    groups: list[tuple[str, Sequence[Quality], str]] = [("", before, "#9aa5ad")]
    for place, item in enumerate(rounds):
        groups.append((f"round {item.number}: ", item.quality, _round_colour(place, len(rounds))))
    return groups


def _arm_looks(arms: Sequence[Arm]) -> list[tuple[str, str]]:
    """(colour, marker) per arm: rounds light to dark blue, each its own mark; control a square, ceiling a diamond."""
    count = sum(arm.kind == "round" for arm in arms)
    looks, place = [], 0
    for arm in arms:
        if arm.kind == "round":
            looks.append((_round_colour(place, count), _ROUND_MARKERS[place % len(_ROUND_MARKERS)]))
            place += 1
        else:
            looks.append((_ARM_COLOURS[arm.kind], "s" if arm.kind == "control" else "D"))
    return looks


def _round_colour(place: int, count: int) -> str:
    if count <= 1:
        return _ROUND_COLOURS[2]
    return _ROUND_COLOURS[round(place * (len(_ROUND_COLOURS) - 2) / (count - 1))]


def _wrapped(text: str) -> str:
    """A name beside an axis, on two lines of at most 22 characters."""
    lines = textwrap.wrap(_short(text, 60), 22) or [""]
    return "\n".join([lines[0], *([_short(" ".join(lines[1:]), 22)] if lines[1:] else [])])


def _short(text: str, length: int) -> str:
    text = " ".join(clean(text).split())
    return text if len(text) <= length else text[: length - 1] + "…"


def _svg(figure: Figure, name: str) -> Markup:
    """The figure as an SVG element that fills the width it is given; ids begin with `name`, so that none is twice."""
    text = svg_bytes(figure).decode("utf-8")
    text = re.sub(r"<!--.*?-->", "", text[text.index("<svg") :], flags=re.DOTALL)  # they quote the words of labels
    text = re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*"|<svg ([^>]*?)height="[^"]*" width="[^"]*"', _sized, text)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{name}-", text)
    return Markup(text)  # Matplotlib escapes what it writes, and letters are outlines


def _sized(found: re.Match[str]) -> str:
    return f'<svg aria-hidden="true" {found[1] or found[2] or ""}'
