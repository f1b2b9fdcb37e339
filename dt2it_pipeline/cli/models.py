"""Commands on reward models: `train`, `score`, `serve`, `convert`."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import runpy
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dt2it_pipeline.cli.options import Json, MaxLength, MaxPixelsOption, MediaRoot, RecipeFile, as_max_pixels
from dt2it_pipeline.cli.terminal import CommandError, Report, note, progress, show

if TYPE_CHECKING:
    import pyarrow as pa

    from dt2it_pipeline.ingest.provenance import Provenance
    from dt2it_pipeline.reward.scoring.response_files import ResponseFile
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

    chosen = load_recipe(recipe.resolve() if recipe is not None and recipe.is_file() else recipe)
    settings = chosen.training if processes is None else chosen.training.model_copy(update={"processes": processes})
    if output.exists():
        raise CommandError(f"{output} exists already; name a new folder")
    for file in (pairs, prompts):
        if not file.is_file():
            raise CommandError(f"there is no file {file}")
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
    with progress("training", "step", "steps") as report:
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
    from dt2it_pipeline.engines.launch.deepspeed_launcher import rank_environment
    from dt2it_pipeline.engines.launch.launcher import JobFailed, Resources
    from dt2it_pipeline.engines.launch.local_launcher import LocalLauncher

    log, processes = work / "training.log", job.settings.processes
    ranks = Resources(processes, hostfile=hostfile_path(job.settings), environment=rank_environment(processes))
    with log.open("w", encoding="utf-8") as kept:

        def read(line: str) -> None:
            kept.write(line)
            if state := _state(line):
                report(state)

        try:
            return LocalLauncher(on_line=read).launch(job, work=work, resources=ranks)
        except JobFailed as error:
            raise CommandError(f"training failed: {error}. All that it printed is in {log}") from None


def _state(line: str) -> dict[str, Any]:
    """What a line of progress says (`step=3 steps=10 loss=0.6`), nothing where it is another line."""
    words = line.split()
    found = [_REPORTED.fullmatch(word) for word in words]
    if not words or not all(found):
        return {}
    state: dict[str, Any] = {}
    for match in found:
        assert match is not None
        with contextlib.suppress(ValueError):
            state[match[1]] = int(match[2]) if match[2].isdigit() else float(match[2])
    return state


def score(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Checkpoint folder of ours or of another trainer, Hub id, or URL of a pooling server.",
        ),
    ],
    responses: Annotated[
        Path,
        typer.Argument(
            metavar="RESPONSES",
            help="JSON Lines, one object per line: `responses`, `prompt` or `turns`, and, where there are any, "
            "`system`, `images`, `videos`, `id`. Or a Parquet table of kind `responses`, with --prompts and --media.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help=".parquet: one row per response with its score. .jsonl: the lines as given, each with `scores`.",
        ),
    ],
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Parquet table of kind `prompts`, for a table of responses.")
    ] = None,
    media: MediaRoot = None,
    engine: Annotated[
        Literal["transformers", "vllm"], typer.Option(help="Who computes: our own model, or vLLM.")
    ] = "transformers",
    processes: Annotated[int, typer.Option(metavar="N", min=1, max=1024, help="Scorers on this machine.")] = 1,
    max_length: MaxLength = None,
    max_pixels: MaxPixelsOption = "trained",
    system_prompt: SystemPrompt = None,
    as_json: Json = False,
) -> None:
    """Score responses with a reward model; higher is better, among responses to one prompt.

    What a killed call has scored is kept in OUTPUT.work, and is not scored again by the same call.
    """
    from dt2it_pipeline.config.sections.scoring import ScoringSettings
    from dt2it_pipeline.evaluate.benchmarks.model_scores import BenchmarkScoreJob, is_url
    from dt2it_pipeline.evaluate.benchmarks.model_scores import run as score_job
    from dt2it_pipeline.reward.scoring.image_size import image_size_line
    from dt2it_pipeline.reward.scoring.response_files import read_response_file
    from dt2it_pipeline.reward.too_long import TOO_LONG, left_out
    from dt2it_pipeline.storage.artifacts import model_digest
    from dt2it_pipeline.storage.atomic import read_parquet, write_parquet
    from dt2it_pipeline.storage.content_ids import content_hash

    tables = responses.suffix == ".parquet"
    if output.suffix not in (".parquet", ".jsonl") or (tables and output.suffix == ".jsonl"):
        raise typer.BadParameter(f"--output {output}: name a .parquet file" + ("" if tables else " or a .jsonl file"))
    if output.is_dir():
        raise typer.BadParameter(f"--output {output} is a folder; name a file")
    if tables and (prompts is None or media is None):
        raise typer.BadParameter("a table of responses needs --prompts and --media")
    settings = ScoringSettings(
        engine=engine, processes=processes, max_length=max_length, max_pixels=as_max_pixels(max_pixels)
    )
    work = output.with_name(f"{output.name}.work")
    read: ResponseFile | None = None
    store = media
    if not tables:
        store = work / "media"
        read = read_response_file(responses, media or responses.absolute().parent, store)
        prompts, responses = work / "prompts.parquet", work / "responses.parquet"
        write_parquet(read.prompts, prompts)
        write_parquet(read.responses, responses)
    # What a killed call has scored counts for the same model, settings and responses alone.
    identity = f"{model} in process {os.getpid()}" if is_url(model) else model_digest(model)
    tables_read = [hashlib.sha256(Path(str(file)).read_bytes()).hexdigest() for file in (prompts, responses)]
    key = content_hash(identity, settings.model_dump(mode="json"), system_prompt, tables_read)[:12]
    job = BenchmarkScoreJob(
        model=model,
        prompts=Path(str(prompts)),
        responses=responses,
        media_root=Path(str(store)),
        output=work / "scores.parquet",
        work=work / key,
        voter=model,
        settings=settings,
        system_prompt=system_prompt,
    )
    with progress("scoring", "responses", "responses_total") as report:
        summary = score_job(job, report)
    scored = read_parquet(work / "scores.parquet", "scores")
    aside = read_parquet(work / "scores.quarantine.parquet", "quarantine")
    if read is None:
        write_parquet(scored, output)
        faults = [
            f"{row['row_id']}: {row['reason']} ({row['detail']})"
            for row in aside.to_pylist()
            if row["reason"] != TOO_LONG
        ]
        counts = {"responses": summary["responses"], "scored": summary["scored"]}
    else:
        faults, counts = _write_scores(read, scored, aside, output)
    shutil.rmtree(work)
    for fault in faults:
        note(f"not scored: {fault}")
    if lost := left_out(aside):
        note(lost.in_words(int(summary["responses"]), "responses", "--max-length", max_length))
    line = f"{output}: {counts['scored']} of {counts['responses']} responses scored"
    size = {key: summary[key] for key in ("max_pixels", "trained_max_pixels")}
    show({"output": str(output), **counts, **size}, [line, image_size_line(summary)], as_json=as_json)


def _write_scores(
    read: ResponseFile, scored: pa.Table, aside: pa.Table, output: Path
) -> tuple[list[str], dict[str, int]]:
    """Write the scores of a file of responses; returns what was not scored and why, and the counts."""
    import pandas as pd

    from dt2it_pipeline.reward.too_long import TOO_LONG
    from dt2it_pipeline.storage.atomic import replace_text, write_parquet

    scores = dict(zip(scored["response_id"].to_pylist(), scored["score"].to_pylist(), strict=True))
    reasons = {row["row_id"]: (row["reason"], row["detail"]) for row in aside.to_pylist()}
    columns = ("row_id", "place", "response_id", "score", "reason", "detail")
    lines: list[dict[str, Any]] = []
    rows: list[tuple[Any, ...]] = []
    faults: list[str] = []
    for number, (name, own) in enumerate(zip(read.names, read.ids, strict=True)):
        for place, key in enumerate(own):
            reason, detail = reasons.get(key, ("", ""))
            rows.append((name, place, key, scores.get(key), reason, detail))
            if key not in scores and reason != TOO_LONG:  # those are counted in one line
                faults.append(f"{name}, response {place}: {reason} ({detail})")
        if number in read.faults:
            reason, detail = read.faults[number]
            rows.append((name, None, None, None, reason, detail))
            faults.append(f"{name}: {reason} ({detail})")
        lines.append({**read.rows[number], "scores": [scores.get(key) for key in own]})
    if output.suffix == ".jsonl":
        output.parent.mkdir(parents=True, exist_ok=True)
        replace_text(output, "".join(json.dumps(line, ensure_ascii=True) + "\n" for line in lines))
    else:
        types = {"place": "Int64", "score": "Float32", "response_id": "str", "detail": "str", "reason": "str"}
        write_parquet(pd.DataFrame(rows, columns=list(columns)).astype(types), output)
    total = sum(map(len, read.ids))
    done = sum(key in scores for own in read.ids for key in own)
    return faults, {"responses": total, "scored": done, "rows": len(read.rows), "rows_quarantined": len(read.faults)}


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
    from dt2it_pipeline.reward.modeling.foreign import import_checkpoint

    offset = import_checkpoint(
        source, destination, base_model=base_model, system_prompt=system_prompt, max_pixels=max_pixels
    )
    line = f"{destination}: written" + (f"; the original's scores are these plus {offset:.6g}" if offset else "")
    show({"checkpoint": str(destination), "dropped_bias": offset}, [line], as_json=as_json)
