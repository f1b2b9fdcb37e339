"""The report: one self-contained HTML file across the rounds so far, and the same headline table as Markdown.

Texts in it come from models and from strangers' data: the template escapes everything, the page forbids scripts and
network access to itself, and pictures are decoded and encoded afresh before they are shown.
"""

from __future__ import annotations

import base64
import io
import math
import os
import tempfile
import warnings
from pathlib import Path

import jinja2
from PIL import Image

from dt2it_pipeline.evaluate import figures
from dt2it_pipeline.evaluate.benchmarks import ALL, MACRO, OVERALL, wilson_interval
from dt2it_pipeline.evaluate.formatting import clean, duration, excerpt, markdown_table, number, percent
from dt2it_pipeline.evaluate.report_data import Cell, Example, Headline, ReportData, headline
from dt2it_pipeline.ingest.media import PICTURE_FORMATS

THUMBNAIL = 144  # pixels of the longer side
_MAX_PIXELS = 50_000_000  # a larger picture is not decoded for a thumbnail


def write_report(data: ReportData, path: str | Path) -> Path:
    """Render the report and put it at `path` by a rename: a reader sees the old page or the new. Returns the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = render_report(data)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)
    return path


def render_report(data: ReportData) -> str:
    """The report as HTML text. It needs no other file and no network; the same data gives the same text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: clean(value) if isinstance(value, str) and not hasattr(value, "__html__") else value,
    )
    environment.filters |= {"percent": percent, "number": number, "duration": duration, "excerpt": excerpt}
    table = headline(data)
    rounds = list(data.rounds)
    curves = [*data.curves, *(curve for item in rounds for curve in item.curves)]
    return environment.get_template("report.html.jinja").render(
        data=data,
        table=table,
        summary=summary_sentences(data, table),
        column_heads=_column_heads(table),
        style_sentence=_style_sentence(data),
        intervals=_intervals(table),
        notes=_notes(table),
        accuracy_figure=figures.accuracy_figure(table),
        quality_figure=figures.quality_figure(rounds, data.quality),
        probe_figure=figures.probe_figure(rounds, data.quality),
        training_figure=figures.training_figure(curves),
        strength_figure=figures.strength_figure(rounds),
        quality_groups=[
            *([("Before the rounds", data.quality)] if data.quality else []),
            *((f"Round {item.number}", item.quality) for item in rounds if item.quality),
        ],
        stage_groups=[
            *([("Before the rounds", data.stages)] if data.stages else []),
            *((f"Round {item.number}", item.stages) for item in rounds if item.stages),
        ],
        example_groups=_example_groups(data),
        timings=[(f"Round {item.number}", item.seconds) for item in rounds if item.seconds],
        OVERALL=OVERALL,
        MACRO=MACRO,
        ALL=ALL,
        isnan=math.isnan,
    )


def headline_markdown(data: ReportData) -> str:
    """The headline table as Markdown: one row per arm, one column per benchmark group, accuracy in percent."""
    table = headline(data)
    heads = ["model", *(f"{head[0]}: {head[1]}" if head[0] else head[1] for head in _column_heads(table))]
    rows = [
        [arm.model, *("–" if cell is None or math.isnan(cell.accuracy) else percent(cell.accuracy) for cell in cells)]
        for arm, cells in table.rows
    ]
    return markdown_table(heads, rows)


def quality_markdown(data: ReportData) -> str:
    """The data-quality table as Markdown, one row per set of pairs."""
    groups = [("", data.quality), *((f"round {item.number}: ", item.quality) for item in data.rounds)]
    rows = []
    for group, quality in groups:
        for item in quality:
            accuracy = percent(item.grade.accuracy) if item.grade is not None and item.grade.graded else "–"
            probe = "–" if item.probe is None or item.probe.auc is None else f"{item.probe.auc:.3f}"
            kept = "–" if item.kept_share is None else percent(item.kept_share)
            calls = "–" if item.judge_calls is None else number(item.judge_calls)
            rows.append([group + item.name, number(item.pairs), kept, accuracy, probe, calls])
    return markdown_table(["set of pairs", "pairs", "kept %", "labels right %", "style AUC", "judge calls"], rows)


