import json
import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from dt2it_pipeline.orchestrate.console import WIDTH, _root, wrapped
from dt2it_pipeline.orchestrate.executor import require_partition

RUN = """
import subprocess
import sys
import dagster as dg
from dt2it_pipeline.observe.progress import Progress
from dt2it_pipeline.orchestrate.executor import one_process_executor
from dt2it_pipeline.orchestrate.stage.cached_stage import step_reporter

@dg.asset
def good(context):
    context.log.info("good: 5 in, 5 out")
    print("noise of an engine", file=sys.stderr)
    subprocess.run([sys.executable, "-c", "print('noise of its process')"], check=True)
    progress = Progress(step_reporter(context), "steps", clock=lambda: 0.0)
    for step in range(2):
        progress.add()

@dg.asset(deps=[good])
def bad():
    try:
        raise KeyError("deep")
    except KeyError as error:
        raise ValueError("what is really wrong") from error

@dg.asset(deps=[bad])
def after():
    pass

@dg.asset(deps=[good])
def worse():
    raise dg.Failure("in our own words")

def job():
    defs = dg.Definitions(
        assets=[good, bad, after, worse], executor=one_process_executor, jobs=[dg.define_asset_job("everything")]
    )
    return defs.resolve_job_def("everything")

if __name__ == "__main__":  # not when the job is loaded again to run it
    # On a machine new to Dagster, telemetry introduces itself on the terminal once.
    settings = {
        "python_logs": {"python_log_level": "INFO"},
        "telemetry": {"enabled": False},
        "compute_logs": {
            "module": "dt2it_pipeline.orchestrate.dagster_internals",
            "class": "FileComputeLogManager",
            "config": {"base_dir": sys.argv[1]},
        },
    }
    with dg.DagsterInstance.local_temp(sys.argv[1], overrides=settings) as instance:
        with dg.execute_job(dg.reconstructable(job), instance) as result:
            types = {event.event_type_value for event in result.all_events}
            assert {"STEP_START", "STEP_FAILURE", "ASSET_MATERIALIZATION"} <= types  # kept, if not printed
"""


def test_a_run_prints_a_line_per_stage_and_last_why_it_failed(tmp_path):
    (tmp_path / "script.py").write_text(RUN)
    # Where DAGSTER_HOME is set, as by make, an instance without its file is warned about.
    (tmp_path / "dagster.yaml").touch()
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), str(tmp_path)], capture_output=True, text=True, check=True
    )
    lines = done.stderr.splitlines()
    assert done.stdout == ""
    begin = lines.index("  worse: in our own words") + 1
    shown, (where, folder) = lines[:begin], " ".join(lines[begin:]).split(":", 1)  # a long path has its own line
    assert [line[10:] for line in shown[:-2]] == [
        "good                  5 in, 5 out",
        "bad                   ERROR ValueError: what is really wrong",
        "worse                 ERROR in our own words",
        "run                   ERROR FAILED",
    ]
    assert shown[-2:] == ["  bad: ValueError: what is really wrong", "  worse: in our own words"]
    assert where == "  what the steps printed"
    kept = "".join(path.read_text() for path in Path(folder.strip()).iterdir())  # for the UI
    assert "noise of an engine" in kept
    assert "noise of its process" in kept


def test_with_json_a_run_prints_the_same_as_objects_and_the_file_takes_them_too(tmp_path):
    (tmp_path / "script.py").write_text(RUN)
    (tmp_path / "dagster.yaml").touch()
    kept = tmp_path / "lines.jsonl"
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), str(tmp_path)],
        capture_output=True, text=True, check=True,
        env=os.environ | {"DT2IT_LOG": "json", "DT2IT_LOG_FILE": str(kept), "DT2IT_PROGRESS_SECONDS": "0"},
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(line.get("stage"), line["level"], line["message"].partition("\n")[0]) for line in lines] == [
        ("good", "INFO", "5 in, 5 out"),
        ("good", "INFO", "1 steps"),
        ("good", "INFO", "2 steps"),
        ("bad", "ERROR", "ValueError: what is really wrong"),
        ("worse", "ERROR", "in our own words"),
        (None, "ERROR", "FAILED"),
    ]
    assert {line["job"] for line in lines} == {"everything"}
    assert len({line["run_id"] for line in lines}) == 1
    assert [json.loads(line) for line in kept.read_text().splitlines()] == lines


