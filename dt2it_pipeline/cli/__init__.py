"""The one command `dt2it`: `app` gathers the commands of the modules beside this one.

What belongs here: arguments, options, and what a person or a program reads of the result. What does not: any work;
every command calls a function of a stage package. Nothing here imports torch, transformers, vLLM, dagster or pandas
before its command runs, so that `dt2it --help` answers at once.
"""

from __future__ import annotations

import os
from typing import Annotated

import typer

from dt2it_pipeline.cli import (
    best_of,
    curation,
    doctor,
    measure,
    models,
    pipeline,
    project,
    report,
    review,
)
from dt2it_pipeline.cli.terminal import Commands
from dt2it_pipeline.engines.lean_processes import search_rarely

app = typer.Typer(
    name="dt2it",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"dt2it {version('dt2it-pipeline')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where in the code an error comes from.")] = False,
) -> None:
    """Multimodal reward models from noisy preference data."""


# In the order in which `dt2it --help` lists them.
for _module in (project, doctor, pipeline, models, best_of, measure, report, curation, review):
    _module.register(app)


def main() -> None:
    """Entry point of the console script."""
    # Read when torch is loaded. Threads that wait for each other would spin, and on busy cores for most of the time.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    search_rarely()
    app(prog_name="dt2it")
