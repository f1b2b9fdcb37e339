from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dt2it_pipeline.config.recipe import RecipeError, parse_recipe
from dt2it_pipeline.reward.data.preparation import split_by_prompt
from dt2it_pipeline.reward.training.validation import (
    BestWeights,
    Margins,
    best_of,
    calibration,
    held_out_pairs,
    is_due,
)


@pytest.mark.parametrize("count", [1, 5, 20])
def test_no_prompt_is_on_both_sides(count: int) -> None:
    prompts = [f"p{number // 3}" for number in range(60)]
    trained, held_out = split_by_prompt(prompts, count, seed=1)
    assert sorted([*trained, *held_out]) == list(range(60))
    assert not {prompts[i] for i in trained} & {prompts[i] for i in held_out}
    assert count <= len(held_out) < count + 3


def test_the_seed_draws_the_prompts_whatever_the_order_of_rows() -> None:
    prompts = np.array([f"p{number // 3}" for number in range(60)])
    shuffled = np.random.default_rng(0).permutation(prompts)
    drawn = [{*rows[split_by_prompt(rows, 10, seed)[1]]} for rows, seed in ((prompts, 1), (shuffled, 1), (prompts, 2))]
    assert drawn[0] == drawn[1] != drawn[2]


def test_without_a_request_nothing_is_held_out() -> None:
    trained, held_out = split_by_prompt(["a", "b"], held_out_pairs(2, 0.0, None), seed=0)
    assert trained.tolist() == [0, 1]
    assert held_out.tolist() == []


def test_how_many_are_held_out() -> None:
    assert [held_out_pairs(1000, 0.005, None), held_out_pairs(10, 0.005, None), held_out_pairs(10, 0, 3)] == [5, 1, 3]


def test_evaluation_is_due_every_so_often_and_at_the_end() -> None:
    assert [done for done in range(1, 8) if is_due(done, 7, 3)] == [3, 6, 7]


def test_the_best_is_the_lowest_loss_and_the_earliest_of_equals() -> None:
    history = [{"step": step, "loss": loss} for step, loss in ((2, 0.7), (4, 0.5), (6, 0.5), (8, 0.6))]
    assert best_of(history) == history[1]
    assert best_of([]) is None


def test_best_weights_go_only_when_a_state_names_others(tmp_path: Path) -> None:
    best = BestWeights(tmp_path, wanted=True)
    for step in (2, 4):
        best.save(step, lambda folder: (folder / "weights").write_text("w"))
    assert len(list(best.root.iterdir())) == 4  # each with its marker
    best.drop_all_but({"step": 4})
    assert sorted(path.name for path in best.root.iterdir()) == ["step-00000004", "step-00000004.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{keep: best}", "keep: best needs held-out pairs"),
        ("{validation_fraction: 0.1, validation_pairs: 3}", "not both"),
        ("{validation_fraction: 1.0}", "training.validation_fraction: .*less than 1"),
        ("{lora: {rank: 0}}", "training.lora.rank: .*greater than or equal to 1"),
        ("{loss: {kind: hinge}}", "training.loss.kind: .*found 'hinge'"),
    ],
)
def test_settings_that_do_not_fit_are_named(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_recipe(f"name: x\nannotation: {{judges: [{{name: a}}]}}\ntraining: {text}\n")


def test_held_out_pairs_give_the_temperature_where_they_are_enough_in_any_order() -> None:
    rng = np.random.default_rng(0)
    ranks = np.arange(400) // 2
    log_odds = rng.normal(size=400)
    margins = 2 * log_odds * np.where(rng.random(400) < 1 / (1 + np.exp(-log_odds)), 1, -1)
    kept = Margins()
    for start in range(0, 400, 50):
        kept.add(np.arange(start, start + 50), torch.tensor(margins[start : start + 50]))
    kept.add(np.empty(0, dtype=np.int64), torch.ones(3))  # a pass whose pairs are other ranks'
    assert len(kept.pairs()) == 400
    entry = calibration(kept.pairs(), ranks)["calibration"]
    assert entry["temperature"] == pytest.approx(2.0, rel=0.4) and entry["pairs"] == 400 and entry["prompts"] == 200
    assert calibration(kept.pairs()[::-1], ranks) == {"calibration": entry}
    assert calibration(kept.pairs()[:99], ranks) == {}