def test_no_line_is_wider_than_the_terminal_but_for_commands_and_paths():
    head = "12:00:00  voted_pairs           "
    lines = wrapped(head, "word " * 60 + "end").splitlines()
    assert len(lines) > 2
    assert max(len(line) for line in lines) <= WIDTH
    assert all(line.startswith(" " * len(head) + "w") for line in lines[1:])
    command = "dt2it run round --recipe " + "x" * 119
    assert wrapped(head, f"there is no round; run it first: {command}").splitlines() == [
        f"{head}there is no round; run it first:", " " * len(head) + command
    ]  # fmt: skip
    path = "/a" * 80
    assert wrapped(head, f"FAILED\n  one: {'because ' * 20}{path}").splitlines()[-1] == f"    {path}"


def partitioned():
    @dg.asset(partitions_def=dg.StaticPartitionsDefinition(["0", "1"]))
    def one() -> None: ...

    @dg.asset
    def without() -> None: ...

    return dg.Definitions(assets=[one, without], jobs=[dg.define_asset_job("round")]).resolve_job_def("round")


@pytest.mark.parametrize(
    ("tags", "words"), [({}, "names no round"), ({"dagster/partition": "7"}, "there is no round '7'")]
)
def test_a_run_without_a_round_says_which_there_are_and_the_command(tags, words):
    with pytest.raises(dg.Failure) as caught:
        require_partition(partitioned(), tags)
    message = str(caught.value.description)
    assert words in message
    assert "rounds are 0, 1." in message
    assert message.endswith("Run one with: dt2it run round --round 0")
    with pytest.raises(dg.Failure):
        require_partition(partitioned(), tags, {dg.AssetKey("one"), dg.AssetKey("without")})
    require_partition(partitioned(), tags, {dg.AssetKey("without")})
    require_partition(partitioned(), {"dagster/partition": "1"})


@pytest.mark.parametrize(
    ("error", "words"),
    [(dg.Failure("round 7: is not there"), "round 7: is not there"), (KeyError("k"), "KeyError: 'k'")],
)
def test_a_failure_is_printed_in_its_own_words_and_another_error_with_its_name(error, words):
    @dg.asset
    def failing() -> None:
        raise error

    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize([failing], instance=instance, raise_on_error=False)
    assert _root(result.failure_data_for_node("failing").error) == words


@pytest.mark.parametrize(
    ("form", "error", "last"),
    [
        ("text", "RecipeError('no rounds')", "error: no rounds"),
        ("json", "RecipeError('no rounds')", '"message": "no rounds"'),
        ("text", "KeyError('rounds')", "KeyError: 'rounds'"),
    ],
)
def test_an_error_that_nobody_catches_is_printed_once_in_the_form_of_the_lines(form, error, last):
    """Dagster's storage asks for it, and then the definitions: twice in one process of `dagster job execute`."""
    code = (
        "from dt2it_pipeline.config.recipe import RecipeError\n"
        "from dt2it_pipeline.orchestrate.console import print_mistakes_plainly\n"
        f"print_mistakes_plainly()\nprint_mistakes_plainly()\nraise {error}"
    )
    own = os.environ | {"DT2IT_LOG": form}
    done = subprocess.run([sys.executable, "-c", code], env=own, capture_output=True, text=True, timeout=60)
    *others, line = done.stderr.splitlines()
    assert done.returncode == 1 and last in line and line.startswith("{") == (form == "json")
    assert bool(others) == ("KeyError" in error)  # a traceback, for an error of the code
