"""What a person sees of a table in the web UI: counts, reasons, examples with thumbnails, histograms.

Figures and thumbnails go in as base64 PNG; each stays far below the size at which the UI refuses them.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa

from dt2it_pipeline.evaluate.report.formatting import excerpt, strength_unit
from dt2it_pipeline.media.errors import MediaError
from dt2it_pipeline.media.opening import png_thumbnail
from dt2it_pipeline.storage.artifacts import Artifact
from dt2it_pipeline.storage.schemas import COLUMNS, SCHEMAS

_SHARES = ("accuracy", "share", "auc")  # of which a headline is made
_LOG_ODDS = "log-odds of"  # so begins the unit of a strength that is a probability
_PROBABILITIES = (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)  # ticks of their histogram
_TYPES = {"double": "float64", "float": "float32"}  # Arrow's names of them mislead
_EXAMPLES = 3  # of every label
_LABEL_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")  # as many as there are labels
_THUMBNAIL = 96  # pixels
_TEXT = 160  # characters of a text that are shown


def main_table(kinds: Sequence[str]) -> str | None:
    """The table that an asset is about: the first of its kinds; None where it holds files, and at most a quarantine."""
    return kinds[0] if kinds and kinds[0] != "quarantine" else None


def table_schema(kind: str) -> dg.TableSchema:
    """Columns of one kind of table with their types and descriptions, as the UI shows them."""
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                name=column.name,
                type=_TYPES.get(str(column.type), str(column.type).split("<")[0]),
                description=COLUMNS[kind][column.name],
                constraints=dg.TableColumnConstraints(nullable=column.nullable),
            )
            for column in SCHEMAS[kind]
        ]
    )


def artifact_metadata(
    artifact: Artifact, media_root: Path, headline: Mapping[str, Any], main: str | None = None
) -> dict[str, Any]:
    """Metadata of a stored artifact, what a person looks for first coming first.

    Numbers before tables: the headline, shares such as an accuracy, row counts, what else is known; then the same of
    tables, with quarantine reasons, example pairs and strengths; last the duration and the folder.

    Args:
        artifact: stored.
        media_root: of the store, for thumbnails.
        headline: what the asset itself leads with.
        main: kind of the asset's main table, whose rows are its `dagster/row_count`.
    """
    known: dict[str, Any] = {}
    for name, value in artifact.metadata.items():
        if isinstance(value, bool | int | float | str):
            known[name] = float(f"{value:.4g}") if isinstance(value, float) else value
        elif value and isinstance(value, Mapping) and not any(isinstance(cell, Mapping) for cell in value.values()):
            known[name] = _markdown(("of", name), [(_shorten(str(key)), cell) for key, cell in value.items()])
    last = {name: known.pop(name) for name in ("seconds",) if name in known}
    found = dict(headline) | {name: known[name] for name in sorted(known, key=_place) if name not in headline}
    tables = {name: value for name, value in found.items() if isinstance(value, dg.MarkdownMetadataValue)}
    metadata = {name: value for name, value in found.items() if name not in tables}
    if main is not None:
        metadata["dagster/row_count"] = artifact[main].num_rows
    metadata |= {f"{kind}_rows": table.num_rows for kind, table in artifact.tables.items() if kind != main}
    metadata |= tables
    quarantine = artifact.tables.get("quarantine")
    if quarantine is not None and quarantine.num_rows:
        reasons = Counter(zip(quarantine["reason"].to_pylist(), quarantine["source"].to_pylist(), strict=True))
        metadata["quarantine_by_reason"] = _markdown(
            ("reason", "source", "rows"), [(*key, count) for key, count in reasons.most_common()]
        )
    pairs = artifact.tables.get("pairs")
    if pairs is not None and pairs.num_rows:
        labels = Counter(zip(pairs["label"].to_pylist(), pairs["source"].to_pylist(), strict=True))
        metadata["pairs_by_label"] = _markdown(
            ("label", "source", "pairs"), [(*key, count) for key, count in sorted(labels.items())]
        )
        policy = artifact.metadata.get("policy")
        units = _strength_units(pairs, policy if isinstance(policy, str) else None)
        metadata["examples"] = _examples(pairs, units, artifact.tables.get("prompts"), media_root)
        if drawn := strength_histograms(pairs, units):
            metadata["strength_histogram"] = drawn
    return metadata | last | {"path": dg.MetadataValue.path(str(artifact.folder))}


def _place(name: str) -> int:
    """Where a value stands: shares before counts, counts before the rest."""
    if any(word in name for word in _SHARES):
        return 0
    return 1 if name.startswith("rows_") else 2


def strength_in_words(strength: float, unit: str) -> str:
    """A strength with its unit; log-odds as a probability first, since few people read log-odds."""
    if not unit.startswith(_LOG_ODDS):
        return f"{strength:.2f} {unit}"
    right = 100 / (1 + math.exp(-strength))
    shown = "over 99%" if right > 99.5 else f"{right:.0f}%"
    return f"{shown} likely right ({strength:.2f} log-odds)"


def histogram(values: Sequence[float], x_label: str, y_label: str) -> dg.MarkdownMetadataValue:
    """A histogram as an image in Markdown."""
    figure, (axes,) = _figure()
    axes.hist(values, bins=40, color="#31688e")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    return _image(figure)


def strength_histograms(pairs: pa.Table, units: Sequence[str]) -> dg.MarkdownMetadataValue | None:
    """Histograms of a pairs table's strength as one image: a panel per unit, since units do not compare; or None.

    `units` holds the unit of every row's strength.
    """
    parts: dict[str, dict[str, list[float]]] = {}
    for unit, label, strength in zip(units, pairs["label"].to_pylist(), pairs["strength"].to_pylist(), strict=True):
        if strength is not None:
            parts.setdefault(unit, {}).setdefault(label, []).append(strength)
    if not parts:
        return None
    figure, panels = _figure(len(parts))
    for axes, (unit, by_label) in zip(panels, parts.items(), strict=True):
        everything = [value for values in by_label.values() for value in values]
        axes.hist(
            list(by_label.values()),
            bins=30,
            range=(min(everything), max(everything)),
            stacked=True,
            color=_LABEL_COLOURS[: len(by_label)],
            label=list(by_label),
        )
        if unit.startswith(_LOG_ODDS):
            low, high = min(everything), max(everything)
            ticks = [(math.log(p / (1 - p)), f"{100 * p:g}%") for p in _PROBABILITIES]
            shown = [tick for tick in ticks if low <= tick[0] <= high]
            axes.set_xticks([place for place, _ in shown], [words for _, words in shown])
            axes.set_xlabel("probability that the label is right (log-odds scale)")
        else:
            axes.set_xlabel(f"strength, {unit}")
        axes.set_ylabel("pairs")
        axes.legend(frameon=False, fontsize=8)
    return _image(figure)


def training_curve(
    log: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]] = ()
) -> dg.MarkdownMetadataValue:
    """Loss and accuracy over optimiser steps as an image in Markdown; entries have step, loss and accuracy.

    `evaluations` are those of held-out pairs; they are drawn as points.
    """
    figure, (axes,) = _figure()
    for rows, mark, of in ((log, "-", ""), (evaluations, "o", " of held-out pairs")):
        for name, colour in (("loss", "#31688e"), ("accuracy", "#d95f02")):
            if rows:
                points = [row["step"] for row in rows], [row[name] for row in rows]
                axes.plot(*points, mark, markersize=4, color=colour, label=name + of)
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("loss; accuracy (share)")
    axes.legend(frameon=False)
    return _image(figure)


def markdown_of(table: pa.Table) -> dg.MarkdownMetadataValue:
    """A small table, whole, as Markdown; shares are shown to three decimals."""
    rows = [[f"{cell:.3f}" if isinstance(cell, float) else cell for cell in row.values()] for row in table.to_pylist()]
    return _markdown(table.column_names, rows)


def judge_table(judges: Mapping[str, Mapping[str, Any]]) -> dg.MarkdownMetadataValue:
    """What asking each judge came to, a row per figure and a column per judge."""
    figures = list(dict.fromkeys(key for judge in judges.values() for key in judge))
    rows = [
        [figure, *("" if judge.get(figure) is None else judge[figure] for judge in judges.values())]
        for figure in figures
    ]
    return _markdown(["", *judges], rows)


def _strength_units(pairs: pa.Table, policy: str | None) -> list[str]:
    """Unit of every row's strength; voters have judged a row that has votes."""
    voted = [bool(votes) for votes in pairs["votes"].to_pylist()]
    return [strength_unit(label, policy, by) for label, by in zip(pairs["label"].to_pylist(), voted, strict=True)]


