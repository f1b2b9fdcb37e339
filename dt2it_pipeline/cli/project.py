"""Commands about a project before anything runs: `init`, `check` and `settings`."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dt2it_pipeline.cli.options import Columns, VerdictValues, assignments, verdict_values
from dt2it_pipeline.cli.terminal import note

if TYPE_CHECKING:
    from dt2it_pipeline.cli.checks.lines import Line
    from dt2it_pipeline.cli.new_project import NewProject
    from dt2it_pipeline.config.reference import Setting

PANEL = "A project"
_WIDTH = 120  # columns; no line is longer
_COLOURS = {"ok": typer.colors.GREEN, "warning": typer.colors.YELLOW, "error": typer.colors.RED}


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(rich_help_panel=PANEL)(init)
    app.command(rich_help_panel=PANEL)(check)
    app.command(rich_help_panel=PANEL)(settings)


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the project; made if there is none.")],
    data: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Your prompts, preference pairs or text-to-image preferences (JSON, JSON Lines, CSV, Parquet, an "
            "archive or a folder of these); one of them. A manifest is proposed from the first rows.",
        ),
    ] = None,
    column: Columns = None,
    verdict: VerdictValues = None,
    postgres: Annotated[
        bool, typer.Option("--postgres", help="Keep Dagster's runs in PostgreSQL, for several people or machines.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Write a project: recipe, manifests and Dagster's settings. Nothing is overwritten."""
    from dt2it_pipeline.cli.new_project import write_project

    if data is not None and len(data) > 1:
        raise typer.BadParameter(_one_file(data))
    columns, values = assignments(column, "--column"), verdict_values(verdict)
    made = write_project(folder, data[0] if data else None, columns, values, postgres=postgres)
    if as_json:
        typer.echo(json.dumps(_project(made), ensure_ascii=False))
        return
    for line in _project_lines(made):
        typer.echo(line)


def _one_file(data: list[Path]) -> str:
    """Why a project begins with one of these files, and how it gets the others."""
    second = shlex.quote(str(data[1]))
    return (
        f"--data is given {len(data)} times ({', '.join(map(str, data))}), and a project begins with one file. For "
        f"each further one: `dt2it init OTHER --data {second}`, copy its manifest from OTHER/configs/datasets into "
        "configs/datasets of this project, and add its name to `datasets` in this project's recipe"
    )


