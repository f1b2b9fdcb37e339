"""Jobs in processes that one process forks: as fresh ones in all that a job can see, and what happens around them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dt2it_pipeline.engines.jobs import WORKER_ENVIRONMENT
from dt2it_pipeline.engines.launch import job_forks
from dt2it_pipeline.engines.launch.job_forks import JobForks
from dt2it_pipeline.engines.launch.launcher import JobFailed, Resources
from dt2it_pipeline.engines.launch.local_launcher import LocalLauncher
from dt2it_pipeline.storage import locks
from dt2it_pipeline_tests.support.child_jobs import Described, Echo
from dt2it_pipeline_tests.support.processes import alive_in_group, wait_until

JOBS = "dt2it_pipeline_tests.support.child_jobs"
ALONE = f"""
import sys
from pathlib import Path
from dt2it_pipeline.engines.launch.job_forks import JobForks
from dt2it_pipeline.engines.launch.local_launcher import LocalLauncher
from {JOBS} import Described
forks = JobForks({{}})
LocalLauncher(forks=forks).launch(Described(imported_by=sys.argv[2]), work=Path(sys.argv[1]))
"""
NONE_AT_ALL = "dt2it_pipeline_tests.support.child_jobs:import_what_is_not_there"


@pytest.fixture
def forks(monkeypatch):
    """A server of the test's own, also where the machine has a GPU: these jobs import nothing of CUDA."""
    monkeypatch.setattr(job_forks, "_DEVICES", ())
    forks = JobForks(WORKER_ENVIRONMENT)
    yield forks
    forks.close()


def launched(job, work: Path, forks: JobForks | None, **given):
    return LocalLauncher(forks=forks, **given).launch(job, work=work)