def _examples(
    pairs: pa.Table, units: Sequence[str], prompts: pa.Table | None, media_root: Path
) -> dg.MarkdownMetadataValue:
    """The first pairs of every label."""
    places: dict[str, list[int]] = {}
    for place, label in enumerate(pairs["label"].to_pylist()):
        found = places.setdefault(label, [])
        if len(found) < _EXAMPLES:
            found.append(place)
    taken = [place for found in places.values() for place in found]
    shown = pairs.take(taken).to_pylist()
    wanted = {row["prompt_id"] for row in shown}
    by_id = {}
    if prompts is not None:
        mask = [key in wanted for key in prompts["prompt_id"].to_pylist()]
        by_id = {row["prompt_id"]: row for row in prompts.filter(pa.array(mask)).to_pylist()}
    rows = []
    for row, place in zip(shown, taken, strict=True):
        prompt = by_id.get(row["prompt_id"])
        images = "".join(_thumbnail(media_root / medium["path"]) for medium in prompt["media"]) if prompt else ""
        question = _shorten(excerpt(prompt["turns"][-1]["text"])) if prompt else ""
        strength = "" if row["strength"] is None else _shorten(strength_in_words(row["strength"], units[place]))
        rows.append((images, question, _shorten(row["chosen"]), _shorten(row["rejected"]), row["label"], strength))
    return _markdown(("image", "question", "chosen", "rejected", "label", "strength"), rows)


def _thumbnail(path: Path) -> str:
    try:
        small = png_thumbnail(path, _THUMBNAIL)
    except MediaError:
        return "(no image)"
    return f"![image](data:image/png;base64,{base64.b64encode(small).decode()})"


def _shorten(text: str) -> str:
    """Text of a row for a Markdown cell: one line, shortened, with what Markdown or HTML would read escaped."""
    flat = " ".join(text.split())
    flat = flat if len(flat) <= _TEXT else flat[: _TEXT - 1] + "…"
    for character in "\\`*_{}[]()#+!|~":
        flat = flat.replace(character, "\\" + character)
    return html.escape(flat, quote=False)


def _markdown(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> dg.MarkdownMetadataValue:
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return dg.MetadataValue.md("\n".join(lines))


def _figure(panels: int = 1) -> tuple[Any, list[Any]]:
    """A figure and its panels, one above the other, so that it fits the UI's dialog."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 2.6 * panels), layout="constrained")
    axes = list(figure.subplots(panels, 1, squeeze=False).flat)
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _image(figure: Any) -> dg.MarkdownMetadataValue:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    return dg.MetadataValue.md(f"![figure](data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()})")
