"""Alternative texts of the figures: what a reader hears who does not see them."""

from __future__ import annotations

import math

from dt2it_pipeline.evaluate.benchmarks.metrics import MACRO, OVERALL
from dt2it_pipeline.evaluate.report.data import Curve, Headline, ReportData
from dt2it_pipeline.evaluate.report.formatting import number, percent


def alternative_texts(data: ReportData, table: Headline, curves: list[Curve]) -> dict[str, str]:
    """Figure -> its alternative text, which names what is drawn and the numbers that matter."""
    rounds = [f"round {item.number}" for item in data.rounds]
    graded = [
        f"{item.name} {percent(item.grade.accuracy)}%"
        for quality in (data.quality, *(one.quality for one in data.rounds))
        for item in quality
        if item.grade is not None and item.grade.graded
    ]
    probed = [
        f"{item.name} {item.probe.auc:.2f}"
        for quality in (data.quality, *(one.quality for one in data.rounds))
        for item in quality
        if item.probe is not None and item.probe.auc is not None
    ]
    checked = sum(int(row["pairs"]) for one in data.rounds if one.estimate for row in one.estimate.calibration)
    calls = [one.call_curves[0].calls[-1] for one in data.rounds if one.call_curves and one.call_curves[0].calls]
    return {
        "accuracy_figure": f"Accuracy per benchmark group with 95% intervals. All pairs: {_accuracies(table)}.",
        "quality_figure": f"Bars of label accuracy: {', '.join(graded)}.",
        "probe_figure": f"AUC of the style probe with 95% intervals: {', '.join(probed)}.",
        "strength_figure": f"Histograms of preference strength: {', '.join(rounds)}.",
        "call_figure": f"Pairs kept, and label accuracy where it is known, against judge calls, up to "
        f"{number(max(calls, default=0))}.",
        "training_figure": f"Training loss and accuracy by optimiser step: {', '.join(map(_last, curves))}.",
        "calibration_figure": f"Observed against claimed share of right labels, of {number(checked)} pairs of known "
        "truth.",
    }


def _accuracies(table: Headline) -> str:
    whole = [place for place, (_, group) in enumerate(table.columns) if group == OVERALL]
    place = whole[-1] if whole else next((i for i, (_, group) in enumerate(table.columns) if group != MACRO), None)
    cells = [] if place is None else [(arm.model, cells[place]) for arm, cells in table.rows]
    return ", ".join(
        f"{model} {percent(cell.accuracy)}%"
        for model, cell in cells
        if cell is not None and not math.isnan(cell.accuracy)
    )


def _last(curve: Curve) -> str:
    losses = [] if "loss" not in curve.log else [float(value) for value in curve.log["loss"] if not math.isnan(value)]
    return f"{curve.name} ends at loss {losses[-1]:.2f}" if losses else curve.name
