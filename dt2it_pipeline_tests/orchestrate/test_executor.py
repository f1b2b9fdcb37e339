import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import dagster as dg
import pytest

from dt2it_pipeline.orchestrate import dagster_internals, executor
from dt2it_pipeline.orchestrate.executor import (
    BOOT_TAG,
    HOST_TAG,
    LOCK_TAG,
    PoolWait,
    boot_id,
    end_dead_runs,
    mark_alive,
)
from dt2it_pipeline_tests.support.processes import wait_until

POOL = "gpu"


@dg.asset(pool=POOL)
def pooled() -> None:
    pass


@pytest.fixture
def instance(tmp_path):
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        instance.event_log_storage.set_concurrency_slots(POOL, 1)
        yield instance


@pytest.fixture
def elsewhere(tmp_path):
    """A process that holds the lock of a run, as the process of that run does; and the lock."""
    lock = tmp_path / "lock"
    script = (
        "import sys, time; from pathlib import Path; from dt2it_pipeline.storage.locks import hold_until_exit\n"
        f"hold_until_exit(Path({str(lock)!r})); print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process, lock
    process.kill()
    process.wait()


def started_run(instance, **tags):
    """A run that holds the pool's only place."""
    job = dg.Definitions(assets=[pooled]).resolve_implicit_global_asset_job_def()
    run = instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED, tags=tags)
    instance.event_log_storage.claim_concurrency_slot(POOL, run.run_id, "pooled")
    return run


def occupied(instance):
    return instance.event_log_storage.get_concurrency_info(POOL).active_slot_count


def test_the_place_of_a_killed_run_is_freed_whatever_its_container_was_called(instance, elsewhere):
    process, lock = elsewhere
    run = started_run(instance, **{HOST_TAG: "the-container-before", BOOT_TAG: boot_id(), LOCK_TAG: str(lock)})
    assert end_dead_runs(instance) == []
    assert occupied(instance) == 1
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert end_dead_runs(instance) == [run.run_id]
    assert occupied(instance) == 0
    assert instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.FAILURE


def test_a_run_from_before_this_machine_was_started_anew_is_dead(instance, tmp_path, monkeypatch):
    monkeypatch.setattr(executor.socket, "gethostname", lambda: "ours")
    (tmp_path / "lock").touch()
    run = started_run(instance, **{HOST_TAG: "ours", BOOT_TAG: "before", LOCK_TAG: str(tmp_path / "lock")})
    assert end_dead_runs(instance) == [run.run_id]


def test_runs_of_other_machines_and_those_whose_lock_is_not_to_be_seen_are_left_alone(instance, tmp_path):
    (tmp_path / "lock").touch()
    started_run(instance, **{HOST_TAG: "elsewhere", BOOT_TAG: "another", LOCK_TAG: str(tmp_path / "lock")})
    started_run(instance, **{HOST_TAG: "elsewhere", BOOT_TAG: boot_id(), LOCK_TAG: str(tmp_path / "unseen")})
    started_run(instance)
    assert end_dead_runs(instance) == []
    assert occupied(instance) >= 1


def test_a_run_of_this_process_is_alive(instance):
    run = started_run(instance)
    mark_alive(instance, run.run_id)
    tags = instance.get_run_by_id(run.run_id).tags
    assert Path(tags[LOCK_TAG]).is_file()
    assert end_dead_runs(instance) == []


@pytest.fixture
def waiting(instance, monkeypatch):
    """What a run that waits for a place prints, and a clock to put forward."""
    lines, clock = [], SimpleNamespace(now=1000.0)
    log = SimpleNamespace(info=lines.append, warning=lines.append)
    monkeypatch.setattr(executor, "time", SimpleNamespace(monotonic=lambda: clock.now))
    wait = PoolWait()

    def look(seconds):
        clock.now += seconds
        wait.look(SimpleNamespace(instance=instance, log=log), POOL)
        found = list(lines)
        lines.clear()
        return found

    return look


def test_a_run_that_waits_names_whom_it_waits_for_and_repeats_it_once_a_minute(instance, waiting):
    run = started_run(instance, **{executor.PARTITION: "1"})
    mark_alive(instance, run.run_id)
    (line,) = waiting(0)
    assert line.startswith(
        f"waits for its place in the pool gpu, held by step pooled of run {run.run_id} (job __ASSET_JOB, round 1, "
        f"process {os.getpid()} on {socket.gethostname()}, at it since "
    )
    assert line.endswith("To end that run, press Ctrl-C where it was started, or terminate it in the UI (Runs)")
    assert [len(waiting(seconds)) for seconds in (0.1, 15, 30, 14, 1, 15)] == [0, 0, 0, 0, 1, 0]


