"""What a notebook may hand in wrongly: each gives one clear error."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dt2it_pipeline.reward.checkpoints.checkpoint import CheckpointError
from dt2it_pipeline.reward.reward_model import RewardModel
from dt2it_pipeline.reward.scoring.inputs import score_lists

TURNS = [{"role": "user", "text": "what?"}]


def score(prompts: Any, responses: Any, **limits: Any) -> None:
    model: Any = SimpleNamespace()  # the model is not reached
    score_lists(model, prompts, responses, None, **({"max_length": 8, "max_pixels": 8, "tokens_per_batch": 8} | limits))


@pytest.mark.parametrize(
    ("prompts", "responses", "message"),
    [
        (None, [["a"]], "prompts must be a list with one entry per prompt, found NoneType"),
        ([{"turns": TURNS}], 3, "responses must be a list with one entry per prompt, found int"),
        ([{"turns": TURNS}], [3], "responses to prompt 0 must be a list of texts, found int"),
        ([{"turns": "what?"}], [["a"]], "prompt 0: `turns` must be a list"),
        ([{"turns": None}], [["a"]], "prompt 0: `turns` must be a list"),
        ([{"turns": TURNS, "images": "a.png"}], [["a"]], "prompt 0: `images` must be a list, found str"),
        ([{"turns": TURNS, "system": 3}], [["a"]], "prompt 0: `system` must be a text, found int"),
    ],
)
def test_a_wrong_type_is_named(prompts: Any, responses: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score(prompts, responses)


def test_a_limit_that_is_no_number_is_named() -> None:
    with pytest.raises(ValueError, match="max_length must be a whole number above 0, found 'many'"):
        score([{"turns": TURNS}], [["a"]], max_length="many")


@pytest.mark.parametrize("path", ["no/such/folder", "CHECKPOINT", "runs/nothing", "not a name", "../nothing"])
def test_what_can_only_be_a_folder_is_named_as_one(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(CheckpointError) as found:
        RewardModel.from_pretrained(path)
    assert str(found.value) == f"there is no model folder {path} (seen from {tmp_path})"


def test_a_model_of_the_hub_that_may_not_be_fetched_is_named_with_what_fetches_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"'nobody/nothing' is neither a folder .*=0 hf download nobody/nothing`"):
        RewardModel.from_pretrained("nobody/nothing")


def test_a_folder_of_versions_names_the_one_in_force(tmp_path: Path) -> None:
    for name in ("a1", "b2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    for current, named in (("a1\n", "a1"), (None, "b2"), ("gone", "b2")):
        (tmp_path / "current").unlink(missing_ok=True)
        if current is not None:
            (tmp_path / "current").write_text(current)
        with pytest.raises(CheckpointError) as found:
            RewardModel.from_pretrained(tmp_path)
        assert str(found.value).endswith(f"has no config.json. Name {tmp_path / named}")


def test_something_else_than_a_path_is_named() -> None:
    wrong: Any = None
    with pytest.raises(CheckpointError, match="expected the path or Hub id of a model, found NoneType"):
        RewardModel.from_pretrained(wrong)
