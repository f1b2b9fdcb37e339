"""`dt2it doctor --health`: one entry per check, and an exit code that a monitoring system can go by."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path

import dagster as dg
import pytest
import yaml
from typer.testing import CliRunner

from dt2it_pipeline.cli import app
from dt2it_pipeline.config.paths import shipped_configs
from dt2it_pipeline.observe.health import HealthCheck
from dt2it_pipeline.orchestrate import health
from dt2it_pipeline.storage.artifacts import Artifact, Store


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = tmp_path / "home"
    made.mkdir()
    (made / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    monkeypatch.setenv("DAGSTER_HOME", str(made))
    monkeypatch.setenv("DT2IT_HOME", str(made))
    monkeypatch.setenv("DT2IT_RECIPE", str(shipped_configs() / "recipes" / "demo.yaml"))
    return made


def found(home: Path, *more: str) -> tuple[int, dict[str, dict[str, str]]]:
    ended = CliRunner().invoke(app, ["doctor", "--health", "--home", str(home), "--json", *more])
    document = json.loads(ended.stdout)
    assert document["healthy"] == (ended.exit_code == 0)
    assert all(set(check) == {"name", "status", "detail", "advice"} for check in document["checks"])
    return ended.exit_code, {check["name"]: check for check in document["checks"]}


def report(home: Path, hours: float) -> None:
    Store(home).write("round_report", Artifact({}, {}), "k", "1")
    then = time.time() - 3600 * hours
    os.utime(home / "artifacts" / "round_report" / "1" / "current", (then, then))


def test_an_installation_that_is_well_has_an_entry_per_check_and_code_0(home: Path) -> None:
    report(home, hours=2)
    code, checks = found(home, "--most-hours", "3")
    assert code == 0, checks
    expected = {"home", "artifacts", "last round", "recipe", "files", "engines", "model demo", "disk"}
    assert set(checks) == expected | {"dagster storage", "daemon", "code location"}
    assert checks["last round"]["detail"].startswith("round 1 was finished 2.0 hours ago")
    plain = CliRunner().invoke(app, ["doctor", "--health", "--home", str(home)]).stdout.splitlines()
    assert len(plain) == len(checks) and all(line.startswith("ok ") for line in plain)
    assert sorted(path.name for path in home.glob("tmp*")) == []  # nothing is left behind


def test_a_round_that_is_too_old_and_a_damaged_artifact_are_failures(home: Path) -> None:
    report(home, hours=30)
    Store(home).write("d0", Artifact({}, {}), "k")
    (home / "artifacts" / "d0" / "k" / "manifest.json").write_text("{}")
    code, checks = found(home, "--most-hours", "24")
    assert code == 1
    assert {name for name, check in checks.items() if check["status"] == "failed"} == {"last round", "artifacts"}
    assert checks["artifacts"]["detail"].startswith("1 of 2 damaged; first: d0 ")
    assert "more than 24" in checks["last round"]["detail"] and checks["last round"]["advice"]


def test_no_round_is_a_failure_only_where_one_is_expected(home: Path) -> None:
    assert found(home)[1]["last round"]["status"] == "ok"
    assert found(home, "--most-hours", "1")[1]["last round"]["status"] == "failed"


def test_a_wrong_recipe_and_a_home_that_is_not_there_are_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DT2IT_RECIPE", str(home / "none.yaml"))
    code, checks = found(home / "absent")
    assert code == 1
    assert checks["home"]["status"] == checks["recipe"]["status"] == "failed"
    assert "cannot read recipe" in checks["recipe"]["detail"]


def test_an_endpoint_is_reached_by_a_connection_alone(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listening, closed = socket.create_server(("127.0.0.1", 0)), socket.create_server(("127.0.0.1", 0))
    listening.settimeout(5)
    recipe = yaml.safe_load((shipped_configs() / "recipes" / "demo.yaml").read_text())
    judge = {"kind": "endpoint", "model": "m", "api_key_env": None}
    recipe["annotation"]["judges"] = [
        judge | {"name": "up", "base_url": f"http://127.0.0.1:{listening.getsockname()[1]}/v1"},
        judge | {"name": "down", "base_url": f"http://127.0.0.1:{closed.getsockname()[1]}/v1"},
    ]
    closed.close()
    (home / "mine.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.setenv("DT2IT_RECIPE", str(home / "mine.yaml"))
    code, checks = found(home)
    assert code == 1
    assert (checks["judge up"]["status"], checks["judge down"]["status"]) == ("ok", "failed")
    connection, _ = listening.accept()
    connection.settimeout(5)
    assert connection.recv(100) == b""  # nothing was sent
    listening.close()


def checks_of(instance: dg.DagsterInstance) -> dict[str, HealthCheck]:
    return {check.name: check for check in health.instance_health(instance)}


def test_a_silent_daemon_is_a_failure_only_where_something_waits_for_it(tmp_path: Path) -> None:
    from dagster._core.remote_origin import (
        ManagedGrpcPythonEnvCodeLocationOrigin,
        RemoteJobOrigin,
        RemoteRepositoryOrigin,
    )
    from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
    from dagster._daemon.types import DaemonHeartbeat

    @dg.job
    def some() -> None: ...

    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        assert checks_of(instance)["daemon"].status == "ok"
        location = ManagedGrpcPythonEnvCodeLocationOrigin(LoadableTargetOrigin(module_name="m"), location_name="m")
        origin = RemoteJobOrigin(RemoteRepositoryOrigin(location, "r"), "some")
        instance.create_run_for_job(some, status=dg.DagsterRunStatus.QUEUED, remote_job_origin=origin)
        waiting = checks_of(instance)["daemon"]
        assert waiting.status == "failed" and "queued runs wait for it" in waiting.detail
        instance.add_daemon_heartbeat(DaemonHeartbeat(time.time() - 3600, "SENSOR", "one", []))
        assert "silent since 60 minutes" in checks_of(instance)["daemon"].detail
        instance.add_daemon_heartbeat(DaemonHeartbeat(time.time(), "SCHEDULER", "two", []))
        assert checks_of(instance)["daemon"].status == "ok"


def test_a_storage_that_is_down_and_a_code_location_that_does_not_load_are_named(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "DEFINITIONS", "dt2it_pipeline.no_such_module")
    assert found(home)[1]["code location"]["status"] == "failed"
    (home / "dagster.yaml").write_text("storage: {postgres: {postgres_url: 'postgresql://127.0.0.1:1/x'}}\n")
    code, checks = found(home)
    assert code == 1 and checks["dagster storage"]["status"] == "failed"
    assert "DAGSTER_HOME" in checks["dagster storage"]["advice"]


def test_options_that_do_not_go_together_are_refused(home: Path) -> None:
    for arguments in (["--health", "--mend"], ["--most-hours", "3"]):
        assert CliRunner().invoke(app, ["doctor", "--home", str(home), *arguments]).exit_code == 2
