"""The one command `dt2it`: `app` gathers the commands of the modules beside this one.

What belongs here: arguments, options, and what a person or a program reads of the result. What does not: any work;
every command calls a function of a stage package. Nothing here imports torch, transformers, vLLM or dagster before its
command runs, so that `dt2it --help` answers at once.
"""

from __future__ import annotations

import typer

from dt2it_pipeline.cli import project

app = typer.Typer(name="dt2it", no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
project.register(app)


def main() -> None:
    """Entry point of the console script."""
    app()
