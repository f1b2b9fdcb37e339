"""What the evaluation's steps say in a run's log, and that no arm is trained in vain."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pandas as pd

from dt2it_pipeline.config.recipe import load_recipe
from dt2it_pipeline.evaluate.benchmarks.metrics import score_items
from dt2it_pipeline.orchestrate.assets.evaluation import accuracy_lines, build_evaluation_assets
from dt2it_pipeline.orchestrate.io_manager import ArtifactIOManager
from dt2it_pipeline.orchestrate.resources import ChildProcesses, StoreResource
from dt2it_pipeline.orchestrate.sections import ModelSections
from dt2it_pipeline.storage import schemas
from dt2it_pipeline.storage.artifacts import Artifact, Store


def test_accuracy_is_told_by_benchmark_and_group() -> None:
    groups = [("mine", "easy"), ("mine", "easy"), ("mine", "hard"), ("other", "only")]
    items = pd.DataFrame(
        [
            {"item_id": f"{i}", "benchmark": benchmark, "group": group, "chosen_id": f"c{i}", "rejected_id": f"r{i}"}
            for i, (benchmark, group) in enumerate(groups)
        ]
    )
    better = {"c0": 2.0, "r0": 1.0, "c1": 2.0, "r1": 1.0, "c2": 1.0, "r2": 1.0, "c3": 2.0, "r3": 1.0}
    scores = pd.DataFrame([{"response_id": key, "voter": "v", "score": score} for key, score in better.items()])
    assert accuracy_lines(score_items(items, scores, model="round 1").benchmark_scores) == [
        "round 1 is right in 75.0% of 4 pairs of all benchmarks",
        "round 1 is right in 66.7% of 3 pairs of mine (easy 100.0%, hard 0.0%)",  # a tie is wrong
        "round 1 is right in 100.0% of 1 pairs of other (only 100.0%)",
    ]


def test_nothing_is_told_without_benchmarks() -> None:
    items = pd.DataFrame(columns=["item_id", "benchmark", "group", "chosen_id", "rejected_id"])
    scores = pd.DataFrame(columns=["response_id", "voter", "score"])
    assert accuracy_lines(score_items(items, scores, model="round 1").benchmark_scores) == []


def test_no_arm_is_trained_that_no_benchmark_could_judge(tmp_path: Path) -> None:
    """The steps run as Dagster runs them; a child process, which would train or score, is an error."""
    recipe = load_recipe("configs/recipes/smoke.yaml")
    made = build_evaluation_assets(
        ModelSections.of(recipe), recipe.decontamination, recipe.evaluation, 0, dg.StaticPartitionsDefinition(["0"])
    )
    arms = [asset for asset in made if asset.key.to_user_string() in ("control_model", "control_scores")]
    store = Store(tmp_path)
    empty = {name: schemas.table([], name) for name in ("pairs", "prompts", "benchmark_items", "quarantine")}
    names = ("debiased_pairs", "t2i_pairs", "raw_benchmarks", "raw_preferences")
    for name in names:
        store.write(name, Artifact(empty), "key")
    done = dg.materialize(
        [*arms, *(dg.AssetSpec(name) for name in names)],
        resources={
            "store": StoreResource(home=str(tmp_path)),
            "children": ChildProcesses(),
            "io_manager": ArtifactIOManager(home=str(tmp_path)),
        },
    )
    assert done.success
    assert "no benchmark" in store.read("control_model").metadata["not_trained"]
    assert store.read("control_scores")["benchmark_scores"].num_rows == 0
