"""Log lines of all processes: plain text, or JSON objects that name run, round, stage and rows."""

import doctest
import json
import logging
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import dagster as dg
import pytest

from dt2it_pipeline.engines.launch.launcher import Resources
from dt2it_pipeline.engines.launch.local_launcher import LocalLauncher
from dt2it_pipeline.engines.vllm_plugin import prepare_process
from dt2it_pipeline.observe import logs
from dt2it_pipeline.observe.logs import VariableError, configure_logs, log_context, log_place
from dt2it_pipeline.orchestrate.resources import ChildProcesses
from dt2it_pipeline.orchestrate.stage.cached_stage import run_stage
from dt2it_pipeline.storage import records, schemas
from dt2it_pipeline.storage.artifacts import Artifact, Store
from dt2it_pipeline_tests.support.child_jobs import Crash, Warns


@pytest.fixture
def root():
    """The loggers that are changed, as they were before."""
    kept = {name: logging.getLogger(name) for name in (None, "dt2it_pipeline", "vllm")}
    before = {name: (list(log.handlers), log.level, log.propagate) for name, log in kept.items()}
    hook = sys.excepthook
    yield kept[None]
    logging.captureWarnings(False)
    sys.excepthook = hook
    for name, (handlers, level, propagate) in before.items():
        kept[name].handlers, kept[name].propagate = handlers, propagate
        kept[name].setLevel(level)


def objects(text):
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def launched(job, tmp_path, **resources):
    lines = []
    launcher = LocalLauncher(on_line=lines.append)
    with log_context(run_id="r1", round="1", stage="reward_model"):
        launcher.launch(job, work=tmp_path, resources=Resources(**resources))
    return "".join(lines)


def test_the_examples_are_right():
    assert doctest.testmod(logs).failed == 0


def test_a_place_needs_no_quotes_in_a_shell_and_comes_back_as_it_was():
    with log_context(round='a b,c=d"$é', stage="s"), log_context(round=None, run_id="r-1"):
        assert re.fullmatch(r"[\w@%+=:,./-]+", os.environ["DT2IT_LOG_CONTEXT"])  # what DeepSpeed passes on unquoted
        assert log_place() == {"round": 'a b,c=d"$é', "stage": "s", "run_id": "r-1"}
    assert log_place() == {}


def test_a_worker_writes_objects_that_name_its_place_and_rows(tmp_path, monkeypatch):
    monkeypatch.setenv("DT2IT_LOG", "json")
    text = launched(Warns(), tmp_path)
    info, warned, python = objects(text)
    assert (info["level"], info["message"]) == ("INFO", "a model is loaded")
    assert warned["row_ids"] == ["p1"]
    assert (warned["logger"], warned["message"]) == ("dt2it_pipeline.of_a_job", "no answer for p1")
    assert [warned[key] for key in ("run_id", "round", "stage")] == ["r1", "1", "reward_model"]
    assert warned["time"].endswith("Z") and warned["process"] != os.getpid()
    assert python["logger"] == "py.warnings" and "soon gone" in python["message"]
    assert "plain words" in text  # what others print stays as it is


def test_without_the_variable_lines_are_plain_and_the_file_takes_objects(tmp_path, monkeypatch):
    monkeypatch.setenv("DT2IT_LOG_FILE", str(tmp_path / "lines.jsonl"))
    text = launched(Warns(), tmp_path)
    assert text.splitlines()[0] == "no answer for p1" and not objects(text)
    kept = objects((tmp_path / "lines.jsonl").read_text())
    assert [line["message"] for line in kept] == ["a model is loaded", "no answer for p1"]


@pytest.mark.heavy
def test_every_rank_writes_objects(tmp_path, monkeypatch):
    monkeypatch.setenv("DT2IT_LOG_FILE", str(tmp_path / "lines.jsonl"))
    launched(Warns(), tmp_path, processes=2)
    kept = objects((tmp_path / "lines.jsonl").read_text())
    assert sorted(line["rank"] for line in kept if line["message"] == "no answer for p1") == [0, 1]
    assert {line["stage"] for line in kept} == {"reward_model"}


