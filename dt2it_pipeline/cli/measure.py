"""Commands that measure: `benchmark` (a model), `calibrate` (its scores), `card` (its figures), `style` (pairs)."""

from __future__ import annotations

import shutil
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
    MediaRoot,
    VerdictValues,
    as_max_pixels,
    assignments,
    verdict_values,
)
from dt2it_pipeline.cli.terminal import CommandError, note, progress, show

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
    app.command(rich_help_panel=PANEL)(calibrate)
    app.command(rich_help_panel=PANEL)(card)
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
    processes: Annotated[
        int, typer.Option(metavar="N", min=1, max=1024, help="Processes that hold the model on this machine.")
    ] = 1,
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
        named = list(zip(name, rows, media, strict=True))
        _benchmark_judge(Path(model), named, output, columns, processes, as_json)
        return
    settings = ScoringSettings(processes=processes, max_length=max_length, max_pixels=as_max_pixels(max_pixels))
    results = []
    for each, file, folder in zip(name, rows, media, strict=True):
        with progress(f"scoring {each}") as report:
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
    file: Path,
    benchmarks: list[tuple[str, Path, Path]],
    output: Path,
    columns: dict[str, str],
    processes: int,
    as_json: bool,
) -> None:
    """Benchmark the judge that a file describes."""
    from dt2it_pipeline.evaluate.benchmarks.judge_benchmark import benchmark_judge, load_judge
    from dt2it_pipeline.evaluate.benchmarks.model_benchmark import figure_rows, write_results
    from dt2it_pipeline.judges.protocol import NoUsableReply

    judge = load_judge(file)
    found = {}
    for name, rows, media in benchmarks:
        try:
            with progress(f"judging {name}") as report:
                found[name] = benchmark_judge(
                    judge, name, rows, media, output, columns=columns, processes=processes, report=report
                )
        except NoUsableReply as error:
            advice = f"Correct the settings in {file} and run this again"
            raise NoUsableReply(error.found, advice) from error
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

    pairs, quarantine = read_preferences(file, assignments(column, "--column"), verdict_values(verdict))
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


def calibrate(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="Folder of a reward model; its card is written anew.")
    ],
    pairs: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="Pairs that the model was not trained on: any file that `dt2it style` reads, or a Parquet table of "
            "kind `pairs` with --prompts.",
        ),
    ],
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Parquet table of kind `prompts`, for a table of pairs.")
    ] = None,
    media: MediaRoot = None,
    audit: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What people said of some of the pairs (`dt2it review sample`): only these count, as people said.",
        ),
    ] = None,
    sample: Annotated[
        Path | None, typer.Option(metavar="FILE", help="sample.parquet of the audit: answered pairs then have weights.")
    ] = None,
    column: Columns = None,
    verdict: VerdictValues = None,
    processes: Annotated[int, typer.Option(metavar="N", min=1, max=1024, help="Scorers on this machine.")] = 1,
    max_length: MaxLength = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Fit and print; leave the checkpoint as it is.")] = False,
    as_json: Json = False,
) -> None:
    """Fit a temperature T: sigmoid(margin / T) is then the probability that an answer is better. It goes into the card.

    T = 1 is kept where the fitted one does no better on held-out folds of the pairs. What a killed call has scored is
    kept in CHECKPOINT.calibration, and is not scored again by the same call.
    """
    from dt2it_pipeline.config.sections.scoring import ScoringSettings
    from dt2it_pipeline.evaluate.calibrate import calibrate as fit
    from dt2it_pipeline.reward.calibration import CalibrationError, card_entry
    from dt2it_pipeline.storage.table_files import no_file

    for file in (pairs, prompts, audit, sample):
        if file is not None and (not file.exists() or file.is_dir()):
            raise CommandError(no_file(file))
    if sample is not None and audit is None:
        raise typer.BadParameter("--sample says what the answers of --audit stand for: give both")
    work = Path(f"{checkpoint}.calibration")
    try:
        with progress("scoring") as report:
            found = fit(
                str(checkpoint),
                pairs,
                work,
                prompts=prompts,
                media=media,
                audit=audit,
                sample=sample,
                columns=assignments(column, "--column"),
                verdict=verdict_values(verdict),
                settings=ScoringSettings(processes=processes, max_length=max_length),
                report=report,
            )
    except CalibrationError:  # the same call would end alike: there is nothing to resume
        shutil.rmtree(work, ignore_errors=True)
        raise
    made = found.calibration
    if not dry_run:
        from dt2it_pipeline.reward.checkpoints.model_card import write_calibration

        write_calibration(checkpoint, made)
    shutil.rmtree(work)  # not before: a card that cannot be written costs no scores
    for reason, count in sorted(found.unusable.items()):
        note(f"not used: {count} of {found.given} pairs: {reason}")
    lines = [
        f"{checkpoint}: {made.in_words()}",
        f"accuracy on the pairs: {made.accuracy:.1%}",
        f"log loss: {made.log_loss_before:.4f} with T = 1, {made.log_loss_after:.4f} cross-validated",
        f"expected calibration error: {made.error_before:.4f} with T = 1, {made.error_after:.4f} cross-validated",
    ]
    if dry_run:
        lines.append("nothing was written (--dry-run)")
    show({"checkpoint": str(checkpoint), "written": not dry_run, **card_entry(made)}, lines, as_json=as_json)


def card(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="Folder of a reward model; its README.md is written anew.")
    ],
    figures: Annotated[
        Path, typer.Option(metavar="FILE", help="figures.parquet of `dt2it benchmark`, or a table of that kind.")
    ],
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Which model of the table it is.", show_default="the only one"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write benchmark figures into a checkpoint's model card: a table, and the `model-index` that the Hub reads."""
    from dt2it_pipeline.storage.atomic import read_given_parquet
    from dt2it_pipeline.storage.table_files import no_file

    if not figures.is_file():
        raise CommandError(no_file(figures))
    rows = read_given_parquet(figures, "benchmark_figures").to_pylist()
    names = sorted({row["model"] for row in rows})
    if model is None and len(names) != 1:
        raise CommandError(f"{figures} has the models {', '.join(names) or '(none)'}: name one with --model")
    chosen = [row for row in rows if row["model"] == (model or names[0])]
    if not chosen:
        raise CommandError(f"{figures} has no model {model!r}; it has {', '.join(names)}")
    from dt2it_pipeline.reward.checkpoints.model_card import write_benchmarks

    write_benchmarks(checkpoint, chosen)
    benchmarks = sorted({row["benchmark"] for row in chosen})
    line = f"{checkpoint / 'README.md'}: {len(chosen)} figures of {', '.join(benchmarks)}"
    show({"card": str(checkpoint / "README.md"), "figures": len(chosen)}, [line], as_json=as_json)
