"""The jobs `export` and `benchmark` on a home that holds what they read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg
import datasets
import pytest

from dt2it_pipeline.config.recipe import Recipe, load_recipe
from dt2it_pipeline.config.sections.scoring import ScoringSettings
from dt2it_pipeline.definitions import build_defs
from dt2it_pipeline.storage import atomic, schemas
from dt2it_pipeline.storage.artifacts import Artifact, Store
from dt2it_pipeline_tests.support.export_world import world


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe("configs/recipes/demo.yaml").model_copy(update={"scoring": ScoringSettings(processes=1)})


def run(
    recipe: Recipe, home: Path, job: str, asset: str, config: dict[str, Any], **named: Any
) -> dg.ExecuteInProcessResult:
    defs = build_defs(recipe, home)
    settings = {"ops": {asset: {"config": config}}}
    with dg.DagsterInstance.ephemeral() as instance:
        return defs.resolve_job_def(job).execute_in_process(
            run_config=settings, instance=instance, raise_on_error=False, **named
        )


def test_a_round_is_exported_in_every_format_and_found_finished_again(recipe: Recipe, tmp_path: Path) -> None:
    home = Store(tmp_path / "home")
    pairs, prompts = world(home.media)
    home.write("curated_pairs", Artifact({"pairs": pairs, "prompts": prompts}), "k", "0")
    assert run(recipe, home.home, "export", "exported_pairs", {}, partition_key="0").success
    artifact = home.read("exported_pairs", "0")
    assert {name: artifact.metadata[f"{name}_pairs"] for name in ("huggingface", "llamafactory", "trl")} == {
        "huggingface": 4, "llamafactory": 4, "trl": 4
    }  # fmt: skip
    for name in ("huggingface", "llamafactory", "trl"):
        rows = datasets.load_dataset(str(artifact.folder / name), cache_dir=str(tmp_path / "cache"), split="train")
        assert rows["pair_id"] == pairs["pair_id"].to_pylist()
    assert run(recipe, home.home, "export", "exported_pairs", {}, partition_key="0").success
    assert home.read("exported_pairs", "0").folder == artifact.folder
    failed = run(recipe, home.home, "export", "exported_pairs", {"formats": ["csv"]}, partition_key="0")
    assert not failed.success


@pytest.mark.heavy
def test_any_checkpoint_is_benchmarked(recipe: Recipe, tmp_path: Path) -> None:
    from dt2it_pipeline.reward.reward_model import RewardModel
    from dt2it_pipeline_tests.support.tiny import make_tiny

    (tmp_path / "base").mkdir()
    with atomic.atomic_directory(tmp_path / "checkpoint") as folder:
        model = RewardModel.from_pretrained(make_tiny(tmp_path / "base"), new_head_seed=0)
        model.card["max_pixels"] = 1024
        model.save_pretrained(folder)
    home = Store(tmp_path / "home")
    pairs, prompts = world(home.media)
    kept = ("pair_id", "prompt_id", "chosen_id", "rejected_id", "chosen", "rejected")
    items = [
        {"item_id": str(i), "benchmark": "vl_rewardbench", "group": "general", **{name: pair[name] for name in kept}}
        for i, pair in enumerate(pairs.to_pylist())
    ]
    tables = {"benchmark_items": schemas.table(items, "benchmark_items"), "prompts": prompts}
    home.write("raw_benchmarks", Artifact(tables), "k")
    config = {"model": str(tmp_path / "checkpoint"), "name": "theirs"}
    done = run(recipe, home.home, "benchmark", "checkpoint_scores", config)
    assert done.success
    artifact = home.read("checkpoint_scores")
    results = artifact["benchmark_results"].to_pandas()
    assert len(results) == 4
    assert set(results["model"]) == {"theirs"}
    accuracy = (results["outcome"] == "correct").mean()
    assert {row["figure"]: row["value"] for row in artifact["benchmark_figures"].to_pylist()}["overall"] == accuracy
    (event,) = done.asset_materializations_for_node("checkpoint_scores")
    assert event.metadata["image_size"].value == "images: scaled down to at most 1,024 pixels, as in training"
    assert "| DT2IT-MRM |" in str(event.metadata["published_systems"].value)
    assert not run(recipe, home.home, "benchmark", "checkpoint_scores", {"model": "/nowhere"}).success
