"""Commands that run the pipeline: `demo`, `run`, `ui`.

They start Dagster's own command line in a child process, so that a run is the same whoever starts it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from dt2it_pipeline.cli.options import (
    ARTIFACTS,
    CHOOSE_RECIPE,
    Home,
    RecipeFile,
    home_folder,
    listening_socket,
    no_project,
    recipe_in_words,
)
from dt2it_pipeline.cli.terminal import CommandError, is_interactive, note, show_markdown
from dt2it_pipeline.observe.logs import wants_json

PANEL = "Run the pipeline"
_DEFINITIONS = "dt2it_pipeline.definitions"
# A line of a run that is for people begins with the time and the step; what follows `…` is progress within the step.
_LINE = re.compile(r"\d\d:\d\d:\d\d  (?P<step>\S+) +(?P<text>.*)")
_PROGRESS = "… "
_REMEMBERED = 40  # lines that are not shown, and are when a run fails
# Notices of others' code that nobody here can act on: of Dagster's command line, and of torch about torch.
_WARNINGS = "ignore:Function,ignore::FutureWarning"


class Job(StrEnum):
    """The jobs of the pipeline."""

    construct = "construct"
    round = "round"
    benchmark = "benchmark"
    export = "export"


_PARTITIONED = (Job.round, Job.export)


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(rich_help_panel=PANEL)(demo)
    app.command(rich_help_panel=PANEL)(run)
    app.command(rich_help_panel=PANEL)(ui)


def demo(
    home: Home = None,
    rounds: Annotated[
        int, typer.Option(metavar="N", min=1, help="Rounds to run: 0 to N - 1. Each takes about five minutes.")
    ] = 2,
    verbose: Annotated[bool, typer.Option("--verbose", help="Print everything that runs print.")] = False,
) -> None:
    """Run the whole method on a small world, without a GPU, and print the report."""
    from dt2it_pipeline.config.recipe import DEFAULT_RECIPE, load_recipe

    recipe = load_recipe(DEFAULT_RECIPE)
    if rounds > recipe.rounds:
        raise CommandError(f"the demo has {recipe.rounds} rounds; --rounds {rounds} is too many")
    folder = home_folder(home)
    environment = _environment(folder, Path(DEFAULT_RECIPE)) | {"HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "1")}
    _execute(Job.construct, environment, verbose=verbose)
    for number in range(rounds):
        _execute(Job.round, environment, number, verbose=verbose)
    from dt2it_pipeline.evaluate.report.markdown import without_suspects

    show_markdown(without_suspects((folder / "report.md").read_text(encoding="utf-8")))
    typer.echo(f"Report, with figures and the most suspicious pairs: {folder / 'report.html'}")


def run(
    job: Annotated[
        Job,
        typer.Argument(
            metavar="JOB",
            help="construct: sources and D0. round: train, score, curate and benchmark. benchmark: any checkpoint on "
            "the recipe's benchmarks. export: a round's curated pairs in every format.",
        ),
    ],
    number: Annotated[
        int | None, typer.Option("--round", metavar="K", min=0, help="Round, for the jobs round and export.")
    ] = None,
    recipe: RecipeFile = None,
    home: Home = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Checkpoint folder, Hub id or server URL, for the job benchmark."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Dagster run configuration (YAML), as `dagster job execute -c`.")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Print everything that the run prints.")] = False,
) -> None:
    """Run a job of the recipe, as `dagster job execute` does; finished stages are used again."""
    from dt2it_pipeline.config.recipe import load_recipe
    from dt2it_pipeline.storage.table_files import no_file

    if (job in _PARTITIONED) != (number is not None):
        wanted = "needs --round" if job in _PARTITIONED else "takes no --round"
        raise typer.BadParameter(f"the job {job} {wanted}")
    if model is not None and (job is not Job.benchmark or config is not None):
        raise typer.BadParameter("--model is for the job benchmark, without --config")
    if job is Job.benchmark and model is None and config is None:
        raise typer.BadParameter("the job benchmark needs --model (or --config)")
    if config is not None and not config.is_file():
        raise CommandError(no_file(config))
    chosen = None if recipe is None else recipe.resolve() if recipe.is_file() else recipe
    _require_choice(chosen)
    bound = load_recipe(chosen).rounds
    if number is not None and number >= bound:
        raise CommandError(
            f"there is no round {number}: the recipe's `rounds` is {bound}, so rounds are 0 to {bound - 1}"
        )
    folder = home_folder(home).absolute()
    note(f"{recipe_in_words(chosen)}, artifact home {folder}")
    with _run_configuration(model, config) as file:
        _execute(job, _environment(folder, chosen), number, file, verbose=verbose)


def ui(
    recipe: RecipeFile = None,
    home: Home = None,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="PORT", min=1, max=65_535, help="Port to listen on.")] = 3000,
    without_login: Annotated[
        bool,
        typer.Option("--without-login", help="Listen on any --host, although the UI asks nobody for a password."),
    ] = False,
) -> None:
    """Open the web UI (Dagster) on what has been run; end it with Ctrl-C."""
    from dt2it_pipeline.config.credentials import is_loopback
    from dt2it_pipeline.config.recipe import load_recipe

    if not (is_loopback(host) or without_login):
        raise CommandError(
            f"--host {host} would let anybody who reaches that address start runs: Dagster's UI has no login. Forward "
            f"the port instead (`ssh -L {port}:localhost:{port} SERVER`), or put a proxy with a login in front of "
            "127.0.0.1. Where the network itself lets nobody else in, add --without-login"
        )
    chosen = None if recipe is None else recipe.resolve() if recipe.is_file() else recipe
    load_recipe(chosen)  # else the server would start, and show the fault in place of the assets
    folder = home_folder(home).absolute()
    if not (folder / ARTIFACTS).is_dir():  # else somebody wants to see what `dt2it demo` has made here
        _require_choice(chosen)
    listening_socket(host, port).close()  # else Dagster's daemons would go on without the server
    note(f"{recipe_in_words(chosen)}, artifact home {folder}")
    environment = _environment(folder, chosen)
    command = [sys.executable, "-m", "dagster", "dev", "-m", _DEFINITIONS, "--host", host, "--port", str(port)]
    os.execve(sys.executable, command, environment)


def _require_choice(recipe: Path | None) -> None:
    """End the command where nobody chose a recipe: it would run the demo, in the folder where the package lies."""
    from dt2it_pipeline.config.recipe import is_chosen

    if not is_chosen(recipe):
        raise CommandError(f"no recipe is chosen: {no_project()}. {CHOOSE_RECIPE}")


def _environment(home: Path, recipe: Path | None) -> dict[str, str]:
    """Variables of a run: which recipe, which artifact home, and where Dagster's settings lie.

    Where no project has these, the home gets those of a project: Dagster's own would send telemetry, and let several
    steps take the GPU.

    Raises:
        RunRecordsError: a database of Dagster's in the home cannot be used.
    """
    from dt2it_pipeline.cli.new_project import DAGSTER_YAML
    from dt2it_pipeline.storage.atomic import replace_text
    from dt2it_pipeline.storage.home.run_records import require_usable

    home = home.absolute()
    home.mkdir(parents=True, exist_ok=True)
    if _dagster_home(home) == home and not (home / "dagster.yaml").exists():
        replace_text(home / "dagster.yaml", DAGSTER_YAML)
    environment = dict(os.environ) | {"DT2IT_HOME": str(home)}
    if recipe is not None:
        environment["DT2IT_RECIPE"] = str(recipe)
    environment["DAGSTER_HOME"] = str(_dagster_home(home))
    settings = Path(environment["DAGSTER_HOME"]) / "dagster.yaml"
    if not settings.is_file():  # of a folder that DAGSTER_HOME names
        environment.setdefault("DAGSTER_DISABLE_TELEMETRY", "1")
    require_usable(home)
    _require_storage(settings, environment)
    environment.setdefault("PYTHONWARNINGS", _WARNINGS)
    # Every stage starts programs of its own. Where Python may not keep what it compiles, each of them would compile
    # torch, transformers and vLLM anew: 12 s of processor time a start.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return environment


def use_home(home: Path) -> None:
    """Let this process look at the instance and the code location that a run with this artifact home would use."""
    os.environ["DT2IT_HOME"] = str(home.absolute())
    os.environ["DAGSTER_HOME"] = str(_dagster_home(home.absolute()))


def _require_storage(file: Path, environment: Mapping[str, str]) -> None:
    """End the command where Dagster's settings ask for variables or a package that are not there.

    Dagster itself answers with a traceback for each variable.
    """
    if not file.is_file():
        return
    settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    own = Path(".env")  # which Dagster reads, too
    text = own.read_text(encoding="utf-8") if own.is_file() else ""
    given = {*environment, *re.findall(r"^(?:export +)?(\w+)=", text, re.M)}
    if missing := sorted(set(_variables(settings)) - given):
        raise CommandError(f"{file} takes variables that are not set: {', '.join(missing)}; export them")
    storage = settings.get("storage") if isinstance(settings, dict) else None
    if isinstance(storage, dict) and "postgres" in storage and find_spec("dagster_postgres") is None:
        raise CommandError(
            f"{file} keeps runs in PostgreSQL, and dagster-postgres is not installed: the extra `postgres`"
        )


def _variables(settings: Any) -> Iterator[str]:
    """Names of the variables that Dagster's settings take: `env: NAME`, at any depth."""
    for key, value in settings.items() if isinstance(settings, dict) else ():
        if key == "env" and isinstance(value, str):
            yield value
        else:
            yield from _variables(value)


