"""`dt2it run`, `demo` and `ui`: what they start, and what of its output they print."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterInstance

from dt2it_pipeline.cli import pipeline
from dt2it_pipeline.config.paths import project_root
from dt2it_pipeline.engines.launch.ranks import free_port
from dt2it_pipeline_tests.support.commands import dt2it, failing, invoke
from dt2it_pipeline_tests.support.processes import wait_until

SMOKE = "configs/recipes/smoke.yaml"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, str], str]]:
    """Commands that are started instead of Dagster's, their variables, and the run configuration that they name."""
    calls: list[tuple[list[str], dict[str, str], str]] = []

    def follow(command: list[str], environment: dict[str, str], *, verbose: bool) -> int:
        config = Path(command[-1]).read_text() if command[-2] == "-c" else ""
        calls.append((command, environment, config))
        return 0

    monkeypatch.setattr(pipeline, "_follow", follow)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    return calls


def test_run_starts_the_job_that_dagster_would_execute(
    started: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the recipe counts from the project
    home = tmp_path / "home"
    dt2it("run", "construct", "--recipe", SMOKE, "--home", home)
    dt2it("run", "round", "--round", 1, "--recipe", SMOKE, "--home", home)
    dt2it("run", "benchmark", "--model", "a model", "--recipe", SMOKE, "--home", home)
    start = [sys.executable, "-m", "dagster", "job", "execute", "-m", "dt2it_pipeline.definitions", "-j"]
    commands = [command for command, _, _ in started]
    assert commands[0] == [*start, "construct"]
    assert commands[1] == [*start, "round", "--tags", '{"dagster/partition": "1"}']
    assert commands[2][:-1] == [*start, "benchmark", "-c"]
    assert json.loads(started[2][2]) == {"ops": {"checkpoint_scores": {"config": {"model": "a model"}}}}
    for _, environment, _ in started:
        assert environment["DT2IT_HOME"] == str(home) and home.is_dir()
        assert environment["DT2IT_RECIPE"] == SMOKE
        assert (Path(environment["DAGSTER_HOME"]) / "dagster.yaml").is_file()
        assert "PYTHONDONTWRITEBYTECODE" not in environment


def test_a_recipe_beside_the_working_directory_is_found_from_everywhere(
    started: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.yaml").write_text((project_root() / SMOKE).read_text())
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text("{}")
    dt2it("run", "export", "--round", 0, "--recipe", "mine.yaml", "--home", "home", "--config", "run.yaml")
    command, environment, _ = started[0]
    assert environment["DT2IT_RECIPE"] == str(tmp_path / "mine.yaml")
    assert (environment["DT2IT_HOME"], environment["DAGSTER_HOME"]) == (str(tmp_path / "home"), str(tmp_path))
    assert command[-2:] == ["-c", str(tmp_path / "run.yaml")]


def test_a_run_names_its_recipe_and_home_and_starts_nothing_where_no_recipe_is_chosen(
    started: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DT2IT_PROJECT", "DT2IT_RECIPE", "DT2IT_HOME"):
        monkeypatch.delenv(name, raising=False)
    dt2it("init", tmp_path / "mine")
    checkout = project_root()
    monkeypatch.chdir(tmp_path)
    words = failing("run", "construct")
    assert words.startswith(f"no recipe is chosen: neither {tmp_path} ") and "DT2IT_RECIPE=FILE" in words
    assert not started
    (tmp_path / "mine/notes").mkdir()
    monkeypatch.chdir("mine/notes")  # below a project is in it
    lines = invoke("run", "construct").stderr.splitlines()
    mine = tmp_path / "mine"
    assert lines[0] == f"recipe {mine}/configs/recipes/mine.yaml, artifact home {mine}/data"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DT2IT_RECIPE", SMOKE)
    lines = invoke("run", "construct", "--home", "home").stderr.splitlines()
    assert lines[0] == f"recipe {checkout / SMOKE}, artifact home {tmp_path / 'home'}"
    monkeypatch.delenv("DT2IT_RECIPE")
    monkeypatch.setenv("DT2IT_PROJECT", str(mine))
    dt2it("run", "construct")
    assert len(started) == 3


def test_without_a_chosen_recipe_check_is_an_error_and_so_is_ui_unless_something_was_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DT2IT_PROJECT", "DT2IT_RECIPE", "DT2IT_HOME"):
        monkeypatch.delenv(name, raising=False)
    dt2it("init", tmp_path / "mine")
    checkout = project_root()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "execve", lambda *call: None)
    checked = invoke("check", "--json")
    (line,) = json.loads(checked.stdout)["lines"]
    assert checked.exit_code == 1 and line["text"].startswith(f"none is chosen: neither {tmp_path} ")
    assert "DT2IT_RECIPE=FILE" in line["advice"]
    demo = checkout / "configs/recipes/demo.yaml"
    nobody = f"(the demo's: neither {tmp_path} nor a folder above it is a project)"
    port = ("--port", free_port())
    assert failing("ui", "--home", "home", *port).startswith(f"no recipe is chosen: neither {tmp_path} ")
    assert not (tmp_path / "home").exists()
    (tmp_path / "home/artifacts").mkdir(parents=True)  # as of `dt2it demo`
    (note,) = invoke("ui", "--home", "home", *port).stderr.splitlines()
    assert note == f"recipe {demo} {nobody}, artifact home {tmp_path / 'home'}"
    (note,) = invoke("ui", "--home", "home", "--recipe", "demo", *port).stderr.splitlines()
    assert note == f"recipe {demo}, artifact home {tmp_path / 'home'}"
    assert "cannot read recipe" in failing("ui", "--recipe", "none")
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("DT2IT_PROJECT", str(tmp_path / "empty"))
    assert "has no folder `configs`" in json.loads(invoke("check", "--json").stdout)["lines"][0]["text"]
    monkeypatch.setenv("DT2IT_PROJECT", str(tmp_path / "gone"))
    for command in (("check",), ("ui",), ("run", "construct")):
        assert f"DT2IT_PROJECT names {tmp_path / 'gone'}, and there is no such folder" in failing(*command)
    monkeypatch.delenv("DT2IT_PROJECT")
    monkeypatch.chdir("mine")
    mine = tmp_path / "mine"
    (note,) = invoke("ui", *port).stderr.splitlines()
    assert note == f"recipe {mine}/configs/recipes/mine.yaml, artifact home {mine}/data"
    assert json.loads(invoke("check", "--json").stdout)["lines"][0]["text"].endswith(
        f"; {mine}/configs/recipes/mine.yaml"
    )


def test_demo_runs_construct_and_the_rounds_and_prints_the_report(started: list[Any], tmp_path: Path) -> None:
    (tmp_path / "report.md").write_text("# the report\n")
    said = dt2it("demo", "--home", tmp_path)
    assert [command[8:] for command, _, _ in started] == [
        ["construct"],
        ["round", "--tags", '{"dagster/partition": "0"}'],
        ["round", "--tags", '{"dagster/partition": "1"}'],
    ]
    assert started[0][1]["DT2IT_RECIPE"] == "configs/recipes/demo.yaml" and started[0][1]["HF_HUB_OFFLINE"] == "1"
    assert said == f"# the report\n\nReport, with figures and the most suspicious pairs: {tmp_path / 'report.html'}\n"
    assert "is too many" in failing("demo", "--home", tmp_path, "--rounds", 9)


def test_a_project_stands_for_its_artifact_home_in_a_report(tmp_path: Path) -> None:
    words = failing("report", tmp_path)
    assert words.startswith(f"neither {tmp_path} nor its data/ has a report.md (No such file or directory)")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/report.md").write_text("# in data\n")
    assert dt2it("report", tmp_path) == "# in data\n\n"
    (tmp_path / "report.md").write_text("# here\n")
    assert dt2it("report", tmp_path) == "# here\n\n"


@pytest.mark.parametrize(("name", "options"), [("report.md", []), ("report.html", ["--output", "out.html"])])
def test_a_report_that_is_not_utf8_is_one_line(tmp_path: Path, name: str, options: list[str]) -> None:
    (tmp_path / name).write_bytes(b"# the r\xe9port\n")
    assert failing("report", tmp_path, *options).startswith(f"{tmp_path / name} is damaged: it is not UTF-8 (")


def test_outside_a_project_dagster_has_the_settings_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(os, "execve", lambda *call: given.append(call[2]))
    for name in ("DAGSTER_HOME", "DAGSTER_DISABLE_TELEMETRY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DT2IT_PROJECT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    command = ("ui", "--recipe", "demo", "--home", "home", "--port", free_port())
    dt2it(*command)
    for name in ("DAGSTER_HOME", "DT2IT_HOME"):
        assert given[0][name] == str(tmp_path / "home")
        monkeypatch.setenv(name, given[0][name])
    with DagsterInstance.get() as instance:
        assert not instance.telemetry_enabled
        assert instance.get_settings("concurrency")["pools"] == {"default_limit": 1, "granularity": "op"}
    (tmp_path / "home/dagster.yaml").write_text("telemetry: {enabled: true}\n")
    dt2it(*command)
    assert (tmp_path / "home/dagster.yaml").read_text() == "telemetry: {enabled: true}\n"
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    dt2it(*command)
    assert given[2]["DAGSTER_HOME"] == str(tmp_path) and not (tmp_path / "dagster.yaml").exists()
    assert ["DAGSTER_DISABLE_TELEMETRY" in each for each in given] == [False, False, True]


def test_ui_becomes_dagsters_web_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(os, "execve", lambda *call: given.extend(call))
    port = free_port()
    dt2it("ui", "--home", tmp_path, "--port", port)
    program, command, environment = given
    assert (program, command[1:5]) == (sys.executable, ["-m", "dagster", "dev", "-m"])
    assert command[-4:] == ["--host", "127.0.0.1", "--port", str(port)]
    assert environment["DT2IT_HOME"] == str(tmp_path)


def test_ui_on_a_port_that_is_taken_starts_and_makes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "execve", lambda *call: pytest.fail("started"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = failing("ui", "--home", tmp_path / "home", "--port", port)
    assert words.startswith(f"cannot listen on 127.0.0.1, port {port}: ") and words.endswith("another one with --port")
    assert not (tmp_path / "home").exists()


def test_ui_listens_on_another_address_only_where_one_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(os, "execve", lambda *call: given.append(call[1]))
    for host in ("0.0.0.0", "::", "10.0.0.1", "a.host"):
        assert "has no login" in failing("ui", "--home", tmp_path, "--host", host)
    assert "--host is empty" in failing("ui", "--home", tmp_path, "--host", "", code=2)  # it would be all addresses
    assert given == []
    port = ("--port", free_port())
    dt2it("ui", "--home", tmp_path, "--host", "0.0.0.0", "--without-login", *port)
    dt2it("ui", "--home", tmp_path, "--host", "127.0.0.2", *port)
    assert [command[command.index("--host") + 1] for command in given] == ["0.0.0.0", "127.0.0.2"]


def test_a_job_that_cannot_be_run_is_said_before_anything_starts(started: list[Any], tmp_path: Path) -> None:
    given = ("--recipe", SMOKE, "--home", tmp_path)
    assert "the job round needs --round" in failing("run", "round", *given, code=2)
    assert "the job construct takes no --round" in failing("run", "construct", "--round", 0, *given, code=2)
    assert "needs --model" in failing("run", "benchmark", *given, code=2)
    assert "--model is for the job benchmark" in failing("run", "construct", "--model", "m", *given, code=2)
    assert "rounds are 0 to 1" in failing("run", "round", "--round", 2, *given)
    assert "cannot read recipe" in failing("run", "construct", "--recipe", "none.yaml")
    assert started == []


LINES = """
print("noise of an engine")
print("20:00:01  good                  good: 5 in, 5 out")
print("20:00:02  good                  … step 1")
print("  noise that is no line of the run")
print("20:00:03  run                   ERROR FAILED")
print("  bad: ValueError: what is wrong")
raise SystemExit(3)
"""


def test_lines_for_people_are_printed_and_noise_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-c", LINES]
    assert pipeline._follow(command, os.environ, verbose=False) == 3
    assert capsys.readouterr().err.splitlines() == [
        "20:00:01  good                  good: 5 in, 5 out",
        "20:00:03  run                   ERROR FAILED",
        "  bad: ValueError: what is wrong",
    ]
    pipeline._follow(command, os.environ, verbose=True)
    assert len(capsys.readouterr().err.splitlines()) == 6


def test_a_run_that_fails_without_a_reason_shows_what_was_printed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pipeline._follow([sys.executable, "-c", "print('a clue'); raise SystemExit(1)"], os.environ, verbose=False)
    assert capsys.readouterr().err.splitlines() == ["what was printed beside:", "a clue"]
    assert pipeline._follow([sys.executable, "-c", "print('a clue')"], os.environ, verbose=False) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(pipeline, "_follow", lambda *_, **__: 7)
    message = failing("run", "construct", "--recipe", SMOKE, "--home", tmp_path)
    assert message.startswith("the job construct failed (exit code 7)")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_what_asks_a_run_to_end_reaches_dagster(tmp_path: Path, number: signal.Signals) -> None:
    """`timeout 60 dt2it run ...` would leave the run behind."""
    child = (
        "import os, pathlib, signal, sys, time\n"
        "def end(number, frame):\n"
        "    pathlib.Path(sys.argv[1], 'ended').write_text(str(number))\n"
        "    sys.exit(1)\n"
        "for number in (signal.SIGTERM, signal.SIGHUP):\n"
        "    signal.signal(number, end)\n"
        "pathlib.Path(sys.argv[1], 'begun').touch()\n"
        "time.sleep(60)\n"
    )
    run = (
        "import os, signal, sys\n"
        "from dt2it_pipeline.cli.pipeline import _follow\n"
        "for number in (signal.SIGTERM, signal.SIGHUP):\n"  # whatever started the tests may ignore them
        "    signal.signal(number, signal.SIG_DFL)\n"
        "_follow([sys.executable, '-c', *sys.argv[1:]], os.environ, verbose=False)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", run, child, tmp_path])
    wait_until((tmp_path / "begun").exists, 60)
    process.send_signal(number)
    assert process.wait(30) == -number
    assert (tmp_path / "ended").read_text() == str(int(number))


@pytest.mark.heavy
def test_a_round_without_d0_fails_with_dagsters_own_reason(tmp_path: Path) -> None:
    import subprocess

    call = [sys.executable, "-c", "from dt2it_pipeline.cli import main; main()", "run", "round", "--round", "1"]
    done = subprocess.run([*call, "--recipe", SMOKE, "--home", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 1 and "debiased_pairs has not been made" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: the job round failed (exit code 1)")


def test_variables_that_dagsters_settings_take_must_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence before anything starts, where Dagster would print a traceback for each."""
    dt2it("init", tmp_path / "ours", "--postgres")
    monkeypatch.chdir(tmp_path / "ours")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "ours"))
    monkeypatch.setenv("DT2IT_POSTGRES_HOST", "localhost")
    missing = "DT2IT_POSTGRES_DATABASE, DT2IT_POSTGRES_PASSWORD, DT2IT_POSTGRES_PORT, DT2IT_POSTGRES_USER"
    words = failing("run", "construct")
    assert words == f"{tmp_path}/ours/dagster.yaml takes variables that are not set: {missing}; export them"
    for name in missing.split(", "):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr("dt2it_pipeline.cli.pipeline.find_spec", lambda name: None)
    assert failing("run", "construct").endswith("dagster-postgres is not installed: the extra `postgres`")
