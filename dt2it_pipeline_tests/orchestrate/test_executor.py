import socket
import subprocess
import sys

import dagster as dg
import pytest

from dt2it_pipeline.orchestrate.executor import HOST_TAG, PID_TAG, end_dead_runs

POOL = "gpu"


@dg.asset(pool=POOL)
def pooled() -> None:
    pass


@pytest.fixture
def instance(tmp_path):
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        instance.event_log_storage.set_concurrency_slots(POOL, 1)
        yield instance


def started_run(instance, pid, host=None):
    """A run that holds the pool's only place and says that it runs in process `pid`."""
    job = dg.Definitions(assets=[pooled]).resolve_implicit_global_asset_job_def()
    tags = {HOST_TAG: host or socket.gethostname(), PID_TAG: str(pid)}
    run = instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED, tags=tags)
    instance.event_log_storage.claim_concurrency_slot(POOL, run.run_id, "pooled")
    return run


def occupied(instance):
    return instance.event_log_storage.get_concurrency_info(POOL).active_slot_count


def test_the_place_of_a_killed_run_is_freed_and_the_run_marked_failed(instance):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    run = started_run(instance, process.pid)
    assert end_dead_runs(instance) == [run.run_id]
    assert occupied(instance) == 0
    assert instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.FAILURE


def test_a_number_that_another_program_has_now_is_a_dead_run(instance):
    run = started_run(instance, 1)
    assert end_dead_runs(instance) == [run.run_id]


def test_runs_that_live_and_runs_of_other_machines_are_left_alone(instance):
    script = "import sys, time; time.sleep(60)"
    alive = subprocess.Popen([sys.executable, "-c", script, "dagster"])
    try:
        started_run(instance, alive.pid)
        started_run(instance, 999_999_999, host="elsewhere")
        assert end_dead_runs(instance) == []
        assert occupied(instance) == 1
    finally:
        alive.kill()
        alive.wait()