def _dagster_home(home: Path) -> Path:
    """Folder of dagster.yaml: DAGSTER_HOME, else the working directory or the project, else the artifact home."""
    from dt2it_pipeline.config.paths import project_root

    if given := os.environ.get("DAGSTER_HOME"):
        return Path(given).absolute()
    return next((place for place in (Path.cwd(), project_root()) if (place / "dagster.yaml").is_file()), home)


@contextlib.contextmanager
def _run_configuration(model: str | None, config: Path | None) -> Iterator[Path | None]:
    """The file of a run's configuration: the one that is given, or one that names the model."""
    if model is None:
        yield config
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.yaml"
        file.write_text(json.dumps({"ops": {"checkpoint_scores": {"config": {"model": model}}}}), encoding="utf-8")
        yield file


def _execute(
    job: Job, environment: Mapping[str, str], number: int | None = None, config: Path | None = None, *, verbose: bool
) -> None:
    """Run a job in a child process and print its lines; ends the command where the run fails."""
    command = [sys.executable, "-m", "dagster", "job", "execute", "-m", _DEFINITIONS, "-j", str(job)]
    if number is not None:
        command += ["--tags", json.dumps({"dagster/partition": str(number)})]
    if config is not None:
        command += ["-c", str(config.absolute())]
    note(f"dt2it run {job}" + ("" if number is None else f" --round {number}"))
    code = _follow(command, environment, verbose=verbose)
    if code:
        raise CommandError(
            f"the job {job} failed (exit code {code}); its last lines say why, and `dt2it ui` has all of its output"
        )