def test_a_run_that_waits_frees_the_place_of_one_that_is_killed_meanwhile(instance, waiting, elsewhere):
    process, lock = elsewhere
    run = started_run(instance, **{BOOT_TAG: boot_id(), LOCK_TAG: str(lock)})
    assert len(waiting(0)) == 1 and occupied(instance) == 1
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert waiting(2) == [f"run {run.run_id} was killed; its place in the pools is free again"]
    assert occupied(instance) == 0


def test_a_run_that_waits_frees_the_place_of_one_that_ended_without_giving_it_back(instance, waiting):
    """Killed between its last event and that."""
    run = started_run(instance)
    instance.report_run_failed(run)
    assert waiting(0) == [f"run {run.run_id} has ended; its place in the pool gpu is free again"]
    assert occupied(instance) == 0


def test_a_run_that_waits_rests_between_its_looks(instance):
    """Dagster's own interval is never above 0."""
    run = started_run(instance)
    other = instance.create_run_for_job(dg.Definitions(assets=[pooled]).resolve_implicit_global_asset_job_def())
    seen = []
    with dagster_internals._Places(instance, other, seen.append) as places:
        assert not places.claim(POOL, "pooled") and seen == [POOL]
        assert 0 < places.interval_to_next_pending_claim_check() <= 1
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
        time.sleep(places.interval_to_next_pending_claim_check())
        assert places.claim(POOL, "pooled") and seen == [POOL]


POOLED = """
import os, time
from pathlib import Path
import dagster as dg
from dt2it_pipeline.orchestrate.executor import one_process_executor

@dg.asset(pool="gpu")
def heavy_step() -> None:
    Path("started").touch()
    while not Path("go").exists():
        time.sleep(0.1)

defs = dg.Definitions(assets=[heavy_step], executor=one_process_executor, jobs=[dg.define_asset_job("everything")])
"""


@pytest.mark.heavy
def test_the_second_of_two_runs_prints_whom_it_waits_for_and_goes_on(tmp_path):
    """Two headless runs, as two people start them."""
    (tmp_path / "pooled_definitions.py").write_text(POOLED)
    (tmp_path / "dagster.yaml").write_text(
        "telemetry: {enabled: false}\nconcurrency: {pools: {default_limit: 1, granularity: op}}\n"
    )
    command = [sys.executable, "-m", "dagster", "job", "execute", "-m", "pooled_definitions", "-j", "everything"]
    known = {"DAGSTER_HOME": str(tmp_path), "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    runs, printed = [], [tmp_path / "first.txt", tmp_path / "second.txt"]
    try:
        for file in printed:
            with file.open("w") as output:
                runs.append(
                    subprocess.Popen(command, env=os.environ | known, cwd=tmp_path, stdout=output, stderr=output)
                )
            if len(runs) == 1:
                wait_until((tmp_path / "started").exists, 120)
        wait_until(lambda: "waits for" in printed[1].read_text(), 120)
        said = " ".join(printed[1].read_text().split())
        assert "waits for its place in the pool gpu, held by step heavy_step of run" in said
        assert f"(job everything, process {runs[0].pid} on" in said and "press Ctrl-C where it was started" in said
        (tmp_path / "go").touch()
        assert [run.wait(120) for run in runs] == [0, 0]
        assert "waits for" not in printed[0].read_text()
    finally:
        for run in runs:
            run.kill()
            run.wait()


MODULE = """
import dagster as dg
from dt2it_pipeline.orchestrate.executor import one_process_executor

@dg.asset
def one() -> None: ...

defs = dg.Definitions(assets=[one], executor=one_process_executor, jobs=[dg.define_asset_job("everything")])
"""


def test_a_headless_run_is_listed_as_one_from_the_ui_and_its_bookkeeping_is_hidden(tmp_path):
    (tmp_path / "some_definitions.py").write_text(MODULE)
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    subprocess.run(
        [sys.executable, "-m", "dagster", "job", "execute", "-m", "some_definitions", "-j", "everything"],
        env=os.environ
        | {"DAGSTER_HOME": str(tmp_path), "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"},
        check=True,
        capture_output=True,
        cwd=tmp_path,
    )
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        # As the UI asks for a job's runs.
        tags = {".dagster/repository": "__repository__@some_definitions"}
        (run,) = instance.get_runs(dg.RunsFilter(job_name="everything", tags=tags))
        assert run.status == dg.DagsterRunStatus.SUCCESS
        assert run.remote_job_origin.location_name == "some_definitions"  # as its landing page does
        ours = [name for name in run.tags if "dt2it" in name]
        assert len(ours) == 3 and all(name.startswith(".dagster/") for name in ours)
