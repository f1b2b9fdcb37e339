"""The command `best-of`: the best of several answers by reward models, and what choosing is worth."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dt2it_pipeline.cli.models import PANEL, SystemPrompt
from dt2it_pipeline.cli.options import (
    AnswerColumns,
    Json,
    MaxLength,
    MaxPixelsOption,
    MediaRoot,
    Models,
    answer_columns,
    as_max_pixels,
    named_models,
)
from dt2it_pipeline.cli.terminal import note, progress, show

if TYPE_CHECKING:
    import numpy as np

    from dt2it_pipeline.evaluate.best_of.curve import BestOfCurve, Numbers
    from dt2it_pipeline.evaluate.best_of.files import Answers


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(name="best-of", rich_help_panel=PANEL)(best_of)


def best_of(
    responses: Annotated[
        Path,
        typer.Argument(
            metavar="RESPONSES",
            help="Answers, as for `dt2it score`. Of JSON Lines, `quality` (or `truth`), a list with one number per "
            "response, gives the curve. With --sample: prompts alone.",
        ),
    ],
    model: Models,
    output: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help=".parquet: a row per model and prompt with the chosen answer. .jsonl: the lines as given, each with "
            "`scores` and `best`, of one model or ensemble.",
        ),
    ],
    ensemble: Annotated[
        Literal["mean", "worst"] | None,
        typer.Option(help="Choose by all models together: the mean or the minimum of their standardised scores."),
    ] = None,
    curve: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder for the curve: curve.parquet, curve.md and curve.svg."),
    ] = None,
    up_to: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Length of the curve.", show_default="what 9 of 10 prompts have"),
    ] = None,
    sample: Annotated[
        str | None,
        typer.Option(
            metavar="GENERATOR",
            help="Sample the answers with this model (folder, Hub id or `demo`) in vLLM; they are kept beside OUTPUT.",
        ),
    ] = None,
    answers: Annotated[int, typer.Option(metavar="N", min=1, max=1024, help="Answers to sample per prompt.")] = 8,
    temperature: Annotated[float, typer.Option(min=0, max=5, help="Temperature of sampling.")] = 1.0,
    top_p: Annotated[float, typer.Option(min=0.01, max=1, help="Nucleus of sampling.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(metavar="TOKENS", min=1, help="A longer answer is left out.")] = 512,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of sampling and bootstrap.")] = 0,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Parquet table of kind `prompts`, for a table of responses.")
    ] = None,
    media: MediaRoot = None,
    column: AnswerColumns = None,
    processes: Annotated[int, typer.Option(metavar="N", min=1, max=1024, help="Scorers on this machine.")] = 1,
    max_length: MaxLength = None,
    max_pixels: MaxPixelsOption = "trained",
    system_prompt: SystemPrompt = None,
    as_json: Json = False,
) -> None:
    """Choose the best of several answers to each prompt with reward models, and measure what choosing is worth.

    What a killed call has scored is kept in OUTPUT.work, and is not scored again by the same call.
    """
    from dt2it_pipeline.config.sections.scoring import ScoringSettings
    from dt2it_pipeline.evaluate.best_of import files
    from dt2it_pipeline.evaluate.best_of.curve import CurveError
    from dt2it_pipeline.reward.ensemble_scores import calibrated_scales
    from dt2it_pipeline.reward.scoring.response_scores import (
        given_responses,
        replaced_keys,
        score_responses,
        scoring_work,
    )
    from dt2it_pipeline.reward.too_long import left_out

    models = named_models(model, taken=("oracle",))
    several = len(models) > 1 and ensemble is None
    tables = responses.suffix == ".parquet"
    columns = answer_columns(column, table=tables, sampled=sample is not None)
    lines_possible = not several and not tables
    if output.suffix not in (".parquet", ".jsonl") or (output.suffix == ".jsonl" and not lines_possible):
        why = (
            " or a .jsonl file" if lines_possible else " (.jsonl holds one model's choices among answers of JSON Lines)"
        )
        raise typer.BadParameter(f"--output {output}: name a .parquet file{why}")
    if output.is_dir():
        raise typer.BadParameter(f"--output {output} is a folder; name a file")
    if ensemble is not None and len(models) == 1:
        raise typer.BadParameter("--ensemble needs several --model")
    if tables and (prompts is None or media is None):
        raise typer.BadParameter("a table of responses needs --prompts and --media")
    if tables and (sample is not None or curve is not None):
        raise typer.BadParameter("--sample and --curve take JSON Lines, not a table")
    if curve is not None and curve.exists() and not curve.is_dir():
        raise typer.BadParameter(f"--curve {curve} is a file; name a folder")
    scales = None if ensemble is None else calibrated_scales(list(models.values()))
    folder = media or responses.absolute().parent
    settings = ScoringSettings(processes=processes, max_length=max_length, max_pixels=as_max_pixels(max_pixels))
    with scoring_work(output) as work:
        if sample is not None:
            responses = _sampled(
                sample, responses, folder, work, output, answers, (temperature, top_p, max_new_tokens), seed, columns
            )
        given = given_responses(responses, prompts, folder, work, columns)
        quality, faults = files.qualities(given.file)
        if curve is not None and quality is None:
            raise files.BestOfError(
                f"{responses}: no row has `quality` or `truth`, a list with one number per response, which --curve "
                "needs"
            )
        found = {}
        for name, source in models.items():
            with progress(f"scoring with {name}") as report:
                scored = score_responses(
                    source, given, work, settings=settings, system_prompt=system_prompt, report=report
                )
            found[name] = scored.by_id()
            if lost := left_out(scored.quarantine):
                total = int(scored.summary["responses"])
                note(f"{name}: {lost.in_words(total, 'responses', '--max-length', max_length)}")
        made = files.scored_answers(given, found)
        spread = None
        if ensemble is not None:
            made, spread = files.with_ensemble(made, ensemble, scales)
        choosers = [list(made.scores)[-1]] if ensemble is not None else list(models)
        files.write_choices(made, choosers, output, given.file)
        measured = None
        if quality is not None:
            try:
                measured = _curve(made, quality, curve, up_to, seed)
            except CurveError as error:
                if curve is not None:
                    raise
                note(f"no curve: {error}")
    if given.file is not None and (replaced := replaced_keys(given.file, output, "scores", "best")):
        note(replaced)
    for number, (reason, detail) in made.faults.items():
        note(f"no choice: {made.names[number]}: {reason} ({detail})")
    for fault in faults:
        note(f"not in the curve: {fault}")
    _show(made, choosers, output, measured, spread, as_json)


def _sampled(
    generator: str,
    prompts: Path,
    media: Path,
    work: Path,
    output: Path,
    count: int,
    decoding: tuple[float, float, int],
    seed: int,
    columns: Mapping[str, str],
) -> Path:
    """Sample answers and write them beside the output; returns their file."""
    from dt2it_pipeline.config.paths import model_path
    from dt2it_pipeline.engines.vllm_engine import Decoding
    from dt2it_pipeline.evaluate.best_of.sampling import sample_answers
    from dt2it_pipeline.reward.scoring.response_scores import write_lines

    made = sample_answers(
        model_path(generator),
        prompts,
        media,
        work / "media",
        count,
        decoding=Decoding(*decoding),
        seed=seed,
        columns=columns,
    )
    file = output.with_name(f"{output.stem}.answers.jsonl")
    write_lines(made.rows, file)
    note(f"{file}: {made.sampled:,} answers sampled; give this file without --sample to score them again")
    if made.cut or made.empty:
        note(f"left out: {made.cut:,} answers that reach --max-new-tokens ({decoding[2]}), {made.empty:,} empty ones")
    for name, reason, detail in made.faults:
        note(f"not sampled: {name}: {reason} ({detail})")
    return file


def _curve(made: Answers, quality: Numbers, folder: Path | None, up_to: int | None, seed: int) -> BestOfCurve:
    """The curve of every model, written where a folder is named."""
    from dt2it_pipeline.evaluate.best_of.curve import best_of_curve
    from dt2it_pipeline.evaluate.best_of.figure import curve_markdown, curve_svg
    from dt2it_pipeline.storage.atomic import replace_text, write_parquet

    measured = best_of_curve(made.scores, quality, up_to=up_to, seed=seed)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        write_parquet(measured.table, folder / "curve.parquet")
        replace_text(folder / "curve.md", curve_markdown(measured))
        replace_text(folder / "curve.svg", curve_svg(measured))
    return measured


def _show(
    made: Answers,
    choosers: list[str],
    output: Path,
    measured: BestOfCurve | None,
    spread: np.ndarray | None,
    as_json: bool,
) -> None:
    """Print counts, and the curve."""
    from dt2it_pipeline.evaluate.best_of.figure import curve_markdown

    counts = {}
    lines = []
    usable = len(made.names) - len(made.faults)
    for name in choosers:
        best = made.chosen(name)
        one = {
            "chosen": sum(each.place is not None for each in best),
            "tied": sum(each.tied > 1 for each in best),
            "unscored": sum(each.unscored for each in best),
        }
        counts[name] = one
        lines.append(
            f"{output}: {name} chose for {one['chosen']} of {usable} prompts among {made.count} answers; ties, where "
            f"the first was chosen: {one['tied']}; answers without a score: {one['unscored']}"
        )
    result = {"output": str(output), "prompts": usable, "rows_quarantined": len(made.faults), "models": counts}
    if spread is not None:
        known = spread[spread == spread]
        mean = float(known.mean()) if len(known) else float("nan")
        result["spread"] = mean
        lines.append(f"the models are {mean:.3g} apart on average, in units of their scales")
    if measured is not None:
        result["curve"] = measured.table.to_dict("records")
        lines += ["", "expected quality of the best of n answers:", "", curve_markdown(measured).rstrip()]
    show(result, lines, as_json=as_json)
