"""The command `report`: the last report of a run, or several runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dt2it_pipeline.cli.measure import PANEL
from dt2it_pipeline.cli.options import home_folder
from dt2it_pipeline.cli.terminal import CommandError, note, show_markdown

_SUFFIXES = (".html", ".md")


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(rich_help_panel=PANEL)(report)


def report(
    homes: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[HOME]...",
            help="Artifact homes of finished runs; for one, its project will do.",
            show_default="DT2IT_HOME, else data/ in the project",
        ),
    ] = None,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Put two or more runs side by side: recipes, labels, benchmarks, style and cost.",
        ),
    ] = False,
    brief: Annotated[bool, typer.Option("--brief", help="Without the most suspicious pairs.")] = False,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File to write, .html or .md, in place of printing Markdown."),
    ] = None,
) -> None:
    """Print a run's report, or compare several runs."""
    if output is not None and output.suffix not in _SUFFIXES:
        raise typer.BadParameter(f"--output {output}: the name must end in .html or .md")
    html = output is not None and output.suffix == ".html"
    if brief and (html or compare):
        raise typer.BadParameter("--brief: for the report of one run in Markdown")
    given = homes or []
    if compare:
        from dt2it_pipeline.evaluate.report.compare import compared, compared_html, compared_markdown, read_runs

        tables = compared(read_runs(given))
        text = compared_html(tables) if html else compared_markdown(tables)
    else:
        if len(given) > 1:
            raise typer.BadParameter("one HOME is read at a time; add --compare to put several side by side")
        folder = home_folder(given[0] if given else None)
        file = folder / ("report.html" if html else "report.md")
        if not file.is_file() and (folder / "data" / file.name).is_file():  # a project with its usual artifact home
            file = folder / "data" / file.name
        try:
            text = file.read_text(encoding="utf-8")
        except OSError as error:
            advice = "run a round first (`dt2it run round --round 0`), or name the artifact home"
            raise CommandError(
                f"neither {folder} nor its data/ has a {file.name} ({error.strerror}); {advice}"
            ) from error
        except UnicodeDecodeError as error:
            advice = "remove it, and run the report's step again (`dt2it run round`)"
            raise CommandError(f"{file} is damaged: it is not UTF-8 ({error}); {advice}") from error
    if brief:
        from dt2it_pipeline.evaluate.report.markdown import without_suspects

        text = without_suspects(text)
    if output is None:
        show_markdown(text)
        return
    from dt2it_pipeline.storage.atomic import replace_text

    replace_text(output, text)
    note(f"wrote {output}")
