"""What a person sees of a table in the web UI: counts, reasons, examples with thumbnails, histograms.

Figures and thumbnails go in as base64 PNG; each stays far below the size at which the UI refuses them.
"""

from __future__ import annotations

import base64
import html
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa

from dt2it_pipeline.ingest.media import PICTURE_FORMATS
from dt2it_pipeline.store import Bundle

_EXAMPLES = 3
_THUMBNAIL = 96  # pixels
_TEXT = 160  # characters of a text that are shown


def bundle_metadata(bundle: Bundle, media_root: Path) -> dict[str, Any]:
    """Metadata of a stored bundle: its facts, row counts, set-aside reasons, example pairs and a strength histogram."""
    metadata: dict[str, Any] = {"path": dg.MetadataValue.path(str(bundle.folder))}
    for name, value in bundle.facts.items():
        if isinstance(value, bool | int | float | str):
            metadata[name] = value
    for kind, table in bundle.tables.items():
        metadata[f"{kind}_rows"] = table.num_rows
    set_aside = bundle.tables.get("set_aside")
    if set_aside is not None and set_aside.num_rows:
        reasons = Counter(zip(set_aside["reason"].to_pylist(), set_aside["source"].to_pylist(), strict=True))
        metadata["set_aside_by_reason"] = _markdown(
            ("reason", "source", "rows"), [(*key, count) for key, count in reasons.most_common()]
        )
    pairs = bundle.tables.get("pairs")
    if pairs is not None and pairs.num_rows:
        labels = Counter(zip(pairs["label"].to_pylist(), pairs["source"].to_pylist(), strict=True))
        metadata["pairs_by_label"] = _markdown(
            ("label", "source", "pairs"), [(*key, count) for key, count in sorted(labels.items())]
        )
        metadata["examples"] = _examples(pairs, bundle.tables.get("prompts"), media_root)
        strengths = [value for value in pairs["strength"].to_pylist() if value is not None]
        if strengths:
            metadata["strength_histogram"] = histogram(strengths, "strength", "pairs")
    return metadata


def histogram(values: Sequence[float], x_label: str, y_label: str) -> dg.MarkdownMetadataValue:
    """A histogram as a picture in Markdown."""
    figure, axes = _figure()
    axes.hist(values, bins=40, color="#31688e")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    return _picture(figure)


def training_curve(
    log: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]] = ()
) -> dg.MarkdownMetadataValue:
    """Loss and accuracy over optimiser steps as a picture in Markdown; entries have step, loss and accuracy.

    `evaluations` are those of held-out pairs; they are drawn as points.
    """
    figure, axes = _figure()
    for rows, mark, of in ((log, "-", ""), (evaluations, "o", " of held-out pairs")):
        for name, colour in (("loss", "#31688e"), ("accuracy", "#d95f02")):
            if rows:
                points = [row["step"] for row in rows], [row[name] for row in rows]
                axes.plot(*points, mark, markersize=4, color=colour, label=name + of)
    axes.set_xlabel("optimiser step")
    axes.legend(frameon=False)
    return _picture(figure)


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


def _examples(pairs: pa.Table, prompts: pa.Table | None, media_root: Path) -> dg.MarkdownMetadataValue:
    shown = pairs.slice(0, _EXAMPLES).to_pylist()
    wanted = {row["prompt_id"] for row in shown}
    by_id = {}
    if prompts is not None:
        mask = [key in wanted for key in prompts["prompt_id"].to_pylist()]
        by_id = {row["prompt_id"]: row for row in prompts.filter(pa.array(mask)).to_pylist()}
    rows = []
    for row in shown:
        prompt = by_id.get(row["prompt_id"])
        pictures = "".join(_thumbnail(media_root / medium["path"]) for medium in prompt["media"]) if prompt else ""
        question = _shorten(prompt["turns"][-1]["text"]) if prompt else ""
        rows.append((pictures, question, _shorten(row["chosen"]), _shorten(row["rejected"]), row["label"]))
    return _markdown(("picture", "question", "chosen", "rejected", "label"), rows)


def _thumbnail(path: Path) -> str:
    from PIL import Image

    try:
        with Image.open(path, formats=PICTURE_FORMATS) as image:
            image.thumbnail((_THUMBNAIL, _THUMBNAIL))
            buffer = io.BytesIO()
            image.convert("RGB").save(buffer, format="PNG")
    except OSError:
        return "(no picture)"
    return f"![picture](data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()})"


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


def _figure() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 2.6), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _picture(figure: Any) -> dg.MarkdownMetadataValue:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    return dg.MetadataValue.md(f"![figure](data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()})")