def test_an_error_that_ends_a_worker_is_one_object(tmp_path, monkeypatch):
    monkeypatch.setenv("DT2IT_LOG", "json")
    Crash(attempts=tmp_path / "attempts").write(tmp_path / "job.json")
    command = [sys.executable, "-m", "dt2it_pipeline.engines.launch.worker", str(tmp_path / "job.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = objects(done.stderr)
    assert (line["level"], line["message"]) == ("CRITICAL", "ValueError: the job's own words")
    assert line["exception"].startswith("Traceback") and len(done.stderr.splitlines()) == 1


def test_a_stage_gives_its_place_to_its_children(tmp_path, monkeypatch):
    monkeypatch.setenv("DT2IT_LOG_FILE", str(tmp_path / "lines.jsonl"))

    @dg.asset(partitions_def=dg.StaticPartitionsDefinition(["0", "1"]), code_version="1")
    def heavy(context: dg.AssetExecutionContext, children: ChildProcesses) -> dg.MaterializeResult:
        def compute(work):
            children.run(context, Warns(), work)
            return Artifact({}, {})

        run_stage(context, Store(tmp_path), compute, inputs={}, settings={})
        assert log_place() == {}
        return dg.MaterializeResult()

    result = dg.materialize([heavy], partition_key="1", resources={"children": ChildProcesses()})
    kept = objects((tmp_path / "lines.jsonl").read_text())
    assert len(kept) == 2
    assert {(line["run_id"], line["round"], line["stage"]) for line in kept} == {(result.run_id, "1", "heavy")}


def test_a_stage_names_the_rows_that_it_did_not_use_by_reason(tmp_path, monkeypatch, root):
    monkeypatch.setenv("DT2IT_LOG_FILE", str(tmp_path / "lines.jsonl"))
    configure_logs()
    reasons = ["missing image"] * 30 + ["tie"]
    aside = [records.quarantine_row(f"r{n}", "ingest", reason, "", "s") for n, reason in enumerate(reasons)]

    @dg.asset(code_version="1")
    def raw(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        tables = {"quarantine": schemas.table(aside, "quarantine")}
        run_stage(context, Store(tmp_path), lambda work: Artifact(tables, {}), inputs={}, settings={})
        return dg.MaterializeResult()

    result = dg.materialize([raw])
    kept = [line for line in objects((tmp_path / "lines.jsonl").read_text()) if "row_ids" in line]
    assert [line["message"] for line in kept] == ["raw: 30 not used, missing image", "raw: 1 not used, tie"]
    assert [line["row_ids"] for line in kept] == [[f"r{n}" for n in range(20)], ["r30"]]
    assert all((line["run_id"], line["stage"]) == (result.run_id, "raw") for line in kept)


def test_a_line_names_twenty_rows_at_most():
    record = logging.LogRecord("dt2it_pipeline.x", 30, "", 0, "many", (), None)
    record.row_ids = (f"r{n}" for n in range(10**9))
    assert json.loads(logs.JsonFormatter().format(record))["row_ids"] == [f"r{n}" for n in range(20)]


def test_lines_of_many_threads_and_processes_do_not_mix(tmp_path, monkeypatch, root):
    monkeypatch.setenv("DT2IT_LOG_FILE", str(tmp_path / "lines.jsonl"))
    configure_logs()
    configure_logs()  # nothing is written twice
    log = logging.getLogger("dt2it_pipeline.many")

    def write(number):
        for _ in range(50):
            log.info("%s", str(number) * 9000)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    child = (
        "import logging, dt2it_pipeline.observe.logs as logs; logs.configure_logs()\n"
        "for _ in range(50): logging.getLogger('dt2it_pipeline.x').info('%s', 'c' * 9000)"
    )
    subprocess.run([sys.executable, "-c", child], check=True)
    for thread in threads:
        thread.join()
    kept = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()]
    assert len(kept) == 250
    assert all(len(set(line["message"])) == 1 and len(line["message"]) == 9000 for line in kept)


def test_lines_of_vllm_become_objects_in_each_of_its_processes(monkeypatch, root, capsys):
    other = logging.getLogger("vllm")
    other.handlers, other.propagate = [logging.StreamHandler()], False
    other.setLevel(logging.INFO)
    monkeypatch.setenv("DT2IT_LOG", "json")
    prepare_process()
    other.info("engine is ready")
    (line,) = objects(capsys.readouterr().err)
    assert (line["logger"], line["message"]) == ("vllm", "engine is ready")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [("DT2IT_LOG", "xml", "DT2IT_LOG=xml: it must be text or json"), ("DT2IT_LOG_FILE", "/no/such/a", "cannot be app")],
)
def test_a_variable_that_cannot_be_followed_is_named(name, value, words, monkeypatch, root):
    monkeypatch.setenv(name, value)
    with pytest.raises(VariableError, match=words):
        configure_logs()


@pytest.mark.parametrize(("form", "as_object"), [("json", True), ("xml", False)])
def test_a_command_says_its_errors_as_objects(form, as_object):
    command = [sys.executable, "-c", "from dt2it_pipeline.cli import main; main()", "doctor", "--home", "/no/such"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"DT2IT_LOG": form})
    assert done.returncode == 1
    if as_object:
        (line,) = objects(done.stderr)
        assert (line["level"], line["message"].split(";")[0]) == ("ERROR", "there is no artifact home /no/such")
    else:
        assert done.stderr.startswith("error: DT2IT_LOG=xml")


