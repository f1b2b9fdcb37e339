"""Loading, saving again and converting leave scores as they are, whoever wrote the checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dt2it_pipeline.reward.checkpoints.checkpoint import CheckpointError, stored_type
from dt2it_pipeline.reward.checkpoints.processor_files import CARD, has_preamble, trained_with
from dt2it_pipeline.reward.foreign import import_checkpoint
from dt2it_pipeline.reward.reward_model import RewardModel

PROMPTS = [
    {"turns": [{"role": "user", "text": "<image>what is it?"}]},
    {"turns": [{"role": "user", "text": "<image>\nwhat is it?"}], "system": "Be kind."},
    {"turns": [{"role": "user", "text": "no image"}]},
]


def scores(model: RewardModel, media: tuple[str, list[dict[str, str]]]) -> list[float]:
    root, rows = media
    asked = [
        prompt | {"images": [str(Path(root) / rows[0]["path"])] if "<image>" in prompt["turns"][0]["text"] else []}
        for prompt in PROMPTS
    ]
    return [float(value) for given in model.score(asked, [["red", "a blue square"]] * len(asked)) for value in given]


@pytest.fixture
def plain(base: Callable[..., Path], tmp_path: Path) -> Path:
    """A reward model of another trainer: base weights and a value head."""
    folder = tmp_path / "plain"
    folder.mkdir()
    for file in base().iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    hidden = json.loads((folder / "config.json").read_text())["text_config"]["hidden_size"]
    head = torch.randn(1, hidden, generator=torch.Generator().manual_seed(3))
    save_file({"v_head.summary.weight": head, "v_head.summary.bias": torch.ones(1)}, folder / "value_head.safetensors")
    return folder


def test_a_foreign_model_scores_the_same_loaded_saved_again_and_converted(
    plain: Path, tmp_path: Path, media: tuple[str, list[dict[str, str]]]
) -> None:
    direct = scores(RewardModel.from_pretrained(plain), media)
    (tmp_path / "saved").mkdir()
    RewardModel.from_pretrained(plain).save_pretrained(tmp_path / "saved")
    assert import_checkpoint(plain, tmp_path / "made").dropped_bias == 1.0
    assert import_checkpoint(tmp_path / "made", tmp_path / "again").dropped_bias == 0.0
    import_checkpoint(tmp_path / "saved", tmp_path / "of_saved")
    for name in ("saved", "made", "again", "of_saved"):
        assert scores(RewardModel.from_pretrained(tmp_path / name), media) == pytest.approx(direct, abs=1e-5), name
    assert json.loads((tmp_path / "again" / CARD).read_text())["imported_from"].startswith("v_head.summary.weight")


def test_a_checkpoint_of_ours_without_its_card_keeps_what_it_was_trained_with(
    base: Callable[..., Path], tmp_path: Path, media: tuple[str, list[dict[str, str]]]
) -> None:
    model = RewardModel.from_pretrained(base(), new_head_seed=0)
    model.card |= {"system_prompt": 'You "judge".', "image_newlines": True}
    (tmp_path / "ours").mkdir()
    model.save_pretrained(tmp_path / "ours")
    direct = scores(RewardModel.from_pretrained(tmp_path / "ours"), media)
    (tmp_path / "ours" / CARD).unlink()
    assert has_preamble(tmp_path / "ours")
    import_checkpoint(tmp_path / "ours", tmp_path / "made")
    assert scores(RewardModel.from_pretrained(tmp_path / "made"), media) == pytest.approx(direct, abs=1e-5)
    template = (tmp_path / "made" / "chat_template.jinja").read_text(encoding="utf-8")
    assert trained_with(template) == ('You "judge".', True, False, False)


def test_the_type_is_that_of_the_weights_and_unmerged_adapters_are_refused(plain: Path) -> None:
    config = json.loads((plain / "config.json").read_text()) | {"dtype": "bfloat16"}
    (plain / "config.json").write_text(json.dumps(config))
    assert stored_type(plain) is torch.float32
    weights = load_file(plain / "model.safetensors")
    name = next(name for name in weights if name.endswith("q_proj.weight"))
    weights[name.replace("weight", "lora_A.default.weight")] = torch.ones(2, 2)
    save_file(weights, plain / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="adapter that are not merged"):
        RewardModel.from_pretrained(plain)
