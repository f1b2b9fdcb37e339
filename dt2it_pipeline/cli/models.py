"""Commands on reward models: `train`, `score`, `serve`, `convert`."""

from __future__ import annotations

import contextlib
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dt2it_pipeline.cli.options import (
    AnswerColumns,
    Json,
    MaxLength,
    MaxPixelsOption,
    MediaRoot,
    Models,
    RecipeFile,
    answer_columns,
    as_max_pixels,
    named_models,
    recipe_in_words,
)
from dt2it_pipeline.cli.terminal import CommandError, Report, note, progress, show

if TYPE_CHECKING:
    from dt2it_pipeline.ingest.provenance import Provenance
    from dt2it_pipeline.reward.training.job import TrainJob

PANEL = "Reward models"
_SERVER = "dt2it_pipeline.serve.vllm_main"
_REPORTED = re.compile(r"(\w+)=(\S+)")
_SERVE_CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}

SystemPrompt = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="System turn of the training, for a model whose chat template does not have it.",
        show_default="as its files say",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(rich_help_panel=PANEL)(train)
    app.command(rich_help_panel=PANEL)(score)
    app.command(rich_help_panel=PANEL, context_settings=_SERVE_CONTEXT)(serve)
    app.command(rich_help_panel=PANEL)(convert)