_OF_VLLM = '''
import multiprocessing, sys
from dt2it_pipeline.engines.torchvision_shim import ensure_torchvision
from dt2it_pipeline.engines.vllm_start import prepare_environment
ensure_torchvision()

def log(words, config=None):
    """As LLM does in its process, and EngineCoreProc in its own, where the configuration comes with the arguments."""
    from vllm.config.logging import LoggingConfig
    from vllm.logger import configure_logging, init_logger
    configure_logging(config or LoggingConfig())
    for level in ("info", "warning", "error"):
        getattr(init_logger("vllm.engine"), level)("%s %s", words, level)

if __name__ == "__main__":
    prepare_environment()
    from vllm.config.logging import LoggingConfig
    log("parent")
    child = multiprocessing.get_context("spawn").Process(target=log, args=("child", LoggingConfig()))
    child.start()
    child.join()
    assert child.exitcode == 0
    import logging.config, uvicorn
    from argparse import Namespace
    from vllm.entrypoints.launchers.utils.server_utils import get_uvicorn_log_config
    logging.config.dictConfig(get_uvicorn_log_config(Namespace(log_config_file=sys.argv[1] or None)))
    logging.getLogger("uvicorn.access").info("GET /health")
'''


@pytest.mark.heavy
def test_processes_of_vllm_write_objects_from_their_first_line_on(tmp_path):
    """No plugin is loaded yet when they begin to log."""
    (tmp_path / "own.py").write_text(_OF_VLLM)
    config = Path(logs.__file__).with_name("vllm_logging.json")
    own = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_LOGGING")}
    own |= {"DT2IT_LOG": "json", "DT2IT_LOG_FILE": str(tmp_path / "lines.jsonl"), "VLLM_LOGGING_LEVEL": "WARNING"}
    done = subprocess.run(
        [sys.executable, tmp_path / "own.py", config], capture_output=True, text=True, timeout=300, env=own
    )
    assert done.returncode == 0, done.stderr
    wanted = [*(f"{who} {which}" for who in ("parent", "child") for which in ("warning", "error")), "GET /health"]
    for lines in (done.stderr, (tmp_path / "lines.jsonl").read_text()):
        found = [line for line in objects(lines) if line["logger"].startswith(("vllm.engine", "uvicorn"))]
        assert [line["message"] for line in found] == wanted
        assert len({line["process"] for line in found}) == 2
    assert not any(words in done.stdout for words in ("parent", "child", "health"))
