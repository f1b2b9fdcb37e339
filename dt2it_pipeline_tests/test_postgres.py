"""A team's PostgreSQL, a real server: first starts at once, and jobs at once, with real engines."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dt2it_pipeline.storage.artifacts import Store
from dt2it_pipeline_tests.support.documents import ROOT
from dt2it_pipeline_tests.support.finished_project import write_project
from dt2it_pipeline_tests.support.postgres_server import PostgresServer, postgres_server

pytest.importorskip("dagster_postgres", reason="the extra `postgres` is not installed")
pytestmark = [pytest.mark.heavy, pytest.mark.timeout(1500)]

# Opens the instance as soon as the others are as far, so that all find an empty database.
_FIRST_START = """\
import sys, time
from pathlib import Path
import dagster, dagster_postgres
Path(sys.argv[1]).touch()
while len(list(Path(sys.argv[1]).parent.glob("ready*"))) < int(sys.argv[2]):
    time.sleep(0.005)
with dagster.DagsterInstance.get() as instance:
    print("runs:", len(instance.get_runs()))
"""


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with postgres_server() as started:
        yield started


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_project(tmp_path_factory.mktemp("team"), "--postgres")


def start(server: PostgresServer, project: Path, *program: str, **variables: str) -> subprocess.Popen[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("DT2IT_", "DAGSTER_"))}
    own |= server.environment | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "DAGSTER_HOME": str(project)}
    own |= {"DT2IT_HOME": str(project / "data")} | variables
    return subprocess.Popen(
        [sys.executable, *program], cwd=project, env=own, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def printed(processes: list[subprocess.Popen[str]]) -> list[str]:
    """What processes print until they have ended, all of them well."""
    texts = [process.communicate(timeout=1200)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(texts)[-8000:]
    return texts


def run(server: PostgresServer, project: Path, *arguments: str) -> subprocess.Popen[str]:
    return start(server, project, "-c", "from dt2it_pipeline.cli import main; main()", "run", *arguments)


def test_first_starts_at_once(server: PostgresServer, project: Path, tmp_path: Path) -> None:
    server.query("create database fresh")
    starts = [
        start(
            server, project, "-c", _FIRST_START, str(tmp_path / f"ready{n}"), "2", DT2IT_POSTGRES_DATABASE="fresh"
        )
        for n in range(2)
    ]  # fmt: skip
    assert all("runs: 0" in text for text in printed(starts))


def test_jobs_at_once(server: PostgresServer, project: Path) -> None:
    """The first `construct`, and while a round runs another; all are in the database, none in SQLite."""
    printed([run(server, project, "construct")])
    began = time.time()
    round_0, construct = printed([run(server, project, "round", "--round", "0"), run(server, project, "construct")])
    assert "reused, inputs and settings unchanged" in construct and "reward_model" in round_0
    rows = server.query("select pipeline_name, status, start_time, end_time from runs order by start_time").splitlines()
    found = [row.split("|") for row in rows]
    assert sorted((name, status) for name, status, *_ in found) == [
        ("construct", "SUCCESS"), ("construct", "SUCCESS"), ("round", "SUCCESS")
    ]  # fmt: skip
    (_, _, first_start, first_end), (_, _, second_start, _) = found[1:]
    assert began < float(first_start) <= float(second_start) < float(first_end), "they did not run at once"
    assert int(server.query("select count(*) from event_logs")) > 100
    assert int(server.query("select count(*) from concurrency_slots where run_id is not null")) == 0
    assert not list((project / "data").rglob("runs.db"))
    assert Store(project / "data").read("reward_model", "0").metadata["pairs"] > 0
