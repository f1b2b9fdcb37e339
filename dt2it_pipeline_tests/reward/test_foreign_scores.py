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


def backbone_of(plain: Path) -> dict[str, torch.Tensor]:
    found = load_file(plain / "model.safetensors")
    return {name: value for name, value in found.items() if "lm_head" not in name}


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("named", ["bfloat16", "int8"])
@pytest.mark.parametrize("kinds", [("float32", "float32"), ("bfloat16", "float32"), ("float16", "bfloat16")])
def test_a_converted_model_keeps_the_types_of_its_files(
    plain: Path, tmp_path: Path, pickled: bool, named: str, kinds: tuple[str, str]
) -> None:
    visual, rest = (getattr(torch, kind) for kind in kinds)
    weights = {name: value.to(visual if "visual." in name else rest) for name, value in backbone_of(plain).items()}
    (plain / "model.safetensors").unlink()
    if pickled:
        torch.save(weights, plain / "pytorch_model.bin")
    else:
        save_file(weights, plain / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((plain / "config.json").read_text()) | {"dtype": named}
    (plain / "config.json").write_text(json.dumps(config))
    import_checkpoint(plain, tmp_path / "made")
    made = load_file(tmp_path / "made" / "model.safetensors")
    for name, value in weights.items():
        assert made[name].dtype is value.dtype and torch.equal(made[name], value), name
    assert json.loads((tmp_path / "made" / "config.json").read_text())["dtype"] == kinds[1]
    import_checkpoint(tmp_path / "made", tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert {name: value.dtype for name, value in again.items()} == {name: value.dtype for name, value in made.items()}


@pytest.mark.parametrize("pickled", [False, True])
def test_weights_of_other_types_are_refused_and_buffers_that_count_are_not(
    plain: Path, tmp_path: Path, pickled: bool
) -> None:
    weights = backbone_of(plain)
    name = next(name for name in weights if name.endswith("q_proj.weight"))

    def write(changed: dict[str, torch.Tensor]) -> None:
        (plain / "model.safetensors").unlink(missing_ok=True)
        if pickled:
            torch.save(changed, plain / "pytorch_model.bin")
        else:
            save_file(changed, plain / "model.safetensors", metadata={"format": "pt"})

    write(weights | {name.replace("weight", "steps"): torch.ones(1, dtype=torch.int64)})
    assert stored_type(plain) is torch.float32
    for kind in (torch.float8_e4m3fn, torch.int8):
        write(weights | {name: weights[name].to(kind)})
        with pytest.raises(CheckpointError, match=r"q_proj\.weight is of type .*8.*, which is not supported"):
            import_checkpoint(plain, tmp_path / "made")


@pytest.mark.parametrize("part", [None, "text_config", "vision_config"])
@pytest.mark.parametrize(("key", "named"), [("dtype", "auto"), ("torch_dtype", "nn"), ("dtype", 16)])
def test_a_type_that_torch_does_not_know_is_refused(plain: Path, part: str | None, key: str, named: object) -> None:
    config = json.loads((plain / "config.json").read_text())
    (config if part is None else config[part])[key] = named
    (plain / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=f"config.json names the {key} {named!r}, which torch does not know"):
        RewardModel.from_pretrained(plain)
