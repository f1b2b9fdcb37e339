import os
import signal
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from dt2it_pipeline.config.sections.launcher import SlurmSettings
from dt2it_pipeline.orchestrate.resources import ChildProcesses
from dt2it_pipeline.storage.artifacts import Store
from dt2it_pipeline_tests.support.child_jobs import Chatter, Crash, Echo, Killed
from dt2it_pipeline_tests.support.fake_clusters import calls, install
from dt2it_pipeline_tests.support.processes import alive, wait_until

IMPORTS = (
    "from dt2it_pipeline_tests.orchestrate.test_pipes_worker import start\n"
    "from dt2it_pipeline_tests.support.child_jobs import Hang\n"
)


def start(job, folder, retries=0, launcher=None):
    """Run a child in an asset; returns the run's result and what the child returned."""
    returned = {}

    @dg.asset(retry_policy=dg.RetryPolicy(max_retries=retries) if retries else None)
    def heavy(context: dg.AssetExecutionContext, children: ChildProcesses) -> dg.MaterializeResult:
        returned.update(children.run(context, job, Path(folder)))
        return dg.MaterializeResult()

    result = dg.materialize([heavy], resources={"children": ChildProcesses.of(launcher)}, raise_on_error=False)
    return result, returned


def failure(result):
    return next(event for event in result.all_events if event.is_step_failure).event_specific_data


def test_a_child_returns_its_summary_from_a_process_of_its_own(tmp_path):
    result, returned = start(Echo(value=21), tmp_path)
    assert result.success
    assert returned["doubled"] == 42
    assert returned["pid"] != os.getpid()


def test_a_child_on_a_cluster_reports_its_progress_through_pipes(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("PATH", f"{install(tmp_path / 'cluster')}{os.pathsep}{os.environ['PATH']}")
    result, returned = start(Echo(value=21), tmp_path, launcher=SlurmSettings(kind="slurm", options=("--qos=high",)))
    assert result.success and returned["doubled"] == 42
    assert "step 1, loss 0.5" in capfd.readouterr().err
    ((program, *options),) = calls(tmp_path / "cluster")
    assert program == "srun" and "--qos=high" in options and "dt2it_pipeline.orchestrate.pipes_worker" in options
    assert not list(tmp_path.glob("pipes_*"))


def test_a_child_that_fails_is_one_clear_failure_and_is_not_retried(tmp_path):
    result, _ = start(Crash(attempts=tmp_path / "attempts"), tmp_path, retries=1)
    message = failure(result).user_failure_data.description
    assert message.endswith("child_jobs:crash ended with code 1: ValueError: the job's own words")
    assert (tmp_path / "attempts").read_text() == "."


def test_a_child_that_is_killed_is_retried(tmp_path):
    result, _ = start(Killed(attempts=tmp_path / "attempts"), tmp_path, retries=1)
    assert "ended with code -9 (signal SIGKILL;" in failure(result).user_failure_data.description
    assert (tmp_path / "attempts").read_text() == ".."


def test_a_child_that_prints_much_does_not_hang(tmp_path):
    assert start(Chatter(), tmp_path)[0].success


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_process_outlives_a_step_that_is_killed(tmp_path, how):
    script = (
        f"from pathlib import Path\n{IMPORTS}start(Hang(pids=Path({str(tmp_path / 'pids')!r})), {str(tmp_path)!r})\n"
    )
    step = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    wait_until(lambda: (tmp_path / "pids").exists() and (tmp_path / "pids").read_text(), 60)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert all(alive(pid) for pid in pids)
    os.kill(step.pid, how)
    step.wait(30)
    wait_until(lambda: not any(alive(pid) for pid in pids))


def holds_nothing(pid: int) -> bool:
    """Whether a process has closed all its files, which the kernel does just before it counts as ended."""
    try:
        return not list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return True


def test_the_stage_of_a_killed_run_is_free_once_its_programs_have_ended(tmp_path):
    script = (
        f"from pathlib import Path\nfrom dt2it_pipeline.storage.artifacts import Store\n{IMPORTS}"
        f"with Store({str(tmp_path)!r}).locked('stage'):\n"
        f"    start(Hang(pids=Path({str(tmp_path / 'pids')!r})), {str(tmp_path)!r})\n"
    )
    step = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    wait_until(lambda: (tmp_path / "pids").exists() and (tmp_path / "pids").read_text(), 60)
    child, _ = (int(pid) for pid in (tmp_path / "pids").read_text().split())
    os.kill(child, signal.SIGSTOP)  # it does not notice yet that its parent is gone
    step.kill()
    step.wait(30)
    logged = []

    def told_of_it(words):
        logged.append((words, alive(child)))
        os.kill(child, signal.SIGCONT)

    with Store(tmp_path).locked("stage", on_wait=told_of_it):
        assert not alive(child) or holds_nothing(child)
    assert logged[0][0].startswith(f"stage waits for programs that were started by process {step.pid} on ")
    assert logged[0][1]