def test_a_forked_process_sees_what_a_fresh_one_sees(forks, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DT2IT_PROGRESS_SECONDS", "3")
    fresh = launched(Described(), tmp_path, None)
    forked = launched(Described(), tmp_path, forks)
    own = ("pid", "parent", "was_forked")
    assert {key: value for key, value in forked.items() if key not in own} == {
        key: value for key, value in fresh.items() if key not in own
    }
    assert (fresh["was_forked"], forked["was_forked"]) == (False, True)
    assert forked["leads_its_session"] and forked["parent"] not in (os.getpid(), fresh["parent"])
    assert forked["environment"]["DT2IT_PROGRESS_SECONDS"] == "3"


def test_the_server_imports_once_and_is_renewed_with_the_environment(forks, tmp_path, monkeypatch):
    first, second = (launched(Described(), tmp_path, forks) for _ in range(2))
    assert first["parent"] == second["parent"] and first["pid"] != second["pid"]
    monkeypatch.setenv("SOME_LIBRARY_READS_THIS", "1")
    third = launched(Described(), tmp_path, forks)
    assert third["parent"] != first["parent"]
    assert third["environment"]["SOME_LIBRARY_READS_THIS"] == "1"
    with pytest.raises(ProcessLookupError):
        os.kill(first["parent"], 0)


def test_lines_go_where_they_are_asked_for(forks, tmp_path, capfd):
    lines: list[str] = []
    launched(Described(words="of a job"), tmp_path, forks, on_line=lines.append)
    assert lines == ["of a job\n", "of a job, as an error\n"]
    launched(Described(words="of another"), tmp_path, forks)
    assert capfd.readouterr() == ("of another\n", "of another, as an error\n")


@pytest.mark.parametrize(
    ("end", "words", "killed"),
    [
        ("raise", "ended with code 1: ValueError: the job's own words", False),
        ("exit", "ended with code 5", False),
        ("kill", "signal SIGKILL", True),
    ],
)
def test_ends_are_told_apart_and_the_next_job_is_forked(forks, tmp_path, end, words, killed):
    with pytest.raises(JobFailed, match=words) as caught:
        launched(Described(end=end), tmp_path, forks)
    assert caught.value.was_killed == killed
    assert launched(Described(), tmp_path, forks)["was_forked"]


def test_ranks_are_forked_too(forks, tmp_path):
    launcher = LocalLauncher(forks=forks)
    described = launcher.launch(
        Described(), work=tmp_path, resources=Resources(2, environment={"OMP_NUM_THREADS": "1"})
    )
    assert described["was_forked"] and described["environment"]["WORLD_SIZE"] == "2"
    assert not described["leads_its_session"]
    with pytest.raises(JobFailed, match=r"signal SIGKILL.*: rank 1 .* was killed by signal 9") as caught:
        launcher.launch(Described(end="kill 1"), work=tmp_path, resources=Resources(2))
    assert caught.value.was_killed
    assert launcher.launch(Described(), work=tmp_path, resources=Resources(2))["was_forked"]


def test_what_interrupts_the_launch_ends_the_job(forks, tmp_path):
    def interrupted(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        launched(Described(words="begun", end="hang"), tmp_path, forks, on_line=interrupted)
    process = int(next(tmp_path.glob("described-*")).name.removeprefix("described-"))
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
    assert launched(Described(), tmp_path, forks)["was_forked"]


def test_a_server_that_is_killed_ends_its_job_and_another_takes_its_place(forks, tmp_path):
    launched(Described(), tmp_path, forks)
    server = forks._server.pid

    def kill(line: str) -> None:
        os.kill(server, signal.SIGKILL)

    with pytest.raises(JobFailed, match="signal SIGKILL"):
        launched(Described(words="begun", end="hang a moment"), tmp_path, forks, on_line=kill)
    process = max(tmp_path.glob("described-*"), key=lambda file: file.stat().st_mtime_ns)
    wait_until(lambda: not Path(f"/proc/{process.name.removeprefix('described-')}").exists(), 10)
    after = launched(Described(), tmp_path, forks)
    assert after["was_forked"] and after["parent"] != server


def test_a_server_that_died_unseen_is_replaced(forks, tmp_path):
    launched(Described(), tmp_path, forks)
    os.kill(forks._server.pid, signal.SIGKILL)
    forks._server.wait()
    assert not launched(Described(), tmp_path, forks)["was_forked"]  # this one is a fresh process
    assert launched(Described(), tmp_path, forks)["was_forked"]


def test_jobs_that_name_no_imports_or_wrong_ones_have_fresh_processes(forks, tmp_path):
    assert launched(Echo(value=2), tmp_path, forks)["doubled"] == 4
    assert forks._server is None
    assert not launched(Described(imported_by=NONE_AT_ALL), tmp_path, forks)["was_forked"]
    assert launched(Described(), tmp_path, forks)["was_forked"]


def test_a_second_job_at_the_same_time_has_a_fresh_process(forks, tmp_path):
    begun, go_on = threading.Event(), threading.Event()

    def hold(line: str) -> None:
        begun.set()
        assert go_on.wait(60)

    first, second = (tmp_path / name for name in ("first", "second"))
    for folder in (first, second):
        folder.mkdir()
    both = threading.Thread(target=launched, args=(Described(words="one"), first, forks), kwargs={"on_line": hold})
    both.start()
    assert begun.wait(60)
    assert not launched(Described(), second, forks)["was_forked"]
    go_on.set()
    both.join()
    assert launched(Described(), second, forks)["was_forked"]


def test_with_a_device_nothing_is_forked(tmp_path, monkeypatch):
    monkeypatch.setattr(job_forks, "_DEVICES", (str(tmp_path),))
    forks = JobForks(WORKER_ENVIRONMENT)
    assert not launched(Described(), tmp_path, forks)["was_forked"]
    assert forks._server is None


def test_a_device_that_only_torch_knows_is_heard_of_in_time(forks, tmp_path):
    """The server has imported torch and finds one: nothing is forked, now or later."""
    named = "dt2it_pipeline_tests.support.child_jobs:import_a_torch_with_a_device"
    assert not launched(Described(imported_by=named), tmp_path, forks)["was_forked"]
    assert forks._server is None and not forks._usable


def test_a_job_keeps_the_locks_of_its_stage(forks, tmp_path):
    held: list[bool] = []
    path = tmp_path / "lock"
    with locks.exclusive(path, print):
        launched(Described(words="begun"), tmp_path, forks, on_line=lambda line: held.append(locks.is_free(path)))
        descriptors = launched(Described(), tmp_path, forks)["open_files"]
    assert str(path) in descriptors
    assert str(path) not in launched(Described(), tmp_path, forks)["open_files"]
    assert locks.is_free(path)  # neither server nor job has it open any more


def test_what_imports_print_comes_with_the_first_job_alone(forks, tmp_path):
    lines: list[str] = []
    for words in ("one", "two"):
        launched(
            Described(words=words, imported_by=f"{JOBS}:import_what_prints"), tmp_path, forks, on_line=lines.append
        )
    assert "".join(lines).count("printed by an import") == 1
    assert lines[0].startswith("printed by an import") and lines[-2:] == ["two\n", "two, as an error\n"]


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_run_without_standard_files_runs_its_jobs(tmp_path, closed):
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", ALONE, str(tmp_path)]
    assert subprocess.run([*command, f"{JOBS}:import_something"], timeout=60).returncode == 0
    assert (tmp_path / "summary.json").exists()


def test_a_run_that_is_killed_while_its_server_imports_leaves_nothing(tmp_path):
    """Neither a job that nobody waits for, nor the server."""
    command = [sys.executable, "-c", ALONE, str(tmp_path), f"{JOBS}:import_slowly"]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None and run.stdout.readline() in ("imports\n", "")
    if job_forks.JobForks({})._usable:
        server = int(Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text())
        run.kill()
        run.wait()
        wait_until(lambda: not alive_in_group(server), 20)
        assert not list(tmp_path.glob("described-*"))
    run.stdout.close()
    run.wait(60)