def train(
    pairs: Annotated[Path, typer.Option(metavar="FILE", help="Parquet table of kind `pairs`.")],
    prompts: Annotated[Path, typer.Option(metavar="FILE", help="Parquet table of kind `prompts` with their prompts.")],
    media: Annotated[Path, typer.Option(metavar="FOLDER", help="Media store from which paths in `prompts` count.")],
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="Checkpoint to make; the folder must not exist yet.")],
    recipe: RecipeFile = None,
    processes: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Ranks on this machine, one GPU each where there are GPUs.",
            show_default="the recipe's training.processes",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="Seed of head, order and held-out pairs.", show_default="the recipe's"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a reward model on a table of pairs, with the recipe's section `training`.

    What a killed training needs to go on is kept in OUTPUT.work until it has ended; call it again in the same way.
    """
    from dt2it_pipeline.config.paths import model_path
    from dt2it_pipeline.config.recipe import load_recipe
    from dt2it_pipeline.reward.too_long import left_out
    from dt2it_pipeline.reward.training.job import TrainJob
    from dt2it_pipeline.storage.atomic import read_parquet
    from dt2it_pipeline.storage.table_files import no_file

    file = recipe.resolve() if recipe is not None and recipe.is_file() else recipe
    chosen = load_recipe(file)
    note(f"{recipe_in_words(file)}, base model {chosen.training.base_model}")
    settings = chosen.training if processes is None else chosen.training.model_copy(update={"processes": processes})
    if output.exists():
        raise CommandError(f"{output} exists already; name a new folder")
    for file in (pairs, prompts):
        if not file.is_file():
            raise CommandError(no_file(file))
    if not media.is_dir():
        raise CommandError(f"there is no folder {media}")
    work = output.with_name(f"{output.name}.work")
    job = TrainJob(
        name=output.name,
        base_model=model_path(settings.base_model),
        pairs=pairs.absolute(),
        prompts=prompts.absolute(),
        media_root=media.absolute(),
        output=output.absolute(),
        work=work.absolute(),
        settings=settings,
        seed=chosen.seed if seed is None else seed,
        sources=_sources(chosen.datasets),
    )
    work.mkdir(parents=True, exist_ok=True)
    with progress("training") as report:
        summary = _train(job, work, report)
    shutil.rmtree(work)
    if lost := left_out(read_parquet(output / "quarantine.parquet", "quarantine")):
        given = int(summary["pairs"]) + int(summary["pairs_quarantined"])
        note(lost.in_words(given, "pairs", "training.max_length", settings.max_length))
    lines = [f"{output}: {summary['steps']} steps" if "steps" in summary else f"{output}: trained"]
    lines += [f"{key}: {value}" for key, value in sorted(summary.items()) if isinstance(value, int | float | str)]
    show({"checkpoint": str(output), **summary}, lines, as_json=as_json)


def _sources(datasets: tuple[str, ...]) -> dict[str, Provenance]:
    """What the card says of the sources that a recipe names; nothing, with a note, where a manifest cannot be read."""
    from dt2it_pipeline.ingest.manifest import ManifestError, load_catalogue
    from dt2it_pipeline.ingest.provenance import provenance_of

    try:
        return provenance_of(load_catalogue(datasets))
    except ManifestError as error:
        note(f"the model card will not know the licences of the sources: {error}")
        return {}


def _train(job: TrainJob, work: Path, report: Report) -> dict[str, Any]:
    """Train in processes of its own, started as the pipeline starts them; returns the summary."""
    from dt2it_pipeline.config.recipe_files import hostfile_path
    from dt2it_pipeline.engines.launch.launcher import JobFailed, Resources
    from dt2it_pipeline.engines.launch.local_launcher import LocalLauncher
    from dt2it_pipeline.engines.launch.ranks import rank_environment
    from dt2it_pipeline.reward.training.restarts import launch_training

    log, processes = work / "training.log", job.settings.processes
    ranks = Resources(processes, hostfile=hostfile_path(job.settings), environment=rank_environment(processes))
    with log.open("w", buffering=1, encoding="utf-8") as kept:  # line by line, for whoever watches it

        def read(line: str) -> None:
            kept.write(line)
            if state := _state(line):
                report(state)

        try:
            launcher = LocalLauncher(on_line=read)
            return launch_training(job, lambda job: launcher.launch(job, work=work, resources=ranks), note)
        except JobFailed as error:
            raise CommandError(f"training failed: {error}. All that it printed is in {log}") from None


def _state(line: str) -> dict[str, Any]:
    """What a line of progress says (`done=3 unit=steps total=10 loss=0.6`), nothing where it is another line."""
    words = line.split()
    found = [_REPORTED.fullmatch(word) for word in words]
    if not words or not all(found):
        return {}
    state: dict[str, Any] = {}
    for match in found:
        assert match is not None
        state[match[1]] = match[2]
        with contextlib.suppress(ValueError):
            state[match[1]] = int(match[2]) if match[2].isdigit() else float(match[2])
    return state


def score(
    responses: Annotated[
        Path,
        typer.Argument(
            metavar="RESPONSES",
            help="JSON Lines, one object per line: `responses`, `prompt` or `turns`, and, where there are any, "
            "`system`, `images`, `videos`, `id`. Or a Parquet table of kind `responses`, with --prompts and --media.",
        ),
    ],
    model: Models,
    output: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help=".parquet: one row per response with its score. .jsonl: the lines as given, each with `scores`.",
        ),
    ],
    ensemble: Annotated[
        Literal["mean", "worst"] | None,
        typer.Option(
            help="How the standardised scores of several models are combined: their mean or their minimum.",
            show_default="mean, of several models",
        ),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Parquet table of kind `prompts`, for a table of responses.")
    ] = None,
    media: MediaRoot = None,
    column: AnswerColumns = None,
    engine: Annotated[
        Literal["transformers", "vllm"], typer.Option(help="Who computes: our own model, or vLLM.")
    ] = "transformers",
    processes: Annotated[int, typer.Option(metavar="N", min=1, max=1024, help="Scorers on this machine.")] = 1,
    max_length: MaxLength = None,
    max_pixels: MaxPixelsOption = "trained",
    tokens_per_batch: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=64,
            help="Most tokens of one forward pass; fewer need less memory.",
            show_default="scoring.tokens_per_batch of a recipe that does not set it",
        ),
    ] = None,
    system_prompt: SystemPrompt = None,
    as_json: Json = False,
) -> None:
    """Score responses with a reward model; higher is better, among responses to one prompt.

    Several models score as one, and the output has the scores of each and how far they are apart.

    What a killed call has scored is kept in OUTPUT.work, and is not scored again by the same call.
    """
    from dt2it_pipeline.config.sections.scoring import ScoringSettings
    from dt2it_pipeline.reward.ensemble_scores import calibrated_scales, several_scores, write_several
    from dt2it_pipeline.reward.scoring.image_size import image_size_line
    from dt2it_pipeline.reward.scoring.response_scores import (
        given_responses,
        replaced_keys,
        score_responses,
        scoring_work,
        write_scores,
    )
    from dt2it_pipeline.reward.too_long import TOO_LONG, left_out
    from dt2it_pipeline.storage.atomic import write_parquet

    models = named_models(model)
    tables = responses.suffix == ".parquet"
    columns = answer_columns(column, table=tables)
    if output.suffix not in (".parquet", ".jsonl") or (tables and output.suffix == ".jsonl"):
        raise typer.BadParameter(f"--output {output}: name a .parquet file" + ("" if tables else " or a .jsonl file"))
    if output.is_dir():
        raise typer.BadParameter(f"--output {output} is a folder; name a file")
    if ensemble is not None and len(models) == 1:
        raise typer.BadParameter("--ensemble needs several --model")
    if tables and (prompts is None or media is None):
        raise typer.BadParameter("a table of responses needs --prompts and --media")
    scales = calibrated_scales(list(models.values())) if len(models) > 1 else None
    settings = ScoringSettings(
        engine=engine, processes=processes, max_length=max_length, max_pixels=as_max_pixels(max_pixels),
        tokens_per_batch=tokens_per_batch or ScoringSettings.model_fields["tokens_per_batch"].default,
    )  # fmt: skip
    with scoring_work(output) as work:
        given = given_responses(responses, prompts, media, work, columns)
        found, sizes = {}, {}
        for name, source in models.items():
            with progress("scoring" if len(models) == 1 else f"scoring with {name}") as report:
                found[name] = score_responses(
                    source, given, work, settings=settings, system_prompt=system_prompt, report=report
                )
            label = "" if len(models) == 1 else f"{name}: "
            if lost := left_out(found[name].quarantine):
                total = int(found[name].summary["responses"])
                note(label + lost.in_words(total, "responses", "--max-length", max_length))
            sizes[name] = label + image_size_line(found[name].summary)
        first = next(iter(found.values()))
        made = None
        if len(models) > 1:
            by_model = {name: scores.by_id() for name, scores in found.items()}
            made = several_scores(given.names_and_ids()[1], by_model, ensemble or "mean", scales)
            faults, counts = write_several(given, found, made, output)
        elif given.file is None:
            write_parquet(first.table, output)
            reasons = first.faults().items()
            faults = [f"{name}: {reason} ({detail})" for name, (reason, detail) in reasons if reason != TOO_LONG]
            counts = {"responses": first.summary["responses"], "scored": first.summary["scored"]}
        else:
            faults, counts = write_scores(given.file, first, output)
    written = ("scores",) if made is None else ("scores", "spread", "scores_by_model")
    if given.file is not None and (replaced := replaced_keys(given.file, output, *written, sides=True)):
        note(replaced)
    for fault in faults:
        note(f"not scored: {fault}")
    result: dict[str, Any] = {"output": str(output), **counts}
    lines = [f"{output}: {counts['scored']} of {counts['responses']} responses scored", *sizes.values()]
    if made is None:
        result |= {key: first.summary[key] for key in ("max_pixels", "trained_max_pixels")}
    else:
        result |= {"models": list(models), "ensemble": made.rule, "scales": scales, "spread": made.mean_spread}
        result |= {"prompts_compared": made.compared, "prompts_unsure": made.unsure}
        lines.append(
            f"combined: the {'mean' if made.rule == 'mean' else 'minimum'} of the models' standardised scores; "
            f"they are {made.mean_spread:.3g} apart on average"
        )
        lines.append(
            f"unsure: for {made.unsure} of {made.compared} prompts the models are further apart than the best response "
            "is from another one"
        )
    show(result, lines, as_json=as_json)


def serve(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Checkpoint folder, model folder, Hub id, or `demo`.")],
) -> None:
    """Serve a model over HTTP with vLLM: a reward model for scores, any other as a chat endpoint (a judge).

    Whatever follows MODEL is passed to `vllm serve`, such as --host 127.0.0.1 --port 8000.
    """
    if model.startswith("-"):
        raise typer.BadParameter(f"MODEL comes first, then the options of `vllm serve`; found {model}")
    sys.argv[1:] = [model, *context.args]
    runpy.run_module(_SERVER, run_name="__main__", alter_sys=True)


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="Folder or Hub id of a reward model: whole weights, or an adapter (LoRA)."
        ),
    ],
    destination: Annotated[Path, typer.Argument(metavar="DESTINATION", help="Folder to make.")],
    base_model: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder or Hub id of the model that an adapter is merged with.",
            show_default="the one that adapter_config.json names",
        ),
    ] = None,
    system_prompt: SystemPrompt = None,
    max_pixels: Annotated[
        int | None,
        typer.Option(
            metavar="PIXELS",
            min=1024,
            help="Pixels per image that it was trained with.",
            show_default="those of its image processor",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a reward model of another trainer (LLaMA-Factory, TRL, ms-swift) in our checkpoint layout.

    An adapter is merged with its base model. vLLM serves what is written.
    """
    from dt2it_pipeline.reward.foreign import import_checkpoint

    found = import_checkpoint(
        source, destination, base_model=base_model, system_prompt=system_prompt, max_pixels=max_pixels
    )
    bias = f"{found.dropped_bias:.6g}, dropped: the original's scores are these plus {found.dropped_bias:.6g}"
    made = shlex.quote(str(destination.absolute()))  # absolute, since `demo` alone would be the model of that name
    lines = [
        f"source: {source}: {found.layout}",
        *([f"base model: {found.base_model}, merged with the adapter"] if found.base_model is not None else []),
        f"head: {found.head}",
        *([f"bias: {bias}"] if found.dropped_bias else []),
        *([f"inputs: {_as_recorded(found.record)}"] if found.record else []),
        *([_NO_SYSTEM_TURN] if found.system_unknown else []),
        f"written: {destination}",
        "next, serve it, or benchmark it (data.json and images: rows and images of VL-RewardBench):",
        f"    dt2it serve {made} --port 8000",
        f"    dt2it benchmark {made} --benchmark vl_rewardbench --rows data.json --media images --output out",
    ]
    show({"checkpoint": str(destination), "source": source, **asdict(found)}, lines, as_json=as_json)


_NO_SYSTEM_TURN = (
    "system turn: not known, since no file names it, so that the chat template's own, if it has one, stays; with the "
    "wrong one scores are others: give the training's by --system-prompt, or '' for none"
)


def _as_recorded(record: Mapping[str, Any]) -> str:
    """What ms-swift's args.json says of inputs, in words; options of the command count more."""
    system = "no system turn"
    if said := record.get("system_prompt", ""):
        system = f"system turn {said!r} where there is none"
    elif "system_prompt" not in record:
        system = "its template's system turn, which is not known"
    limits = (
        f", images of {record['min_pixels']:,} to {record['max_pixels']:,} pixels" if "max_pixels" in record else ""
    )
    return f"as ms-swift's args.json says, less what was given here: {system}{limits}"
