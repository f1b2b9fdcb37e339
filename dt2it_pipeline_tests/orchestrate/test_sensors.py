"""Sensors and the schedule on temporary instances; a real daemon drives them in test_landing_daemon.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest

from dt2it_pipeline.config.recipe import Recipe, load_recipe
from dt2it_pipeline.definitions import build_defs
from dt2it_pipeline.orchestrate.sensors import LANDED, round_gains
from dt2it_pipeline.storage import content_ids, schemas
from dt2it_pipeline.storage.artifacts import Artifact, Store
from dt2it_pipeline_tests.support.landing_world import MANIFEST, drop


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe("configs/recipes/demo.yaml").model_copy(update={"rounds": 6})


@pytest.fixture
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.local_temp(str(tmp_path_factory.mktemp("instance"))) as made:
        yield made


class Looker:
    """The landing sensor with the cursor that it leaves, as the daemon keeps it."""

    def __init__(self, recipe: Recipe, home: Path, instance: dg.DagsterInstance) -> None:
        self.defs = build_defs(recipe, home)
        self.sensor = self.defs.resolve_sensor_def("landing_sensor")
        self.instance, self.cursor = instance, None

    def tick(self) -> tuple[list[Any], str]:
        """Run requests and the skip message of one look."""
        context = dg.build_sensor_context(
            instance=self.instance, cursor=self.cursor, definitions=self.defs, sensor_name="landing_sensor"
        )
        found = self.sensor.evaluate_tick(context)
        self.cursor = found.cursor
        return list(found.run_requests or ()), found.skip_message or ""


def test_a_manifest_is_taken_at_the_second_look_and_once(
    recipe: Recipe, tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    looker = Looker(recipe, tmp_path, instance)
    assert looker.tick() == ([], "nothing new has landed")
    drop(tmp_path / "landing", "mine")
    assert looker.tick() == ([], "still changing: mine.yaml")
    (request,), _ = looker.tick()
    assert request.run_key == f"landing-{request.tags[LANDED]}"
    assert looker.tick() == ([], "nothing new has landed")
    (tmp_path / "landing" / "mine.jsonl").touch()  # the same file, copied again
    assert [looker.tick()[0] for _ in range(3)] == [[], [], []]
    drop(tmp_path / "landing", "mine", rows=4)
    assert looker.tick()[0] == []
    (again,), _ = looker.tick()
    assert again.run_key != request.run_key


def test_content_that_returns_is_asked_for_anew(
    recipe: Recipe, tmp_path: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    looker = Looker(recipe, tmp_path, instance)
    landing = tmp_path / "landing"
    keys: list[str] = []

    def asked() -> str:
        assert looker.tick()[0] == []
        before = looker.cursor
        (request,), _ = looker.tick()
        assert request.run_key == f"landing-{request.tags[LANDED]}"
        after, looker.cursor = looker.cursor, before  # the daemon died before it had written the cursor down
        assert looker.tick()[0][0].run_key == request.run_key
        assert looker.cursor == after
        assert looker.tick()[0] == []
        assert request.run_key not in keys
        keys.append(request.run_key)
        return str(request.run_key).rsplit("-", 1)[1]

    drop(landing, "mine")
    first = asked()
    drop(landing, "mine", rows=4)
    assert asked() != first
    drop(landing, "mine")
    assert asked() == first
    (landing / "mine.yaml").unlink()
    assert looker.tick()[0] == []
    drop(landing, "mine")
    assert asked() == first
    drop(landing, "mine", manifest="name: [")
    assert [looker.tick()[0] for _ in range(2)] == [[], []]
    drop(landing, "mine")
    assert asked() == first
    monkeypatch.setattr("time.time", lambda: 4e9)
    looker.cursor = None  # lost, or reset in the UI
    assert asked() == first


def test_a_file_that_grows_is_not_taken(recipe: Recipe, tmp_path: Path, instance: dg.DagsterInstance) -> None:
    looker = Looker(recipe, tmp_path, instance)
    for rows in range(1, 5):
        drop(tmp_path / "landing", "slow", rows=rows)
        assert looker.tick()[0] == []
    assert len(looker.tick()[0]) == 1


def test_a_broken_manifest_is_reported_once_and_blocks_nothing(
    recipe: Recipe, tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    looker = Looker(recipe, tmp_path, instance)
    drop(tmp_path / "landing", "broken", manifest="name: [")
    assert looker.tick() == ([], "still changing: broken.yaml")
    assert looker.tick()[1].startswith("not read: broken.yaml: manifest broken.yaml is not valid YAML")
    assert looker.tick() == ([], "nothing new has landed")
    drop(tmp_path / "landing", "good")
    looker.tick()
    (request,), _ = looker.tick()
    assert request.run_key.startswith("landing-")
    drop(tmp_path / "landing", "broken", manifest=MANIFEST)
    looker.tick()
    assert len(looker.tick()[0]) == 1
    assert json.loads(looker.cursor or "")["broken.yaml"]["content"]


def schedule_says(defs: dg.Definitions, instance: dg.DagsterInstance) -> tuple[list[Any], str]:
    context = dg.build_schedule_context(instance=instance, repository_def=defs.get_repository_def())
    found = defs.resolve_schedule_def("fresh_round_schedule").evaluate_tick(context)
    return list(found.run_requests or ()), found.skip_message or ""


def test_the_schedule_asks_for_round_0_once_for_what_has_landed(
    recipe: Recipe, tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    defs = build_defs(recipe, tmp_path)

    def add(job: str, status: dg.DagsterRunStatus, landed: str | None) -> None:
        tags = {} if landed is None else {LANDED: landed}
        instance.add_run(dg.DagsterRun(job_name=job, status=status, tags=tags))

    success, started = dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.STARTED
    add("construct", success, None)
    assert schedule_says(defs, instance) == ([], "nothing has landed yet")
    add("construct", dg.DagsterRunStatus.FAILURE, "broken")
    assert schedule_says(defs, instance)[0] == []
    add("construct", success, "first")
    (request,), _ = schedule_says(defs, instance)
    assert (request.partition_key, request.tags[LANDED]) == ("0", "first")
    add("round", started, "first")
    assert "is in run" in schedule_says(defs, instance)[1]
    add("construct", success, "second")
    assert "has not ended yet" in schedule_says(defs, instance)[1]
    add("construct", started, "third")
    assert schedule_says(defs, instance) == ([], "nothing has landed yet")


def write_round(store: Store, number: int, right: np.ndarray) -> None:
    rows = [
        {"model": f"round {number}", "benchmark": "b", "item_id": str(i), "pair_id": f"p{i}", "prompt_id": f"q{i}",
         "group": "g", "chosen_score": float(good), "rejected_score": 0.5, "outcome": "correct" if good else "wrong"}
        for i, good in enumerate(right)
    ]  # fmt: skip
    tables = {"benchmark_results": schemas.table(rows, "benchmark_results")}
    store.write("benchmark_scores", Artifact(tables), content_ids.content_hash(number, right.tolist()), str(number))


def asked_after(defs: dg.Definitions, instance: dg.DagsterInstance, number: int) -> Any:
    """What the round sensor says when round `number` has succeeded."""
    tags = {"dagster/partition": str(number), LANDED: "x"}
    run = dg.DagsterRun(job_name="round", status=dg.DagsterRunStatus.SUCCESS, tags=tags)
    event = dg.DagsterEvent("PIPELINE_SUCCESS", "round")
    context = dg.build_run_status_sensor_context("round_sensor", event, instance, run, partition_key=str(number))
    return defs.resolve_sensor_def("round_sensor")(context)


def test_rounds_go_on_while_they_gain_and_stop_after_two_that_do_not(
    recipe: Recipe, tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    store, defs = Store(tmp_path), build_defs(recipe, tmp_path)
    rng = np.random.default_rng(0)
    base = rng.random(400) < 0.6
    better = base | (rng.random(400) < 0.4)
    for number, right in enumerate((base, better, better, np.roll(better, 0))):
        write_round(store, number, right)
    first = asked_after(defs, instance, 0)
    assert isinstance(first, dg.RunRequest)
    assert (first.partition_key, first.tags[LANDED]) == ("1", "x")
    assert isinstance(asked_after(defs, instance, 1), dg.RunRequest)  # a gain
    assert isinstance(asked_after(defs, instance, 2), dg.RunRequest)  # none, once
    stop = asked_after(defs, instance, 3)  # none, twice
    assert isinstance(stop, dg.SkipReason)
    assert "the last 2 rounds gained nothing beyond chance: +0.0" in (stop.skip_message or "")
    assert [found.beyond_chance for found in round_gains(store, 3, 3)] == [True, False, False]
    never = recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"patience": None})})
    assert isinstance(asked_after(build_defs(never, tmp_path), instance, 3), dg.RunRequest)
    ended = asked_after(defs, instance, 5)
    assert "the recipe ends after round 5" in (ended.skip_message or "")


def test_a_round_whose_results_are_not_there_does_not_stop_anything(
    recipe: Recipe, tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    assert isinstance(asked_after(build_defs(recipe, tmp_path), instance, 3), dg.RunRequest)
