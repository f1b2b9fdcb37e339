"""A real daemon: a manifest is dropped, its rows are ingested, and rounds 0 and 1 follow, with real engines.

Its rounds have the policy `joint`, with trusted pairs and every further kind of voter, and what else starts fast: one
process, no arms, judges without vLLM. The policy `paper` and an answering judge have rounds in test_whole_jobs.py.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pytest

from dt2it_pipeline.config.paths import project_root
from dt2it_pipeline.curate.voters.out_of_fold import fold_of
from dt2it_pipeline.orchestrate.sensors import LANDED
from dt2it_pipeline.storage.artifacts import Store
from dt2it_pipeline_tests.support.landing_world import drop
from dt2it_pipeline_tests.support.smoke_rounds import (
    UNPARTITIONED,
    copy_data,
    environment,
    finished_home,
    recipe_without_arms,
)

# Less than the files with the longest tests have: when it starts, another process has made the home that it copies.
pytestmark = [pytest.mark.heavy, pytest.mark.timeout(1400)]


def program(name: str) -> str:
    return str(Path(sys.executable).parent / name)


def wait_for(what: str, found: Callable[[], bool], daemon: subprocess.Popen[bytes], log: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not found():
        tail = log.read_text(errors="replace")[-5000:]
        assert daemon.poll() is None, f"the daemon ended:\n{tail}"
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s\n{tail}"
        time.sleep(2)


@pytest.fixture(scope="module")
def landed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home in which `construct` has run, and in which the daemon then did all that followed from what was dropped."""
    folder = tmp_path_factory.mktemp("landed")
    home, made = folder / "home", finished_home(tmp_path_factory)
    copy_data(made, home, *UNPARTITIONED)
    shutil.copytree(Store(made).read("reward_model", "0").folder, folder / "imported")
    voters = f"out_of_fold: {{folds: 2}}\n  ensemble: {{seeds: 1, checkpoints: [{folder / 'imported'}]}}"
    recipe = recipe_without_arms(
        folder,
        ("policy: paper", f"policy: joint\n  trusted_pairs: 4\n  {voters}"),
        ("  processes: 2", "  processes: 1"),
        ('kind: answer, prompt: "Answer in one sentence."', "baseline: blank"),
        more='\nlanding: {every_seconds: 5, fresh_round_cron: "* * * * *"}\n',
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(home, recipe).items():
            patch.setenv(name, value)
        yield from run_daemon(home, folder / "daemon.log")


def run_daemon(home: Path, log: Path) -> Iterator[Path]:
    """Drop manifests and let the daemon run until both rounds are made and each sensor has looked once more."""
    location = ("-m", "dt2it_pipeline.definitions")
    for kind, name in (
        ("sensor", "landing_sensor"), ("sensor", "round_sensor"), ("schedule", "fresh_round_schedule")
    ):  # fmt: skip
        subprocess.run(
            [program("dagster"), kind, "start", name, *location], cwd=project_root(), check=True, timeout=300
        )
    drop(home / "landing", "broken", manifest="name: [")
    drop(home / "landing", "dropped", rows=40)
    with log.open("wb") as stream:
        daemon = subprocess.Popen(
            [program("dagster-daemon"), "run", *location], cwd=project_root(), env=os.environ, stdout=stream,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        with dg.DagsterInstance.get() as instance:

            def ended(job: str, partition: str | None = None) -> bool:
                tags = {} if partition is None else {"dagster/partition": partition}
                runs = instance.get_runs(filters=dg.RunsFilter(job_name=job, tags=tags))
                assert all(run.status != dg.DagsterRunStatus.FAILURE for run in runs), "a run has failed"
                return any(run.status == dg.DagsterRunStatus.SUCCESS for run in runs)

            wait_for("construct", lambda: ended("construct"), daemon, log, 900)
            wait_for("round 0", lambda: ended("round", "0"), daemon, log, 900)
            wait_for("round 1", lambda: ended("round", "1"), daemon, log, 900)
            last = time.time()

            def looked_again() -> bool:
                states = instance.all_instigator_state()
                ticks = [
                    instance.get_ticks(state.instigator_origin_id, state.selector_id, after=last) for state in states
                ]
                return len(ticks) == 3 and all(any(tick.is_completed for tick in each) for each in ticks)

            wait_for("another tick of each", looked_again, daemon, log, 200)
        yield home
    finally:
        os.killpg(daemon.pid, signal.SIGTERM)
        try:
            daemon.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(daemon.pid, signal.SIGKILL)
            daemon.wait()


def test_what_is_dropped_is_ingested_and_rounds_follow(landed: Path) -> None:
    store = Store(landed)
    sources = store.read("raw_preferences")["pairs"]["source"].to_pylist()
    assert sources.count("dropped") == 40
    assert "demo_preferences" in sources
    aside = store.read("raw_preferences")["quarantine"].to_pylist()
    assert [row["detail"] for row in aside if row["row_id"] == "broken.yaml"]
    with dg.DagsterInstance.get() as instance:
        runs = instance.get_runs()
        assert sorted((run.job_name, run.tags.get("dagster/partition", "")) for run in runs) == [
            ("construct", ""), ("round", "0"), ("round", "1")
        ]  # fmt: skip
        assert len({run.tags[LANDED] for run in runs}) == 1
        state = next(state for state in instance.all_instigator_state() if state.instigator_name == "landing_sensor")
        cursor = json.loads(state.instigator_data.cursor)  # type: ignore[union-attr]
        assert cursor["dropped.yaml"]["content"]
        assert cursor["broken.yaml"]["reported"]
    scored = store.read("response_scores", "1")["scores"]["response_id"].to_pylist()
    dropped = [r for r in store.read("raw_preferences")["pairs"].to_pylist() if r["source"] == "dropped"]
    assert {row["chosen_id"] for row in dropped} <= set(scored)


def test_the_policy_joint_with_trusted_pairs_an_ensemble_and_out_of_fold_voters(landed: Path) -> None:
    store = Store(landed)
    assert "not_trained" in store.read("fold_scores", "0").metadata
    held_out = store.read("training_pairs", "0")["trusted_pairs"]
    debiased = set(store.read("debiased_pairs")["pairs"]["pair_id"].to_pylist())
    assert held_out.num_rows >= 4 and set(held_out["pair_id"].to_pylist()) <= debiased
    for number in "01":
        assert "not_trained" in store.read("verifier_model", number).metadata
        voted, verified, contested, annotated, curated = (
            store.read(name, number)
            for name in ("voted_pairs", "verified_pairs", "contested_pairs", "annotated_pairs", "curated_pairs")
        )
        assert voted.metadata["policy"] == "joint"
        training = store.read("training_pairs", number)
        assert training["trusted_pairs"].equals(held_out)
        assert not {*held_out["prompt_id"].to_pylist()} & {*training["pairs"]["prompt_id"].to_pylist()}
        assert training.metadata["rows_held_out"] >= held_out.num_rows == voted.metadata["trusted_pairs"]
        assert all(len(votes) >= 3 for votes in voted["trusted_pairs"]["votes"].to_pylist())
        bound = math.log(0.8 / 0.2)
        assert min(verified["pairs"]["strength"].to_pylist(), default=bound) >= bound
        assert max(contested["pairs"]["strength"].to_pylist(), default=0) < bound
        assert annotated["votes"].num_rows >= annotated.metadata["judge_calls"]
        assert curated["pairs"].num_rows == voted["pairs"].num_rows - annotated["quarantine"].num_rows
    voted = store.read("voted_pairs", "1")["pairs"].select(["pair_id", "prompt_id", "votes"]).to_pylist()
    folds = fold_of([row["prompt_id"] for row in voted], 2)
    kept = set(store.read("curated_pairs", "0")["pairs"]["pair_id"].to_pylist())
    for row, fold in zip(voted, folds, strict=True):  # nobody judges the pairs that it was trained on
        own = [] if row["pair_id"] in kept else ["reward_model/1"]
        expected = ["checkpoint/imported", f"out_of_fold/1/{fold}", "reward_model/0", *own, "seed/1"]
        assert [vote["voter"] for vote in row["votes"]] == expected
    page = (landed / "report.html").read_text(encoding="utf-8")
    assert "Policy “joint”" in page
    assert "verifier model" not in page
    assert ">fold_scores<" in page
    assert "after relabelling" in (landed / "report.md").read_text(encoding="utf-8")
