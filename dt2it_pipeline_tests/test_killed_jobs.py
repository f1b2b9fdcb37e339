"""Whole jobs that are killed at random moments, cancelled in the web UI, or lose their machine, and start again."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster_graphql import DagsterGraphQLClient
from dagster_graphql.client.query import LAUNCH_PARTITION_BACKFILL_MUTATION

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
    """Everything that a run consists of is killed once: alone, or all of it at once."""
    seed = int(os.environ.get("DT2IT_TEST_SEED", random.SystemRandom().randrange(10**9)))
    record_property("seed", f"DT2IT_TEST_SEED={seed}")  # printed at the end, passed or not
    rng = random.Random(seed)
    recipe = recipe_without_arms(tmp_path)
    for name, value in environment(tmp_path, recipe).items():
        monkeypatch.setenv(name, value)
    kill_vllm(rng, tmp_path, recipe)
    killed = through_kills(rng, tmp_path, recipe, "construct", kills=1)
    with web_ui(tmp_path) as ui:
        cancel_and_cut_the_power(tmp_path, ui)
    killed += through_kills(rng, tmp_path, recipe, *ROUND_0, kills=1)
    assert killed
    for name in ("reward_model", "curated_pairs"):  # two rounds are trained again, from the queue
        shutil.rmtree(tmp_path / "artifacts" / name)
    with web_ui(tmp_path) as ui:
        runs = backfill_while_the_daemon_is_killed(tmp_path, ui)
    with web_ui(tmp_path) as ui:
        kill_the_web_server(tmp_path, ui, runs)
    once, again = Store(finished_home(tmp_path_factory)), Store(tmp_path)
    for name in UNPARTITIONED:
        assert again.read(name).digest == once.read(name).digest, name
    for name in ("training_pairs", "reward_model", "response_scores", "voted_pairs", "verified_pairs", "curated_pairs"):
        for number in "01":
            assert again.read(name, number).digest == once.read(name, number).digest, (name, number)


def kill_vllm(rng: random.Random, home: Path, recipe: str) -> None:
    """Kill the process alone in which vLLM loads and samples: the run ends with a sentence."""
    with (home / "log").open("w") as log:
        run = subprocess.Popen(
            command("construct"), env=environment(home, recipe), cwd=project_root(), stdout=log, stderr=log
        )
        wait_until(lambda: programs(home, "work/candidate_responses/") or run.poll() is not None, 300)
        time.sleep(rng.uniform(0, 15))
        assert kill(home, "work/candidate_responses/")
        assert run.wait(120) == 1
    words = " ".join((home / "log").read_text().split())
    assert "candidate_responses: " in words and "signal SIGKILL" in words, words[-3000:]


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


@dataclasses.dataclass(frozen=True)
class WebUI:
    """A `dagster dev` that runs, and what asks its web server."""

    process: subprocess.Popen[bytes]
    client: DagsterGraphQLClient


@contextlib.contextmanager
def web_ui(home: Path) -> Iterator[WebUI]:
    """A web UI of the home, which has its own web server, daemon and code server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = [str(Path(sys.executable).parent / "dagster"), "dev", "-m", "dt2it_pipeline.definitions", "-p", str(port)]
    with (home / "server.log").open("ab") as log:
        ui = subprocess.Popen(server, cwd=project_root(), stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        wait_until(lambda: answers(port), 180)
        yield WebUI(ui, DagsterGraphQLClient("127.0.0.1", port_number=port))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(ui.pid, signal.SIGTERM)
        try:
            ui.wait(20)
        except subprocess.TimeoutExpired:  # the web server now and then outlives it
            os.killpg(ui.pid, signal.SIGKILL)
            ui.wait()


def cancel_and_cut_the_power(home: Path, ui: WebUI) -> None:
    """Cancel round 0 while it trains: its programs end and its place in the pool is free.

    Then start it again there, and kill run, child, daemon and web server at once, as a machine that goes down does.
    """
    run_id = ui.client.submit_job_execution("round", tags={"dagster/partition": "0"})
    wait_until(lambda: programs(home, "work/reward_model/"), 300)
    ui.client.terminate_run(run_id)
    wait_until(lambda: ui.client.get_run_status(run_id) == dg.DagsterRunStatus.CANCELED, 120)
    wait_until(lambda: not programs(home, "work/reward_model/"), 30)
    with dg.DagsterInstance.get() as instance:  # run monitoring may be who frees it, after half a minute
        pool = instance.event_log_storage
        wait_until(lambda: pool.get_concurrency_info("gpu").active_slot_count == 0, 120)
    ui.client.submit_job_execution("round", tags={"dagster/partition": "0"})
    wait_until(lambda: programs(home, "work/reward_model/"), 300)
    kill(home)


def backfill_while_the_daemon_is_killed(home: Path, ui: WebUI) -> list[str]:
    """Backfill both rounds: the second waits for the first, which goes on without its daemon. Their runs, in order."""
    place = {"repositoryName": "__repository__", "repositoryLocationName": "dt2it_pipeline.definitions"}
    rounds = {"repositorySelector": place, "partitionSetName": "round_partition_set"}
    asked = {"backfillParams": {"selector": rounds, "partitionNames": ["0", "1"]}}
    answer = ui.client._execute(LAUNCH_PARTITION_BACKFILL_MUTATION, asked)["launchPartitionBackfill"]
    assert answer["__typename"] == "LaunchBackfillSuccess", answer
    wait_until(lambda: programs(home, "work/reward_model/"), 300)
    with dg.DagsterInstance.get() as instance:
        found = instance.get_runs(filters=dg.RunsFilter(tags={"dagster/backfill": answer["backfillId"]}))
        runs = [run.run_id for run in sorted(found, key=lambda run: run.tags["dagster/partition"])]
        assert [status_of(run_id) for run_id in runs] == ["STARTED", "QUEUED"]
        assert kill(home, "-m dagster._daemon run")
        ui.process.wait(60)  # `dagster dev` ends without one of its programs
        wait_until(lambda: status_of(runs[0]) != "STARTED", 300)
    assert [status_of(run_id) for run_id in runs] == ["SUCCESS", "QUEUED"]
    return runs


def kill_the_web_server(home: Path, ui: WebUI, runs: list[str]) -> None:
    """The run that is left in the queue starts under the next web UI, and goes on without its web server."""
    wait_until(lambda: programs(home, "work/reward_model/"), 300)
    assert kill(home, "-m dagster_webserver")
    ui.process.wait(60)
    wait_until(lambda: status_of(runs[1]) != "STARTED", 300)
    assert status_of(runs[1]) == "SUCCESS"


def status_of(run_id: str) -> str:
    """How far a run is."""
    with dg.DagsterInstance.get() as instance:
        run = instance.get_run_by_id(run_id)
    assert run is not None
    return run.status.value


def kill(home: Path, word: str = "") -> list[str]:
    """Kill every process whose environment names the home, and whose command line the word; their command lines."""
    named = f"DT2IT_HOME={home}\0".encode()
    killed = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if int(place.name) != os.getpid() and word in line and named in (place / "environ").read_bytes():
                os.kill(int(place.name), signal.SIGKILL)
                killed.append(line)
    return killed


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
