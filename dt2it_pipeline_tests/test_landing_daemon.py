"""A real daemon: a manifest is dropped, its rows are ingested, and rounds 0 and 1 follow, with real engines.

The recipe asks for what starts fast (one process, no verifier, no arms): the whole jobs have tests of their own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest

from dt2it_pipeline.config.paths import project_root
from dt2it_pipeline.orchestrate.sensors import LANDED
from dt2it_pipeline.storage.artifacts import Store
from dt2it_pipeline_tests.support.landing_world import drop

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(2400)]

SMOKE = "configs/recipes/smoke.yaml"


def program(name: str) -> str:
    return str(Path(sys.executable).parent / name)


def wait_for(what: str, found: Callable[[], bool], daemon: subprocess.Popen[bytes], log: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not found():
        tail = log.read_text(errors="replace")[-5000:]
        assert daemon.poll() is None, f"the daemon ended:\n{tail}"
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s\n{tail}"
        time.sleep(2)


def test_what_is_dropped_is_ingested_and_rounds_follow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, log = tmp_path / "home", tmp_path / "daemon.log"
    home.mkdir()
    text = (project_root() / SMOKE).read_text(encoding="utf-8")
    for dear, cheap in (
        ("control_arm: true", "control_arm: false"), ("ceiling_arm: true", "ceiling_arm: false"),
        ("policy: paper", "policy: joint"), ("  processes: 2", "  processes: 1"),
    ):  # fmt: skip
        assert text.count(dear) == 1
        text = text.replace(dear, cheap)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text + '\nlanding: {every_seconds: 5, fresh_round_cron: "* * * * *"}\n', encoding="utf-8")
    given = {
        "DT2IT_RECIPE": str(recipe), "DT2IT_HOME": str(home), "HF_HUB_OFFLINE": "1", "DAGSTER_HOME": str(project_root())
    }  # fmt: skip
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    location = ("-m", "dt2it_pipeline.definitions")
    for kind, name in (
        ("sensor", "landing_sensor"), ("sensor", "round_sensor"), ("schedule", "fresh_round_schedule")
    ):  # fmt: skip
        subprocess.run(
            [program("dagster"), kind, "start", name, *location], cwd=project_root(), check=True, timeout=300
        )
    drop(home / "landing", "broken", manifest="name: [")
    drop(home / "landing", "dropped", rows=40)
    stream = log.open("wb")
    daemon = subprocess.Popen(
        [program("dagster-daemon"), "run", *location], cwd=project_root(), env=os.environ, stdout=stream,
        stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    store = Store(home)
    try:
        with dg.DagsterInstance.get() as instance:

            def ended(job: str, partition: str | None = None) -> bool:
                tags = {} if partition is None else {"dagster/partition": partition}
                runs = instance.get_runs(filters=dg.RunsFilter(job_name=job, tags=tags))
                assert all(run.status != dg.DagsterRunStatus.FAILURE for run in runs), "a run has failed"
                return any(run.status == dg.DagsterRunStatus.SUCCESS for run in runs)

            wait_for("construct", lambda: ended("construct"), daemon, log, 900)
            sources = store.read("raw_preferences")["pairs"]["source"].to_pylist()
            assert sources.count("dropped") == 40
            assert "demo_preferences" in sources
            aside = store.read("raw_preferences")["quarantine"].to_pylist()
            assert [row["detail"] for row in aside if row["row_id"] == "broken.yaml"]
            wait_for("round 0", lambda: ended("round", "0"), daemon, log, 900)
            wait_for("round 1", lambda: ended("round", "1"), daemon, log, 900)
            time.sleep(75)  # another tick of each: nothing more is asked for
            runs = instance.get_runs()
            assert sorted((run.job_name, run.tags.get("dagster/partition", "")) for run in runs) == [
                ("construct", ""), ("round", "0"), ("round", "1")
            ]  # fmt: skip
            assert len({run.tags[LANDED] for run in runs}) == 1
            state = next(
                state for state in instance.all_instigator_state() if state.instigator_name == "landing_sensor"
            )
            cursor = json.loads(state.instigator_data.cursor)  # type: ignore[union-attr]
            assert cursor["dropped.yaml"]["content"]
            assert cursor["broken.yaml"]["reported"]
        scored = store.read("response_scores", "1")["scores"]["response_id"].to_pylist()
        dropped = [r for r in store.read("raw_preferences")["pairs"].to_pylist() if r["source"] == "dropped"]
        assert {row["chosen_id"] for row in dropped} <= set(scored)
    finally:
        os.killpg(daemon.pid, signal.SIGTERM)
        try:
            daemon.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(daemon.pid, signal.SIGKILL)
        stream.close()