def summary_sentences(data: ReportData, table: Headline) -> list[str]:
    """The result in at most four sentences, taken from the numbers."""
    sentences = []
    rounds = [(arm, cells) for arm, cells in table.rows if arm.kind == "round"]
    control = next((cells for arm, cells in table.rows if arm.kind == "control"), None)
    whole = _whole_column(table)
    if rounds and whole is not None and (last := rounds[-1][1][whole]) is not None:
        text = f"The reward model of {rounds[-1][0].model} prefers the right answer in {percent(last.accuracy)}% of "
        text += f"{number(last.pairs)} held-out pairs"
        first = rounds[0][1][whole]
        if len(rounds) > 1 and first is not None:
            text += f", against {percent(first.accuracy)}% in {rounds[0][0].model}"
        sentences.append(text + ".")
        if control is not None and (other := control[whole]) is not None:
            sentences.append(f"Trained on the uncurated data instead, it gets {percent(other.accuracy)}%.")
        worst = _largest_gap(table, rounds[-1][1], control)
        if worst is not None:
            sentences.append(worst)
    graded = [item for item in data.quality if item.grade is not None and item.grade.graded and item.kept_share == 1]
    final = next((r.quality[-1] for r in reversed(data.rounds) if r.quality and r.quality[-1].grade is not None), None)
    if graded and final is not None and graded[0].grade is not None and final.grade is not None and final.grade.graded:
        kept = "" if final.kept_share is None else f", keeping {percent(final.kept_share)}% of the pairs"
        before, after = graded[0].grade.accuracy, final.grade.accuracy
        verb = "raised" if after > before else "lowered" if after < before else "left"
        change = f"at {percent(after)}%" if verb == "left" else f"from {percent(before)}% to {percent(after)}%"
        sentences.append(f"Curation {verb} the share of right labels {change}{kept}.")
    return sentences


def _largest_gap(table: Headline, last: list[Cell | None], control: list[Cell | None] | None) -> str | None:
    """The sentence about the benchmark group in which curation changes most."""
    gaps = [
        (a.accuracy - b.accuracy, table.columns[i][1], a, b)
        for i, (a, b) in enumerate(zip(last, control or [], strict=False))
        if a is not None and b is not None and table.columns[i][1] not in (OVERALL, MACRO)
    ]
    gaps = [gap for gap in gaps if not math.isnan(gap[0])]
    if not gaps:
        return None
    _, group, ours, theirs = max(gaps, key=lambda item: abs(item[0]))
    return (
        f"The difference is largest in the group “{group}”: {percent(ours.accuracy)}% with curation, "
        f"{percent(theirs.accuracy)}% without."
    )


def _style_sentence(data: ReportData) -> str:
    """What gives the chosen side away in the first set where style tells it; empty where it does in none."""
    for item in (*data.quality, *(quality for one in data.rounds for quality in one.quality)):
        if item.probe is not None and (item.probe.ci_low or 0) > 0.55 and item.probe.features:
            signs = [f"{name} ({'more' if weight > 0 else 'less'})" for name, weight in item.probe.features[:3]]
            return f"In “{item.name}” the chosen side stands out most by: {', '.join(signs)}."
    return ""


def _whole_column(table: Headline) -> int | None:
    """Column with the accuracy over everything: all benchmarks pooled, else the only benchmark's pooled accuracy."""
    if (ALL, OVERALL) in table.columns:
        return table.columns.index((ALL, OVERALL))
    overall = [i for i, (_, group) in enumerate(table.columns) if group == OVERALL]
    return overall[0] if len(overall) == 1 else None


def _column_heads(table: Headline) -> list[tuple[str, str]]:
    """(benchmark, group) to print; the benchmark is left out where there is only one."""
    single = len({benchmark for benchmark, _ in table.columns}) == 1
    names = {OVERALL: "all pooled", MACRO: "mean of groups"}
    return [("" if single else benchmark, names.get(group, group)) for benchmark, group in table.columns]


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


def _notes(table: Headline) -> list[str]:
    """One line per arm that tied or failed on pairs."""
    notes = []
    for arm, cells in table.rows:
        real = [
            cell
            for (b, group), cell in zip(table.columns, cells, strict=True)
            if cell and group == OVERALL and b != ALL
        ]
        ties, unscored = sum(cell.ties for cell in real), sum(cell.unscored for cell in real)
        if ties or unscored:
            notes.append(
                f"{arm.model}: {number(ties)} ties and {number(unscored)} pairs without a score, counted as wrong."
            )
    return notes


def _example_groups(data: ReportData) -> list[tuple[str, list[tuple[Example, list[str | None]]]]]:
    groups: dict[str, list[tuple[Example, list[str | None]]]] = {}
    for example in [*data.examples, *(e for item in data.rounds for e in item.examples)]:
        groups.setdefault(example.kind, []).append((example, [thumbnail(image) for image in example.images]))
    return list(groups.items())


def thumbnail(image: Path | str | bytes) -> str | None:
    """A picture as a small PNG data URI, pixels only; None where it cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(
                io.BytesIO(image) if isinstance(image, bytes) else image, formats=PICTURE_FORMATS
            ) as opened:
                if opened.width * opened.height > _MAX_PIXELS:
                    return None
                small = opened.convert("RGB")
        small.thumbnail((THUMBNAIL, THUMBNAIL))
        bare = Image.new("RGB", small.size)
        bare.paste(small)
        buffer = io.BytesIO()
        bare.save(buffer, "PNG", optimize=True)
    except Exception:  # Pillow raises nearly anything on a hostile file; the page then says that it could not be read
        return None
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
