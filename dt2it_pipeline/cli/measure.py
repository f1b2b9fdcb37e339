"""Commands that measure: `benchmark` (a model), `style` (a file of pairs)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from dt2it_pipeline.cli.models import SystemPrompt
from dt2it_pipeline.cli.options import Json, MaxPixelsOption, as_max_pixels
from dt2it_pipeline.cli.terminal import note, progress, show

PANEL = "Measure"
_LEAKS = 12  # features that are printed; --json has all


class _StyleCommand(TyperCommand):
    """Its help ends with the forms of rows that are understood; they stand beside code that needs pandas."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help."""
        from dt2it_pipeline.ingest.preference_files import FORMS

        super().format_help(ctx, formatter)
        typer.echo(FORMS)


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(rich_help_panel=PANEL)(benchmark)
    app.command(rich_help_panel=PANEL, cls=_StyleCommand)(style)


def benchmark(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="Checkpoint folder of ours or of LLaMA-Factory, Hub id, or URL of a pooling server."
        ),
    ],
    name: Annotated[
        list[str],
        typer.Option("--benchmark", metavar="NAME", help="Name of a file in configs/benchmarks. May be repeated."),
    ],
    rows: Annotated[
        list[Path],
        typer.Option(
            metavar="FILE", help="Its rows as published (JSON, JSON Lines, Parquet): one for each --benchmark."
        ),
    ],
    media: Annotated[
        list[Path], typer.Option(metavar="FOLDER", help="Its images and videos: one folder for each --benchmark.")
    ],
    output: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER", help="Folder for figures, results per pair and scores; a killed run goes on there."
        ),
    ],
    system_prompt: SystemPrompt = None,
    processes: Annotated[int, typer.Option(metavar="N", min=1, max=1024, help="Scorers on this machine.")] = 1,
    max_length: Annotated[
        int,
        typer.Option(metavar="TOKENS", min=16, max=131_072, help="A longer prompt with response is not scored."),
    ] = 12_288,
    max_pixels: MaxPixelsOption = "trained",
    as_json: Json = False,
) -> None:
    """Benchmark a reward model on published rows: the authors' figures with 95% intervals, beside published systems."""
    from dt2it_pipeline.config.sections.scoring import ScoringSettings
    from dt2it_pipeline.evaluate.benchmarks.model_benchmark import benchmark_model, figure_rows, write_results
    from dt2it_pipeline.evaluate.benchmarks.spec import get_entry

    if not len(name) == len(rows) == len(media):
        raise typer.BadParameter("give --rows and --media once for every --benchmark")
    settings = ScoringSettings(processes=processes, max_length=max_length, max_pixels=as_max_pixels(max_pixels))
    for each in name:
        get_entry(each)  # a misspelt one is reported before any is scored
    results = []
    for each, file, folder in zip(name, rows, media, strict=True):
        with progress(f"scoring {each}", "responses", "responses_total") as report:
            found = benchmark_model(
                model, each, file, folder, output, settings=settings, system_prompt=system_prompt, report=report
            )
        for row in found.quarantine.to_pylist():
            note(f"not scored: {row['row_id']}: {row['reason']} ({row['detail']})")
        results.append(found.result)
    text = write_results(model, results, output)
    figures = figure_rows(model, results).to_dict("records")
    counts = [
        {"benchmark": r.name, "version": r.version, "pairs": r.pairs, "ties": r.ties, "unscored": r.unscored}
        for r in results
    ]
    size = {"max_pixels": found.max_pixels, "trained_max_pixels": found.trained_max_pixels}
    shown = {"model": model, **size, "benchmarks": counts, "figures": figures}
    show(shown, [found.image_size, text], as_json=as_json)


def style(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="Pairs: JSON (a list), JSON Lines, CSV or Parquet; or a folder of Parquet files, such as an export "
            "for TRL.",
        ),
    ],
    chosen: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column that holds the better answer.", show_default="by form")
    ] = None,
    rejected: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column that holds the worse answer.", show_default="by form")
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Column that holds the question; pairs of one prompt never lie in two folds.",
            show_default="by form",
        ),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Column that holds the image's path, where it is part of the prompt.",
            show_default="by form",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure how far style alone tells the chosen side of a file's pairs, and which features of it do."""
    from dt2it_pipeline.ingest.preference_files import Columns, read_preferences
    from dt2it_pipeline.style import all_probes

    if (chosen is None) != (rejected is None):
        raise typer.BadParameter("--chosen and --rejected are given together")
    pairs, left_out = read_preferences(file, Columns(chosen, rejected, prompt, image))
    prompts = pairs["prompt_id"].nunique()
    reasons = sorted(left_out.items())
    lines = [f"{len(pairs)} pairs of {prompts} prompts" + "".join(f"; {n} rows left out: {why}" for why, n in reasons)]
    probes = all_probes(pairs)
    for name, probe in probes.items():
        if probe.auc is None:
            lines.append(f"{name}: not measured ({probe.reason})")
            continue
        lines.append(
            f"{name}: area under the ROC curve {probe.auc:.3f} (95%: {probe.ci_low:.3f} to {probe.ci_high:.3f})"
        )
        lines += [
            f"    {feature:<24} more on the chosen side in {share:.1%} of pairs"
            for feature, share in probe.leaks[:_LEAKS]
        ]
    result = {
        "pairs": len(pairs),
        "prompts": prompts,
        "left_out": dict(reasons),
        "probes": {name: {**vars(probe), "leaks": dict(probe.leaks)} for name, probe in probes.items()},
    }
    show(result, lines, as_json=as_json)
