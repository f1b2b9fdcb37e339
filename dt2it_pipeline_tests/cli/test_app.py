"""The command as a whole: what it loads, what it lists, and how it ends when something is wrong."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import typer

from dt2it_pipeline.cli import app, main, terminal
from dt2it_pipeline.cli.options import named_models
from dt2it_pipeline.config.recipe import RecipeError
from dt2it_pipeline_tests.support.commands import dt2it, failing, invoke
from dt2it_pipeline_tests.support.small_install import run_without_engines

COMMANDS = {
    "demo", "run", "ui", "train", "score", "serve", "convert", "benchmark", "style", "clean", "outcomes", "export",
    "review",
}  # fmt: skip


NO_FILE = ("folder", "file.csv/x.parquet", "none.parquet")
TAKES_A_FILE = (
    "clean PATH --output out",
    "clean PATH --policy paper --scores PATH --output out",
    "clean file.csv --scores PATH --output out",
    "clean file.csv --audit PATH --output out",
    "review sample --pairs PATH --output out",
    "score file.parquet --prompts PATH --media folder --model folder --output out.parquet",
    "calibrate folder --pairs PATH --prompts PATH --media folder",
    "card folder --figures PATH",
    "run construct --recipe demo --config PATH",
    "style PATH",  # which takes a folder, too
)


def every_command() -> list[tuple[str, typer.core.TyperCommand]]:
    found = []
    for name, command in typer.main.get_command(app).commands.items():
        inner = getattr(command, "commands", None)
        found += [(f"{name} {part}", each) for part, each in inner.items()] if inner else [(name, command)]
    return found


def test_help_loads_nothing_heavy_and_lists_every_command() -> None:
    check = (
        "import sys\n"
        "from dt2it_pipeline.cli import main\n"
        "sys.argv = ['dt2it', '--help']\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as end:\n"
        "    assert not end.code\n"
        "heavy = {'torch', 'transformers', 'vllm', 'dagster', 'pandas', 'numpy', 'pyarrow', 'pydantic', 'sklearn'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", check], check=True, capture_output=True, text=True)
    words = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("│ ") and len(line.split()) > 2}
    assert words >= COMMANDS
    assert {"Run", "Reward", "Measure", "Preference"} <= {
        line.split()[1] for line in done.stdout.splitlines() if line.startswith("╭─ ")
    }


@pytest.mark.parametrize(("before", "then"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_of_a_command_wait_without_spinning(before: str | None, then: str) -> None:
    """OpenMP reads the variable when torch is loaded, which is behind `main`."""
    check = (
        "import os, sys\n"
        "from dt2it_pipeline.cli import main\n"
        "sys.argv = ['dt2it', '--version']\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    print(os.environ.get('OMP_WAIT_POLICY'))\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    environment |= {} if before is None else {"OMP_WAIT_POLICY": before}
    done = subprocess.run([sys.executable, "-c", check], env=environment, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == then


def test_every_option_and_argument_has_a_text() -> None:
    for name, command in every_command():
        assert command.help, name
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"{name}: {parameter.name}"


@pytest.mark.parametrize("name", [name for name, _ in every_command()])
def test_every_command_has_a_help_page(name: str) -> None:
    assert f"Usage: dt2it {name}" in dt2it(*name.split(), "--help")


def test_the_version_is_that_of_the_package() -> None:
    assert dt2it("--version") == f"dt2it {version('dt2it-pipeline')}\n"


@pytest.mark.parametrize(
    "call",
    [
        "score lines.jsonl --model model --output out.jsonl",
        "best-of lines.jsonl --model model --output out.jsonl",
        "best-of lines.jsonl --model model --output out.jsonl --sample demo",
        "serve model",
        "convert model out",
    ],
)
def test_a_command_whose_engine_is_not_installed_says_what_installs_it(call: str, tmp_path: Path) -> None:
    (tmp_path / "lines.jsonl").write_text('{"prompt": "a", "responses": ["x", "y"]}\n')
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    code = f"sys.argv = ['dt2it', *{call.split()}]\nfrom dt2it_pipeline.cli import main\nmain()"
    done = run_without_engines(code, tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["error: not installed: torch -> pip install 'dt2it-pipeline[gpu]' (or [cpu])"]


def test_a_call_that_is_wrong_ends_with_code_2_and_says_where_help_is() -> None:
    assert failing("trian", code=2).startswith("No such command 'trian'")
    assert failing("style", "file", "--colour", "red", code=2).endswith("dt2it style --help shows how it is called")
    assert failing("--colour", code=2).startswith("No such option: --colour")
    for given, meant in (("--keep", "--keep-probability"), ("--accuracy", "--label-accuracy"), ("--outpt", "--output")):
        message = failing("clean", "file", given, "0.8", code=2)
        assert message.splitlines()[0] == f"No such option: {given} (Possible options: {meant})"
    for option in ("--label-accuracy", "--keep-probability"):
        assert "(a share: 80% is 0.8)" in failing("clean", "file", "--output", "out", option, "80", code=2)
    assert failing("run", "constructs", code=2).startswith("Invalid value for 'JOB'")
    assert failing("run", code=2).startswith("Missing argument 'JOB'")


@pytest.mark.parametrize(
    ("call", "path"), [pair for pair in itertools.product(TAKES_A_FILE, NO_FILE) if pair != ("style PATH", "folder")]
)
def test_a_path_that_is_no_file_is_reported_in_one_form(
    call: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/reward_model.json").write_text("{}")
    (tmp_path / "file.csv").write_text("pair_id,chosen,rejected\n1,a,b\n")
    (tmp_path / "file.parquet").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    message = failing(*call.replace("PATH", path).split()).partition(";")[0]
    assert message == (f"{path} is a folder, and no file" if path == "folder" else f"there is no file {path}")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (["score", "r.jsonl", "--model", "", "--output", "o"], "--model is empty: give [NAME=]MODEL, or leave it out"),
        (["init", "new", "--data="], "--data is empty: give FILE, or leave it out"),
        (["check", "--home", ""], "--home is empty: give FOLDER, or leave it out"),
        (["review", "sample", "--pairs", "", "--output", "o"], "--pairs is empty: give FILE, or leave it out"),
        (["init", ""], "init: an argument is empty"),
        (["init", "--", ""], "init: an argument is empty"),
        (["init", "--postgres", "--", ""], "init: an argument is empty"),
        (["style", "-", "", "--output", "o"], "style: an argument is empty"),
        (["style", "--", "--output", ""], "style: an argument is empty"),
        (["serve", "--", ""], "serve: an argument is empty"),
        (["score", "--json", ""], "score: an argument is empty"),
    ],
)
def test_an_empty_value_is_not_the_current_folder(
    call: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert failing(*call, code=2).splitlines()[0] == f"Invalid value: {message}"
    assert not list(tmp_path.iterdir())


def test_an_empty_text_is_a_value(tmp_path: Path) -> None:
    call = ["score", tmp_path / "r.jsonl", "--model", "a/b", "--output", tmp_path / "o.jsonl", "--system-prompt", ""]
    assert failing(*call).startswith("there is no file ")


@pytest.mark.parametrize(
    ("given", "end"),
    [("rond", "; did you mean 'round'?"), ("Export", "; did you mean 'export'?"), ("xyz", "."), ("x's", ".")],
)
def test_a_wrong_choice_is_answered_with_the_nearest_right_one(given: str, end: str) -> None:
    (line, _) = failing("run", given, code=2).splitlines()
    assert line == f"Invalid value for 'JOB': {given!r} is not one of 'construct', 'round', 'benchmark', 'export'{end}"


def test_our_errors_are_one_line_and_others_keep_their_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raising(error: Exception) -> None:
        def fail(*_: object) -> None:
            raise error

        monkeypatch.setattr("dt2it_pipeline.config.recipe.load_recipe", fail)

    raising(RecipeError("recipe.yaml: training.epochs is wrong"))
    assert failing("run", "construct") == "recipe.yaml: training.epochs is wrong"
    assert "More: docs/troubleshooting.md#recipe" in invoke("run", "construct").stderr
    with monkeypatch.context() as elsewhere:  # a project has none of these pages
        elsewhere.chdir(tmp_path)
        elsewhere.setenv("DT2IT_RECIPE", "any")
        assert "docs/" not in invoke("run", "construct").stderr
    kept = invoke("--debug", "run", "construct")
    assert isinstance(kept.exception, RecipeError) and kept.exit_code == 1
    raising(FileNotFoundError(2, "No such file or directory", "/x"))
    assert failing("run", "construct") == "/x: No such file or directory"
    raising(KeyError("a fault of ours"))
    assert isinstance(invoke("run", "construct").exception, KeyError)


def test_main_is_the_console_script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["anything", "--version"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code and capsys.readouterr().out.startswith("dt2it ")


def test_json_has_no_numbers_that_json_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.show({"auc": float("nan"), "by": {"a": (1, float("inf"))}}, ["a line"], as_json=True)
    assert json.loads(capsys.readouterr().out) == {"auc": None, "by": {"a": [1, None]}}
    terminal.show({}, ["a line"], as_json=False)
    assert capsys.readouterr().out == "a line\n"


def test_progress_without_a_terminal_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.progress("scoring") as report:
        for done in range(1, 101):
            report({"done": done, "total": 100, "unit": "responses", "per_second": 12.3456, "seconds_left": 8.0})
        report({"validation_loss": 0.5})
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "scoring: 1 of 100 responses, 12.3 per second, 8 s left"
    assert lines[-1].startswith("scoring: 100 of 100 responses")
    assert len(lines) == 2


def test_progress_on_a_terminal_is_a_bar_with_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown = Terminal()
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", shown)
    with terminal.progress("scoring") as report:
        report({"done": 5, "total": 10, "unit": "responses"})
    assert "scoring" in shown.getvalue() and "5/10" in shown.getvalue() and "time left" in shown.getvalue()
    monkeypatch.setenv("CI", "true")
    assert not terminal.is_interactive()


def test_versions_of_one_artifact_have_names_of_their_own() -> None:
    first, second = (f"data/artifacts/reward_model/1/{letter * 32}" for letter in "ab")
    assert named_models([first, second, "org/small"]) == {
        "reward_model/1": first, "reward_model/1 bbbbbbbb": second, "small": "org/small"
    }  # fmt: skip
    assert list(named_models([f"artifacts/{'c' * 32}"])) == ["c" * 32]
    with pytest.raises(typer.BadParameter, match="the name 'small' is taken"):
        named_models(["org/small", "other/small"])
