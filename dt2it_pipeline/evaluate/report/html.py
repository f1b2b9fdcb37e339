"""The report as one self-contained HTML file across the rounds so far; as Markdown: `markdown`.

Texts in it come from models and from strangers' data: the template escapes everything, the page forbids scripts and
network access to itself, and images are decoded and encoded afresh.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from dt2it_pipeline.evaluate.benchmarks.metrics import MACRO, wilson_interval
from dt2it_pipeline.evaluate.report import figures, text
from dt2it_pipeline.evaluate.report.alternatives import alternative_texts
from dt2it_pipeline.evaluate.report.data import (
    CallCurve,
    Example,
    Headline,
    ReportData,
    Round,
    headline,
)
from dt2it_pipeline.evaluate.report.estimates import all_sentences, estimate_notes, last_sensitivity, truth_sentences
from dt2it_pipeline.evaluate.report.formatting import (
    brief,
    clean,
    duration,
    excerpt,
    number,
    p_value,
    percent,
    points,
)
from dt2it_pipeline.evaluate.report.outcomes import cost_columns, cost_rows
from dt2it_pipeline.media.errors import MediaError
from dt2it_pipeline.media.opening import png_thumbnail
from dt2it_pipeline.storage.atomic import replace_text

THUMBNAIL = 144  # pixels of the longer side


def write_report(data: ReportData, path: str | Path) -> Path:
    """Render the report and put it at `path` by a rename: a reader sees the old page or the new. Returns the path."""
    path = Path(path)
    replace_text(path, render_report(data))
    return path


def render_report(data: ReportData) -> str:
    """The report as HTML text. It needs no other file and no network; the same data gives the same text."""
    table = headline(data)
    rounds = list(data.rounds)
    curves = [*data.curves, *(curve for item in rounds for curve in item.curves)]
    estimates = [(f"round {item.number}", item.estimate) for item in rounds if item.estimate is not None]
    measured = [data.quality, *(item.quality for item in rounds)]
    return page(
        "report.html.jinja",
        data=data,
        table=table,
        summary=all_sentences(data, table),
        column_heads=text.column_heads(table),
        style_sentence=text.style_sentence(data),
        change_label=text.change_label,
        several_benchmarks=len({benchmark for benchmark, _ in table.columns}) > 1,
        arm_kinds={arm.kind for arm, _ in table.rows},
        round_names={arm.model for arm, _ in table.rows if arm.kind == "round"},
        intervals=_intervals(table),
        notes=text.notes(table),
        guessing_notes=text.guessing_notes(table),
        macro=MACRO,
        label_words=text.label_words,
        estimates=estimates,
        assumed=any(not item.anchored for _, item in estimates),
        estimate_notes=estimate_notes(data),
        truth_sentences=truth_sentences(data),
        sensitivity=last_sensitivity(data),
        has_accuracy=bool(table.rows and table.columns),
        graded=any(item.grade is not None and item.grade.graded for group in measured for item in group),
        figure_words=alternative_texts(data, table, curves),
        outcome_rows=[(item.number, one) for item in rounds for one in item.outcomes],
        suspects=rounds[-1].suspects if rounds else (),
        suspects_round=rounds[-1].number if rounds else 0,
        costs=cost_rows(data.costs),
        cost_columns=cost_columns(data.costs),
        calibration_figure=figures.calibration_figure(rounds),
        accuracy_figure=figures.accuracy_figure(table),
        quality_figure=figures.quality_figure(rounds, data.quality),
        probe_figure=figures.probe_figure(rounds, data.quality),
        training_figure=figures.training_figure(curves),
        call_figure=figures.call_figure(_different_curves(rounds)),
        call_sentence=text.call_sentence(rounds),
        strength_figure=figures.strength_figure(rounds, data.strength_unit),
        quality_groups=[
            *([("Before the rounds", "", data.quality)] if data.quality else []),
            *((f"Round {item.number}", item.note, item.quality) for item in rounds if item.quality),
        ],
        funnels=[(f"round {item.number}", item.funnel) for item in rounds if item.funnel is not None],
        funnel_labels=_keys(item.funnel.curated for item in rounds if item.funnel is not None),
        funnel_reasons=_keys(item.funnel.left_out for item in rounds if item.funnel is not None),
        stage_groups=[
            *([("Before the rounds", data.stages)] if data.stages else []),
            *((f"Round {item.number}", item.stages) for item in rounds if item.stages),
        ],
        example_groups=_example_groups(data),
        timings=_timings(data),
    )


def page(template: str, **values: Any) -> str:
    """A template of this folder as HTML text, with every value escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: clean(value) if isinstance(value, str) and not hasattr(value, "__html__") else value,
    )
    environment.filters |= {
        "percent": percent,
        "number": number,
        "duration": duration,
        "excerpt": excerpt,
        "brief": brief,
        "points": points,
        "p_value": p_value,
    }
    return environment.get_template(template).render(isnan=math.isnan, **values)


def _intervals(table: Headline) -> list[list[str]]:
    """Half width of the 95% interval of every cell, in points; empty for means of groups, which have none."""
    return [
        [
            "" if cell is None or group == MACRO or not cell.pairs else f"±{50 * (high_low[1] - high_low[0]):.1f}"
            for (_, group), cell in zip(table.columns, cells, strict=True)
            for high_low in [wilson_interval(cell.correct, cell.pairs) if cell is not None else (0.0, 0.0)]
        ]
        for _, cells in table.rows
    ]


def _different_curves(rounds: list[Round]) -> list[tuple[int, Sequence[CallCurve]]]:
    """(round, its curves) of the rounds whose curves are not those of the round before, which would hide them."""
    return [
        (item.number, item.call_curves)
        for place, item in enumerate(rounds)
        if item.call_curves and not (place and text.same_curves(rounds[place - 1], item))
    ]


def _keys(parts: Iterable[Mapping[str, int]]) -> list[str]:
    """Keys of all parts, each once, in the order in which they first come."""
    return list(dict.fromkeys(key for part in parts for key in part))


def _timings(data: ReportData) -> list[tuple[str, float, list[tuple[str, float]]]]:
    """(group, its seconds, its steps with theirs): before the rounds, every round, the arms."""
    first = {name: steps for name, steps in data.seconds.items() if not name.startswith("Arm")}
    arms = {name: steps for name, steps in data.seconds.items() if name not in first}
    groups = first | {f"Round {item.number}": item.seconds for item in data.rounds} | arms
    return [(name, sum(steps.values()), list(steps.items())) for name, steps in groups.items() if steps]


def _example_groups(data: ReportData) -> list[tuple[str, list[tuple[Example, list[str | None]]]]]:
    groups: dict[str, list[tuple[Example, list[str | None]]]] = {}
    for example in [*data.examples, *(e for item in data.rounds for e in item.examples)]:
        groups.setdefault(example.kind, []).append((example, [thumbnail(image) for image in example.images]))
    return list(groups.items())


def thumbnail(image: Path | str | bytes) -> str | None:
    """An image as a small PNG data URI, pixels only; None where it cannot be read."""
    try:
        small = png_thumbnail(image if isinstance(image, bytes) else Path(image), THUMBNAIL)
    except MediaError:  # the page then says that it could not be read
        return None
    return "data:image/png;base64," + base64.b64encode(small).decode("ascii")
