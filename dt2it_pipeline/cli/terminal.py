"""How every command speaks: lines or JSON on standard output; progress, notes and errors on standard error.

What belongs here: the terminal and the exit code. What does not: any command, and any work.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import logging
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from dt2it_pipeline.errors import UserError, naming_missing_engines
from dt2it_pipeline.observe.logs import configure_logs, wants_json
from dt2it_pipeline.observe.progress import Report, in_words, now_and_then

_logger = logging.getLogger(__name__)
_USAGE_ERROR: Any = typer.BadParameter.__base__  # typer exports its subclass alone
# As typer words it; the first words are pydantic's.
_WRONG_CHOICE = re.compile(r"""(?:Value error, )?(?P<given>'[^']*'|"[^"]*") is not one of (?P<choices>'.*')\.?$""")
_SHARE = re.compile(r"less than or equal to (?:1|0\.\d+)$")
_PACKAGE = __name__.partition(".")[0]


def counted(number: int, one: str, many: str = "") -> str:
    """A number with its noun, such as `1 vote` or `1,200 votes`; `many` where the plural has no plain s."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


class CommandError(UserError, ValueError):
    """A command cannot go on; the message says why and what to do."""


class Group(TyperGroup):
    """Commands whose options and arguments refuse empty text: as a path it would be the folder one stands in."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As of typer. Raises typer.BadParameter where a value of the command is empty and is not plain text."""
        name, command, rest = super().resolve_command(ctx, args)
        options = {name: each for each in getattr(command, "params", ()) for name in (*each.opts, *each.secondary_opts)}
        passes_on = getattr(command, "context_settings", {}).get("ignore_unknown_options")
        end = rest.index("--") if "--" in rest and not passes_on else len(rest)  # of options
        for place, (before, given) in enumerate(zip(("", *rest), rest, strict=False)):
            option, value = before if place < end and before not in ("-", "--") else "", given
            if place < end and given.startswith("--") and "=" in given:
                option, _, value = given.partition("=")
            if value or (option.startswith("-") and option not in options):  # of a program that the command starts
                continue
            parameter = options.get(option) if option.startswith("-") else None
            if parameter is None or parameter.is_flag:
                raise typer.BadParameter(f"{name}: an argument is empty")
            if parameter.metavar != "TEXT":
                raise typer.BadParameter(f"{option} is empty: give {parameter.metavar or 'a value'}, or leave it out")
        return name, command, rest


class Commands(Group):
    """The group of all commands: errors of this package become one line, `error: ...`, and an exit code.

    1: what was asked for cannot be done. 2: it was asked for in the wrong way. With `--debug`, errors of the first kind
    keep their traceback.
    """

    def make_context(self, *given: Any, **more: Any) -> Any:
        """As of typer; wrong options of `dt2it` itself are reported as those of commands are."""
        with _errors_in_a_line(debug=False):
            return super().make_context(*given, **more)

    def invoke(self, ctx: Any) -> Any:
        """Run the command that is named."""
        with _errors_in_a_line(debug=bool(ctx.params.get("debug"))):
            configure_logs()
            return super().invoke(ctx)


@contextlib.contextmanager
def _errors_in_a_line(debug: bool) -> Iterator[None]:
    try:
        with contextlib.nullcontext() if debug else naming_missing_engines():
            yield
    except _USAGE_ERROR as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            raise
        if hasattr(error, "possibilities") and error.ctx is not None:  # of an option that there is not
            error.possibilities = _near(error.option_name, [o for each in error.ctx.command.params for o in each.opts])
        _print_error(_with_suggestion(error.format_message()))
        if error.ctx is not None:
            typer.echo(f"{error.ctx.command_path} --help shows how it is called", err=True)
        raise typer.Exit(2) from None
    except BrokenPipeError:
        raise  # whoever read the output has seen enough; typer ends quietly
    except OSError as error:
        if debug:
            raise
        _print_error(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error))
        raise typer.Exit(1) from None
    except Exception as error:
        if debug or not any(kind.__module__.partition(".")[0] == _PACKAGE for kind in type(error).__mro__):
            raise
        _print_error(str(error))
        page, _, anchor = getattr(error, "help_page", "").partition("#")
        if page and Path("docs", f"{page}.md").is_file():  # of a checkout; a project has none of these pages
            typer.echo(f"More: docs/{page}.md#{anchor}", err=True)
        raise typer.Exit(1) from None


