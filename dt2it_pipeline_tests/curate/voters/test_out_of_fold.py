from __future__ import annotations

import pytest

from dt2it_pipeline.config.paths import project_root
from dt2it_pipeline.config.recipe import RecipeError, load_recipe, parse_recipe
from dt2it_pipeline.curate.voters.out_of_fold import fold_of, judged_by, learned_by
from dt2it_pipeline.storage import records, schemas

PROMPTS = [f"prompt-{number}" for number in range(400)]


def table(prompts: list[str], word: str):
    return schemas.table([records.make_pair(name, f"{word} a", f"{word} b", source="s") for name in prompts], "pairs")


def test_a_prompt_has_one_fold_whatever_else_there_is() -> None:
    folds = fold_of(PROMPTS, 3)
    assert fold_of(PROMPTS[7:9], 3).tolist() == folds[7:9].tolist()
    assert set(folds.tolist()) == {0, 1, 2}
    assert min((folds == fold).sum() for fold in range(3)) > 100
    assert fold_of([], 3).tolist() == []


def test_no_model_judges_a_prompt_that_it_learned_from_and_every_pair_is_judged_once() -> None:
    pool = table([*PROMPTS, *PROMPTS[:50]], "noisy")  # some prompts have two pairs
    own, feedback = table(["d0-1", "d0-2", PROMPTS[0]], "constructed"), table(PROMPTS[:300], "noisy")
    import pyarrow as pa

    training = pa.concat_tables([own, feedback])
    names = [*PROMPTS, "d0-1", "d0-2"]
    prompts = pa.table({"prompt_id": names})
    judged_in_all: list[str] = []
    for fold in range(2):
        judged = judged_by(pool, fold, 2)
        learned, used = learned_by(training, prompts, judged)
        asked = set(judged["prompt_id"].to_pylist())
        assert asked.isdisjoint(learned["prompt_id"].to_pylist())
        assert {"d0-1", "d0-2"} <= set(learned["prompt_id"].to_pylist())
        assert set(used["prompt_id"].to_pylist()) == set(learned["prompt_id"].to_pylist())
        left_out = [name for name in training["prompt_id"].to_pylist() if name in asked]
        assert learned.num_rows == training.num_rows - len(left_out)
        judged_in_all += judged["pair_id"].to_pylist()
    assert sorted(judged_in_all) == sorted(pool["pair_id"].to_pylist())


def test_the_recipe_asks_for_folds_under_joint_alone_and_old_stages_stay_valid() -> None:
    text = (project_root() / "configs/recipes/demo.yaml").read_text(encoding="utf-8")
    asked = parse_recipe(text.replace("policy: joint", "policy: joint\n  out_of_fold: {folds: 3}"))
    assert asked.curation.out_of_fold is not None and asked.curation.out_of_fold.folds == 3
    assert asked.curation.deciding() == load_recipe("configs/recipes/demo.yaml").curation.deciding()
    assert "out_of_fold" not in asked.curation.deciding()
    with pytest.raises(RecipeError, match="out_of_fold needs the policy `joint`"):
        parse_recipe(text.replace("policy: joint\n  trusted_pairs: 100", "policy: paper\n  out_of_fold: {folds: 3}"))
    with pytest.raises(RecipeError, match=r"curation.out_of_fold.folds: .* greater than or equal to 2, found 1"):
        parse_recipe(text.replace("policy: joint", "policy: joint\n  out_of_fold: {folds: 1}"))