def check(
    recipe: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Recipe: a file, or a name in configs/recipes.",
            show_default="DT2IT_RECIPE, else the project's only one, else the demo's",
        ),
    ] = None,
    home: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Artifact home.", show_default="DT2IT_HOME, else data/ in the project"),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, metavar="N", help="Rows of every source that are read.")] = 50,
    call_judges: Annotated[
        bool,
        typer.Option(
            "--call-judges",
            help="Ask every judge once. One behind an endpoint may cost money, one on this machine takes time to load.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Check a recipe and all that it needs before a run: files, sources, benchmarks, models, memory, disk, the object
    store, the launcher, judges. Nothing is started.

    The exit code is 1 where a run would fail.
    """
    note("looking at files, sources, models and memory, which may take some seconds")
    from dt2it_pipeline.cli.checks.flight_check import flight_check, has_errors

    chosen = None if recipe is None else recipe.resolve() if recipe.is_file() else recipe
    lines = []
    for line in flight_check(chosen, None if home is None else home.absolute(), rows, call_judges):
        lines.append(line)
        if not as_json:
            _print_line(line)
    if as_json:
        counted = {"ok": not has_errors(lines), "lines": [dataclasses.asdict(line) for line in lines]}
        typer.echo(json.dumps(counted, ensure_ascii=False, default=str))
    else:
        counts = {level: sum(line.level == level for line in lines) for level in _COLOURS}
        verdict = "a run would fail" if counts["error"] else "ready to run"
        typer.echo(f"{verdict}: {counts['ok']} ok, {counts['warning']} warning(s), {counts['error']} error(s)")
    if has_errors(lines):
        raise typer.Exit(1)


def settings(
    key: Annotated[
        str | None,
        typer.Argument(
            metavar="KEY", help="One setting or section, such as training.lora.", show_default="all settings"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list, one object per setting.")] = False,
    schema: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Write the JSON schema of recipes to this file (- prints it) and nothing else. Editors check recipes "
            "with it: put `# yaml-language-server: $schema=FILE` in the first line of a recipe.",
        ),
    ] = None,
) -> None:
    """Print every setting of a recipe with its type, unit, range, default and description."""
    from dt2it_pipeline.config.reference import recipe_schema, section_descriptions, settings_reference

    if schema is not None:
        text = json.dumps(recipe_schema(), indent=1, ensure_ascii=False) + "\n"
        if schema == "-":
            typer.echo(text, nl=False)
        else:
            Path(schema).write_text(text, encoding="utf-8")
            typer.echo(f"wrote {schema}")
        return
    rows = settings_reference(key)
    if as_json:
        typer.echo(json.dumps([row.as_dict() for row in rows], ensure_ascii=False))
    elif sys.stdout.isatty() and not os.environ.get("CI"):
        _print_tables(rows, section_descriptions())
    else:
        for line in setting_lines(rows, section_descriptions()):
            typer.echo(line)


def setting_lines(rows: list[Setting], sections: dict[str, str], width: int = _WIDTH) -> Iterator[str]:
    """The settings as plain text: a heading per section, two or more lines per setting.

    Args:
        rows: of `settings_reference`.
        sections: of `section_descriptions`.
        width: columns; no line is longer.
    """
    section = None
    for row in rows:
        if row.section != section:
            section = row.section
            yield from ["", *_wrapped(f"[{section or 'recipe'}] {_first_line(sections.get(section, ''))}", width, "  ")]
        yield from _wrapped(f"{row.key}: {'; '.join(_facts(row))}", width, "    ")
        yield from _wrapped(f"    {row.description}", width, "    ")


def _facts(row: Setting) -> Iterator[str]:
    """What is known of a setting beside its description, in a fixed order."""
    yield row.type
    if row.unit:
        yield f"unit: {row.unit}"
    if row.range:
        yield f"range: {row.range}"
    yield "required" if row.default == "required" else f"default: {row.default}"
    if row.kinds and not row.key.endswith(".kind"):
        yield f"kinds: {', '.join(row.kinds)}"


def _print_tables(rows: list[Setting], sections: dict[str, str]) -> None:
    """A table per section, on a terminal."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(width=min(_WIDTH, shutil.get_terminal_size().columns))
    for section in dict.fromkeys(row.section for row in rows):
        own = [row for row in rows if row.section == section]
        title = f"{section or 'recipe'}: {_first_line(sections.get(section, ''))}"
        table = Table(title=escape(title), title_justify="left", show_lines=True, expand=True)
        for heading, ratio in (("setting", 3), ("type, unit, range, default", 4), ("description", 5)):
            table.add_column(heading, ratio=ratio, overflow="fold")
        for row in own:
            name = row.key.removeprefix(f"{section}.") if section else row.key
            table.add_row(escape(name), escape("\n".join(_facts(row))), escape(row.description))
        console.print(table)


def _print_line(line: Line) -> None:
    """A line of the check: its level, what was looked at, what was found, and what to do."""
    head = f"{line.level.upper():<8}"
    first, *rest = _wrapped(f"{head}{line.topic}: {line.text}", _WIDTH, " " * 8)
    typer.secho(first[:8], fg=_COLOURS[line.level], bold=True, nl=False)
    typer.echo("\n".join([first[8:], *rest]))
    if line.advice:
        typer.echo("\n".join(_wrapped(f"        -> {line.advice}", _WIDTH, " " * 11)))


def _project(made: NewProject) -> dict[str, object]:
    proposal = None if made.proposal is None else dataclasses.asdict(made.proposal)
    return {
        "folder": str(made.folder),
        "recipe": made.recipe,
        "files": list(made.files),
        "notes": list(made.notes),
        "proposal": proposal and {**proposal, "media_root": proposal["media_root"] and str(proposal["media_root"])},
    }


def _project_lines(made: NewProject) -> Iterator[str]:
    from dt2it_pipeline.ingest.rows import shown

    yield f"wrote {made.folder}:"
    yield from (f"  {file}" for file in made.files)
    found = made.proposal
    if found is not None:
        yield from _wrapped(f"columns of your file: {shown(found.found)}", _WIDTH, "  ")
        parts = [", ".join(f"{ours} = {theirs}" for ours, theirs in found.columns.items())] if found.columns else []
        mapping = "; ".join([*parts, f"by their names: {', '.join(found.same)}"] if found.same else parts)
        by = "their columns" if found.adapter == "auto" else f"adapter {found.adapter}"
        how = f"{found.kind} by {by}{f' ({mapping})' if mapping else ''}"
        yield from _wrapped(f"read as {how}: {found.usable} of the first {found.rows} rows can be used", _WIDTH, "  ")
        if found.fault:
            yield from _wrapped(f"the others: {found.fault}", _WIDTH, "  ")
        if found.others:
            yield from _wrapped(f"as many rows can be read as: {', '.join(found.others)}", _WIDTH, "  ")
    if made.notes:
        yield "what only you can say:"
        for note in made.notes:
            yield from _wrapped(f"  - {note}", _WIDTH, "    ")
    yield "next:"
    yield f"  cd {shlex.quote(str(made.folder))}"
    yield "  dt2it check"
    yield "  dt2it run construct"


def _first_line(text: str) -> str:
    return text.split("\n\n")[0].replace("\n", " ")


def _wrapped(text: str, width: int, indent: str) -> list[str]:
    """Lines of at most `width` columns; newlines of the text stay."""
    lines = []
    for n, line in enumerate(text.split("\n")):
        lines += textwrap.wrap(line, width, initial_indent=indent if n else "", subsequent_indent=indent) or [""]
    return lines