def _near(given: str, options: Sequence[str]) -> list[str]:
    """Options that begin with what was given, else those that contain it, else those that are spelt like it.

    >>> options = ("--keep-probability", "--label-accuracy", "--seed")
    >>> _near("--keep", options), _near("--accuracy", options), _near("--sead", options)
    (['--keep-probability'], ['--label-accuracy'], ['--seed'])
    """
    starting = [option for option in options if option.startswith(given)]
    containing = [option for option in options if given.startswith("--") and given[2:] in option]
    return starting or containing or difflib.get_close_matches(given, options)


def _with_suggestion(message: str) -> str:
    """The message about a wrong choice with the nearest right one; about a share above 1, with how it is written.

    >>> _with_suggestion("Invalid value for 'JOB': Value error, 'rond' is not one of 'construct', 'round'.")
    "Invalid value for 'JOB': 'rond' is not one of 'construct', 'round'; did you mean 'round'?"
    """
    found = _WRONG_CHOICE.search(message)
    if found is None:
        return f"{message} (a share: 80% is 0.8)" if _SHARE.search(message) else message
    plain = {choice.lower(): choice for choice in re.findall(r"'([^']*)'", found["choices"])}
    close = difflib.get_close_matches(found["given"][1:-1].lower(), plain, n=1)
    end = f"; did you mean {plain[close[0]]!r}?" if close else "."
    return f"{message[: found.start()]}{found['given']} is not one of {found['choices']}{end}"


def _print_error(message: str) -> None:
    if wants_json():
        _logger.error("%s", message)
        return
    typer.secho("error: ", fg=typer.colors.RED, bold=True, err=True, nl=False)
    typer.secho(message, fg=typer.colors.RED, err=True)


def note(line: str) -> None:
    """Print a line for people alone, on standard error; where lines are to be JSON, one object."""
    if wants_json():
        _logger.info("%s", line)
        return
    typer.echo(line, err=True)


def show(result: Mapping[str, Any], lines: Iterable[str], *, as_json: bool) -> None:
    """Print a command's result on standard output: one JSON object, or lines.

    Numbers that JSON does not have (NaN, infinity) become null.
    """
    if as_json:
        typer.echo(json.dumps(_plain(result), ensure_ascii=False))
        return
    for line in lines:
        typer.echo(line)


def show_markdown(text: str) -> None:
    """Print Markdown: its tables fitted to the width of a terminal; as it is where something else reads it."""
    if not sys.stdout.isatty():
        typer.echo(text)
        return
    from rich.console import Console
    from rich.markdown import Markdown

    Console().print(Markdown(text))


def is_interactive() -> bool:
    """Whether a person watches standard error: it is a terminal that takes plain text, and not that of a CI system."""
    return sys.stderr.isatty() and not os.environ.get("CI") and not wants_json()


@contextlib.contextmanager
def progress(what: str) -> Iterator[Report]:
    """Show how far a job is: a bar with the time left on a terminal, else a plain line now and then and at the end.

    Args:
        what: what is being done, such as `scoring`.

    Yields:
        What a job hands its reports to.
    """
    if not is_interactive():
        yield now_and_then(lambda state: note(f"{what}: {in_words(state)}") if "done" in state else None, ends=True)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("time left"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)

        def report(state: Mapping[str, Any]) -> None:
            if "done" in state:
                bar.update(task, completed=float(state["done"]), total=state.get("total"))

        yield report


def _plain(value: Any) -> Any:
    """The value as JSON can hold it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):  # a scalar of NumPy
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)
