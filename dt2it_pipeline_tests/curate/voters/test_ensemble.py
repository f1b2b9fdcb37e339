from __future__ import annotations

from pathlib import Path

import pytest

from dt2it_pipeline.config.paths import project_root
from dt2it_pipeline.config.recipe import Recipe, RecipeError, load_recipe, parse_recipe
from dt2it_pipeline.config.recipe_files import require_files
from dt2it_pipeline.curate.voters.ensemble import checkpoint_voters, seed_voters


def recipe_with(ensemble: str) -> Recipe:
    text = (project_root() / "configs/recipes/demo.yaml").read_text(encoding="utf-8")
    assert text.count("ensemble: {seeds: 2}") == 1
    return parse_recipe(text.replace("ensemble: {seeds: 2}", f"ensemble: {ensemble}"))


def test_seeds_follow_the_rounds_own_and_checkpoints_vote_by_their_folders() -> None:
    ensemble = recipe_with("{seeds: 2, checkpoints: [models/first, /else/where/second/]}").curation.ensemble
    assert ensemble is not None
    assert seed_voters(ensemble, 7) == {"seed/8": 8, "seed/9": 9}
    assert checkpoint_voters(ensemble) == {
        "checkpoint/first": "models/first", "checkpoint/second": "/else/where/second/"
    }  # fmt: skip


def test_stages_without_an_ensemble_stay_valid() -> None:
    asked = recipe_with("{seeds: 1}")
    assert asked.curation.deciding() == load_recipe("configs/recipes/demo.yaml").curation.deciding()


@pytest.mark.parametrize(
    ("ensemble", "message"),
    [
        ("{}", "an ensemble needs seeds, checkpoints or both"),
        ("{checkpoints: [a/model, b/model]}", "under the names of their folders, which must differ"),
        ("{seeds: 17}", r"curation.ensemble.seeds: .* less than or equal to 16, found 17"),
    ],
)
def test_what_cannot_vote_is_refused(ensemble: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as raised:
        recipe_with(ensemble)
    assert "Value error" not in str(raised.value)  # pydantic's own words


def test_a_folder_without_a_reward_model_is_named_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"curation.ensemble.checkpoints.0: no reward model in .*reward_model.json"):
        require_files(recipe_with(f"{{checkpoints: [{tmp_path}]}}"))
    (tmp_path / "reward_model.json").write_text("{}")
    require_files(recipe_with(f"{{checkpoints: [{tmp_path}]}}"))