def _follow(command: Sequence[str], environment: Mapping[str, str], *, verbose: bool) -> int:
    """Run a command and print those of its lines that are for people; returns its exit code.

    Progress within a step moves on one line of a terminal, and is left out elsewhere. What programs print beside it is
    left out, too, and kept by Dagster; where the run fails without a reason, the last of it follows. Lines that are
    JSON objects already pass as they are.
    """
    hidden: deque[str] = deque(maxlen=_REMEMBERED)
    shown = explained = False
    started: list[subprocess.Popen[str]] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(_ending_together(started))
        status: Any = None
        if is_interactive() and not verbose:
            from rich.console import Console

            status = stack.enter_context(Console(stderr=True).status("starting"))
        process = stack.enter_context(
            subprocess.Popen(
                command,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                encoding="utf-8",
                errors="replace",
            )
        )
        started.append(process)
        assert process.stdout is not None
        for line in process.stdout:
            line = line.rstrip("\n")
            if wants_json() and line.startswith("{"):
                typer.echo(line, err=True)
                explained = True
                continue
            found = _LINE.match(line)
            moving = found is not None and found["text"].startswith(_PROGRESS)
            if found is not None and status is not None:
                status.update(f"{found['step']}: {found['text'].removeprefix(_PROGRESS)}")
            goes_on = shown and line.startswith("  ") and bool(line.strip())
            shown = verbose or (found is not None and not moving) or line.startswith("error: ") or goes_on
            explained |= shown and ("ERROR" in line or line.startswith("error: "))
            if shown and status is not None:
                status.console.print(line, markup=False, highlight=False, soft_wrap=True)  # above the moving line
            elif shown:
                note(line)
            elif not moving and line.strip():
                hidden.append(line)
    if process.returncode and hidden and not explained:
        note("\n".join(["what was printed beside:", *hidden]))
    return process.returncode


@contextlib.contextmanager
def _ending_together(started: Sequence[subprocess.Popen[str]]) -> Iterator[None]:
    """Hand what asks this process to end, such as `timeout` or a scheduler, on to the one that it has started.

    It ends in the same way behind the block, which is to wait for that process.
    """
    asked: list[int] = []

    def hand_on(number: int, _: object) -> None:
        asked.append(number)
        if not started:
            raise SystemExit(128 + number)
        started[0].send_signal(number)

    # One that is ignored stays so: that is what `nohup` is for.
    numbers = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) != signal.SIG_IGN]
    before = {number: signal.signal(number, hand_on) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        os.kill(os.getpid(), asked[0])
