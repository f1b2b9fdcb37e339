"""Whole jobs that are killed at random moments, cancelled in the web UI, or lose their machine, and start again."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest
from dagster_graphql import DagsterGraphQLClient

from dt2it_pipeline.config.paths import project_root
from dt2it_pipeline.storage.artifacts import Store
from dt2it_pipeline_tests.support.processes import wait_until
from dt2it_pipeline_tests.support.smoke_rounds import (
    ROUND_0,
    UNPARTITIONED,
    command,
    environment,
    finished_home,
    recipe_without_arms,
)

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(1900)]


def test_killed_anywhere_cancelled_and_started_again_it_ends_in_the_same_tables(
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    """SIGKILL to whole runs at random moments; a round that is cancelled in the web UI while it trains; a power cut."""
    seed = int(os.environ.get("DT2IT_TEST_SEED", random.SystemRandom().randrange(10**9)))
    record_property("seed", f"DT2IT_TEST_SEED={seed}")  # printed at the end, passed or not
    rng = random.Random(seed)
    recipe = recipe_without_arms(tmp_path)
    killed = through_kills(rng, tmp_path, recipe, "construct", kills=1)
    cancel_in_the_web_ui(tmp_path, recipe, monkeypatch)
    killed += through_kills(rng, tmp_path, recipe, *ROUND_0, kills=2)
    assert killed
    once, again = Store(finished_home(tmp_path_factory)), Store(tmp_path)
    for name in UNPARTITIONED:
        assert again.read(name).digest == once.read(name).digest, name
    for name in ("training_pairs", "reward_model", "response_scores", "voted_pairs", "verified_pairs", "curated_pairs"):
        assert again.read(name, "0").digest == once.read(name, "0").digest, name


def through_kills(rng: random.Random, home: Path, recipe: str, *job: str, kills: int) -> int:
    """Kill the job at random moments, at most so many times, and let it come to its end; how often it was killed."""
    for killed, wait in enumerate([*(rng.uniform(8, 35) for _ in range(kills)), 1200.0]):
        with (home / "log").open("w") as log:
            process = subprocess.Popen(
                command(*job), env=environment(home, recipe), cwd=project_root(), stdout=log, stderr=log
            )
            try:
                code = process.wait(wait)
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                print(f"killed {job[0]} after {wait:.1f} s")
                continue
            assert code == 0, (home / "log").read_text()[-5000:]
            return killed
    raise AssertionError("not within 1200 s")


def cancel_in_the_web_ui(home: Path, recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start round 0 in a web UI and cancel it while it trains: its programs end and its place in the pool is free.

    Then start it again there, and kill run, child, daemon and web server at once, as a machine that goes down does.
    """
    for name, value in environment(home, recipe).items():
        monkeypatch.setenv(name, value)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = [str(Path(sys.executable).parent / "dagster"), "dev", "-m", "dt2it_pipeline.definitions", "-p", str(port)]
    with (home / "server.log").open("wb") as log:
        ui = subprocess.Popen(server, cwd=project_root(), stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    client = DagsterGraphQLClient("127.0.0.1", port_number=port)
    try:
        wait_until(lambda: answers(port), 180)
        run_id = client.submit_job_execution("round", tags={"dagster/partition": "0"})
        wait_until(lambda: programs(home, "work/reward_model/"), 300)
        client.terminate_run(run_id)
        wait_until(lambda: client.get_run_status(run_id) == dg.DagsterRunStatus.CANCELED, 120)
        wait_until(lambda: not programs(home, "work/reward_model/"), 30)
        with dg.DagsterInstance.get() as instance:  # run monitoring may be who frees it, after half a minute
            pool = instance.event_log_storage
            wait_until(lambda: pool.get_concurrency_info("gpu").active_slot_count == 0, 120)
        client.submit_job_execution("round", tags={"dagster/partition": "0"})
        wait_until(lambda: programs(home, "work/reward_model/"), 300)
        power_cut(home)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(ui.pid, signal.SIGTERM)
        try:
            ui.wait(20)
        except subprocess.TimeoutExpired:  # the web server now and then outlives it
            os.killpg(ui.pid, signal.SIGKILL)
            ui.wait()


def power_cut(home: Path) -> None:
    """Kill every process whose environment names the home."""
    named = f"DT2IT_HOME={home}\0".encode()
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int(place.name) != os.getpid() and named in (place / "environ").read_bytes():
                os.kill(int(place.name), signal.SIGKILL)


def answers(port: int) -> bool:
    """Whether something listens there."""
    with socket.socket() as asked:
        return asked.connect_ex(("127.0.0.1", port)) == 0


def programs(home: Path, word: str) -> list[str]:
    """Command lines of running programs that name a home and a word."""
    lines = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            lines.append(file.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return [line for line in lines if str(home) in line and word in line]
