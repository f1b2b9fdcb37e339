"""Commands that measure: `benchmark` (a model), `style` (a file of pairs)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from dt2it_pipeline.cli.models import SystemPrompt
from dt2it_pipeline.cli.options import (
    Columns,
    Json,
    MaxLength,
    MaxPixelsOption,
    VerdictValues,
    as_max_pixels,
    assignments,
)
from dt2it_pipeline.cli.terminal import note, progress, show

PANEL = "Measure"
_LEAKS = 12  # features that are printed; --json has all


class _StyleCommand(TyperCommand):
    """Its help ends with the forms of rows that are understood; they stand beside code that needs pandas."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help."""
        from dt2it_pipeline.ingest.preferences import FORMS

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
            metavar="MODEL",
            help="Checkpoint folder of ours or of another trainer, Hub id, URL of a pooling server; or a YAML file of "
            "a judge, as `annotation.judges` of a recipe has one.",
        ),
    ],
    name: Annotated[
        list[str],
        typer.Option("--benchmark", metavar="NAME", help="Name of a file in configs/benchmarks. May be repeated."),
    ],
    rows: Annotated[
        list[Path],
        typer.Option(
            metavar="FILE", help="Its rows as published (JSON, JSON Lines, Parquet, ...): one for each --benchmark."
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
    column: Columns = None,
    system_prompt: SystemPrompt = None,
    processes: Annotated[int, typer.Option(metavar="N", min=1, max=1024, help="Scorers on this machine.")] = 1,
    max_length: MaxLength = None,
    max_pixels: MaxPixelsOption = "trained",
    as_json: Json = False,
) -> None:
    """Benchmark a reward model on published rows: the authors' figures with 95% intervals, beside published systems."""
    from dt2it_pipeline.config.sections.scoring import ScoringSettings
    from dt2it_pipeline.evaluate.benchmarks.model_benchmark import benchmark_model, figure_rows, write_results
    from dt2it_pipeline.evaluate.benchmarks.spec import get_entry
    from dt2it_pipeline.reward.too_long import TOO_LONG, left_out

    if not len(name) == len(rows) == len(media):
        raise typer.BadParameter("give --rows and --media once for every --benchmark")
    columns = assignments(column, "--column")
    for each in name:
        get_entry(each).with_columns(columns)  # what is misspelt is reported before anything is scored
    if Path(model).suffix in (".yaml", ".yml"):
        _benchmark_judge(Path(model), list(zip(name, rows, media, strict=True)), output, columns, as_json)
        return
    settings = ScoringSettings(processes=processes, max_length=max_length, max_pixels=as_max_pixels(max_pixels))
    results = []
    for each, file, folder in zip(name, rows, media, strict=True):
        with progress(f"scoring {each}", "responses", "responses_total") as report:
            found = benchmark_model(
                model,
                each,
                file,
                folder,
                output,
                settings=settings,
                system_prompt=system_prompt,
                columns=columns,
                report=report,
            )
        if lost := left_out(found.unscored):
            note(f"{each}: {lost.in_words(found.responses, 'responses', '--max-length', max_length)}")
        for row in (*found.quarantine.to_pylist(), *found.unscored.to_pylist()):
            if row["reason"] != TOO_LONG:
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


def _benchmark_judge(
    file: Path, benchmarks: list[tuple[str, Path, Path]], output: Path, columns: dict[str, str], as_json: bool
) -> None:
    """Benchmark the judge that a file describes."""
    from dt2it_pipeline.evaluate.benchmarks.judge_benchmark import benchmark_judge, load_judge
    from dt2it_pipeline.evaluate.benchmarks.model_benchmark import figure_rows, write_results

    judge = load_judge(file)
    found = {}
    for name, rows, media in benchmarks:
        with progress(f"judging {name}", "pairs", "pairs_total") as report:
            found[name] = benchmark_judge(judge, name, rows, media, output, columns=columns, report=report)
        for row in found[name].quarantine.to_pylist():
            note(f"not judged: {row['row_id']}: {row['reason']} ({row['detail']})")
    results = [each.result for each in found.values()]
    lines = [write_results(judge.name, results, output)]
    for each in found.values():
        if each.consistency is not None:
            orders = ", ".join(f"{order} {share:.1%}" for order, share in each.orders.items())
            lines.append(
                f"{each.result.name}: the verdicts of both orders agree on {each.consistency:.1%} of {each.compared} "
                f"pairs; accuracy by order: {orders}"
            )
    figures = figure_rows(judge.name, results).to_dict("records")
    counts = [
        {
            "benchmark": each.result.name,
            "version": each.result.version,
            "pairs": each.result.pairs,
            "ties": each.result.ties,
            "unscored": each.result.unscored,
            "order_consistency": each.consistency,
            "accuracy_by_order": dict(each.orders),
        }
        for each in found.values()
    ]
    show({"model": judge.name, "benchmarks": counts, "figures": figures}, lines, as_json=as_json)


def style(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="Pairs: JSON, JSON Lines, CSV, TSV or Parquet (also .gz or .zst), a folder of these, such as an "
            "export, or an archive.",
        ),
    ],
    column: Columns = None,
    verdict: VerdictValues = None,
    as_json: Json = False,
) -> None:
    """Measure how far style alone tells the chosen side of a file's pairs, and which features of it do."""
    from dt2it_pipeline.ingest.preferences import read_preferences
    from dt2it_pipeline.style import all_probes

    pairs, quarantine = read_preferences(file, assignments(column, "--column"), assignments(verdict, "--verdict"))
    prompts = pairs["prompt_id"].nunique()
    reasons = sorted(Counter(quarantine["reason"]).items())
    lines = [
        f"{len(pairs)} pairs of {prompts} prompts" + "".join(f"; {n} rows quarantined: {why}" for why, n in reasons)
    ]
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
        "quarantined": dict(reasons),
        "probes": {name: {**vars(probe), "leaks": dict(probe.leaks)} for name, probe in probes.items()},
    }
    show(result, lines, as_json=as_json)
