"""Adapters of other trainers, written by PEFT itself, against what PEFT computes with them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dt2it_pipeline.reward.checkpoints.checkpoint import CheckpointError
from dt2it_pipeline.reward.checkpoints.processor_files import reward_template
from dt2it_pipeline.reward.data.collation import PackedExample, collate, with_pixels
from dt2it_pipeline.reward.data.encoding import load_processor
from dt2it_pipeline.reward.foreign import import_checkpoint
from dt2it_pipeline.reward.reward_model import RewardModel
from dt2it_pipeline.reward.training.job import TrainJob
from dt2it_pipeline.reward.training.train import run
from dt2it_pipeline_tests.support.commands import dt2it, failing
from dt2it_pipeline_tests.support.tiny import make_prompt, make_tiny
from dt2it_pipeline_tests.support.tolerance import float32_tolerance, score_tolerance
from dt2it_pipeline_tests.support.trainer_layouts import BIAS, adapter, make_head, ms_swift, value_head
from dt2it_pipeline_tests.support.training_jobs import changed

FAMILIES = ("qwen3_vl", "qwen2_5_vl")
RANK = 4
WHOLE = r".*(q_proj|down_proj|visual\.merger\.linear_fc1|visual\.merger\.mlp\.0)"  # text and vision, of both families


def generating(base: Path) -> Any:
    import transformers

    name = json.loads((base / "config.json").read_text())["architectures"][0]
    return getattr(transformers, name).from_pretrained(base, dtype=torch.float32)


def adapted(base: Path, *, head: bool = True, **settings: Any) -> Any:
    """A PEFT model with random adapters and, with `head`, a trained score layer as `modules_to_save`."""
    import peft

    model = generating(base)
    if head:
        model.score = torch.nn.Linear(32, 1, bias=False)
        settings["modules_to_save"] = ["score", *settings.get("modules_to_save", [])]
    config = peft.LoraConfig(**({"r": RANK, "lora_alpha": 6, "target_modules": WHOLE} | settings))
    made = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_B" in name or ("modules_to_save" in name and "score" not in name):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
        if head:
            made.base_model.model.score.modules_to_save["default"].weight.copy_(make_head())
    return made


def named(adapter: Path, base: str | Path, **changes: Any) -> Path:
    """The folder, with the base model of that name and other changes in adapter_config.json."""
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(base)} | changes))
    return adapter


def differs(ours: RewardModel, theirs: Any) -> float:
    """Largest difference of a weight, relative to the size of the terms that make it, which are below 8."""
    expected = {name.removeprefix("model."): value for name, value in theirs.state_dict().items()}
    weights = ours.model.state_dict()
    assert set(weights) <= set(expected)
    return max((value - expected[name]).abs().max().item() for name, value in weights.items())


@pytest.mark.numerics
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2, "layers.0.mlp.down_proj": 8}},
        {"fan_in_fan_out": True},  # PEFT ignores it for linear layers
        {"modules_to_save": ["k_proj"]},
        {"init_lora_weights": "gaussian"},
    ],
    ids=str,
)
def test_merged_weights_are_those_of_peft(
    base: Callable[..., Path], tmp_path: Path, family: str, settings: dict[str, Any]
) -> None:
    theirs = adapted(base(family), **settings)
    theirs.save_pretrained(tmp_path / "adapter")
    names = set(load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    assert "base_model.model.score.weight" in names
    assert any("visual" in name and "lora_A" in name for name in names)
    ours = RewardModel.from_pretrained(named(tmp_path / "adapter", base(family)))
    assert torch.equal(ours.head.weight, make_head())
    merged = theirs.merge_and_unload()
    assert differs(ours, merged) < float32_tolerance(16) * 8
    plain = RewardModel.from_pretrained(base(family), new_head_seed=0)
    assert differs(plain, merged) > 0.1
    # In the larger type, by nothing but the definition.
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    name = "base_model.model.model.language_model.layers.1.self_attn.q_proj"
    down, up = (weights[f"{name}.lora_{factor}.weight"].double() for factor in "AB")
    scale = 6 / (len(down) ** 0.5 if config["use_rslora"] else len(down))
    layer = "language_model.layers.1.self_attn.q_proj.weight"
    expected = plain.model.state_dict()[layer].double() + scale * up @ down
    assert (ours.model.state_dict()[layer].double() - expected).abs().max() < float32_tolerance(16) * 8


@pytest.mark.numerics
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_the_adapted_model(
    base: Callable[..., Path], setup: Callable[..., Any], media: tuple[Path, Any], tmp_path: Path, family: str
) -> None:
    theirs = adapted(base(family)).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    ours = RewardModel.from_pretrained(named(tmp_path / "adapter", base(family))).eval()
    _, prompt_encoder, registry = setup(family)
    (prompt,) = prompt_encoder.prompts([make_prompt(media[1][:1], "what colour")])
    (response,) = prompt_encoder.responses(["it looks red to me"])
    ids = torch.from_numpy(np.concatenate([prompt.tokens, response])).long()[None]
    pixels, grids = registry.patches([registry.decode(i) for i in prompt.images])
    types = (ids == prompt_encoder.image_token).int()
    with torch.inference_mode():
        out = theirs(
            input_ids=ids, mm_token_type_ids=types, pixel_values=pixels, image_grid_thw=grids,
            output_hidden_states=True,
        )  # fmt: skip
        expected = (out.hidden_states[-1][0, -1] @ make_head()[0]).item()
        found = ours(with_pixels(collate([PackedExample(prompt, (response,))]), registry)).item()
    assert found == pytest.approx(expected, abs=score_tolerance(ours, ids.shape[1]), rel=0)


def test_a_setting_that_the_file_leaves_out_is_what_peft_takes(base: Callable[..., Path], tmp_path: Path) -> None:
    adapted(base(), lora_alpha=8).save_pretrained(tmp_path / "adapter")
    full = RewardModel.from_pretrained(named(tmp_path / "adapter", base())).state_dict()
    short = {"peft_type": "LORA", "base_model_name_or_path": str(base())}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(short))
    made = RewardModel.from_pretrained(tmp_path / "adapter").state_dict()
    assert all(torch.equal(value, made[name]) for name, value in full.items())


@pytest.fixture
def lora(base: Callable[..., Path], tmp_path: Path) -> Path:
    """An adapter without a head, as LLaMA-Factory leaves it beside its value head."""
    adapted(base(), head=False).save_pretrained(tmp_path / "lora")
    return named(tmp_path / "lora", base())


@pytest.mark.parametrize("file", ["value_head.safetensors", "value_head.bin", "model.safetensors", "pytorch_model.bin"])
def test_the_value_head_lies_beside_the_adapter(lora: Path, file: str) -> None:
    """LLaMA-Factory's two files, and those of TRL and of LLaMA-Factory before its clean-up, with the head alone."""
    if file.endswith(".bin"):
        torch.save(value_head(make_head()), lora / file)
    else:
        save_file(value_head(make_head()), lora / file)
    model = RewardModel.from_pretrained(lora)
    assert torch.equal(model.head.weight, make_head())
    assert model.card["dropped_bias"] == BIAS


def test_names_of_older_files_and_what_peft_keeps_of_the_head_before(base: Callable[..., Path], lora: Path) -> None:
    weights = load_file(lora / "adapter_model.safetensors")
    older = {name.replace(".weight", ".default.weight"): value for name, value in weights.items()}
    # Transformers before 4.52 had no `language_model` there, and the vision encoder beside the model.
    older = {name.replace(".model.language_model.", ".model."): value for name, value in older.items()}
    older = {name.replace(".model.visual.", ".visual."): value for name, value in older.items()}
    older |= {
        "base_model.model.score.modules_to_save.default.weight": make_head(),
        "base_model.model.score.original_module.weight": make_head(seed=9),
        "base_model.model.lm_head.lora_A.default.weight": torch.ones(4, 32),  # generates text: of no use here
        "base_model.model.lm_head.lora_B.default.weight": torch.ones(7, 4),
    }
    save_file(weights | {"base_model.model.score.weight": make_head()}, lora / "adapter_model.safetensors")
    first = RewardModel.from_pretrained(lora).state_dict()
    save_file(older, lora / "adapter_model.safetensors")
    second = RewardModel.from_pretrained(lora).state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert torch.equal(second["head.weight"], make_head())


def test_without_a_head_of_its_own_an_adapter_has_that_of_its_base_model(
    base: Callable[..., Path], lora: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="lora has no head, so it gives no score"):
        RewardModel.from_pretrained(lora)
    reward_model = ms_swift(base(), tmp_path / "base", make_head(seed=9))
    assert torch.equal(RewardModel.from_pretrained(lora, base_model=reward_model).head.weight, make_head(seed=9))
    save_file(value_head(make_head()), lora / "value_head.safetensors")
    assert torch.equal(RewardModel.from_pretrained(lora, base_model=reward_model).head.weight, make_head())


@pytest.mark.parametrize("bfloat16", [False, True])
def test_an_import_has_the_weights_of_the_adapter_that_is_loaded_as_it_is(
    base: Callable[..., Path], lora: Path, tmp_path: Path, bfloat16: bool
) -> None:
    source = shutil.copytree(base(), tmp_path / "base")
    if bfloat16:
        weights = {name: value.bfloat16() for name, value in load_file(source / "model.safetensors").items()}
        save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((source / "config.json").read_text()) | {"dtype": "bfloat16"}
        (source / "config.json").write_text(json.dumps(config))
    save_file(value_head(make_head()), lora / "value_head.safetensors")
    named(lora, "somebody/elsewhere")
    printed = dt2it("convert", lora, tmp_path / "made", "--base-model", source, "--system-prompt", "You judge.")
    assert "the original's scores are these plus 0.75" in printed
    assert "adapter (LoRA), of a model that config.json calls" in printed
    assert f"base model: {source}, merged with the adapter" in printed
    for dtype in (torch.float32, torch.bfloat16):
        made = RewardModel.from_pretrained(tmp_path / "made", dtype=dtype)
        direct = RewardModel.from_pretrained(lora, base_model=source, dtype=dtype)
        assert all(torch.equal(value, made.state_dict()[name]) for name, value in direct.state_dict().items())
        assert (
            {value.dtype for value in direct.model.parameters()}
            == {dtype}
            == {made.config.dtype}
            == {direct.config.dtype}
        )
    kinds = {
        value.dtype for name, value in load_file(tmp_path / "made" / "model.safetensors").items() if "score" not in name
    }
    assert kinds == {torch.bfloat16 if bfloat16 else torch.float32}
    assert made.card["system_prompt"] == "You judge."
    assert "| base model | base |" in (tmp_path / "made" / "README.md").read_text()
    template = load_processor(source).chat_template
    assert load_processor(tmp_path / "made").chat_template == reward_template(
        template, "You judge.", image_newlines=False, system_default=True
    )


def test_weights_that_come_one_by_one_are_those_of_a_whole_model(base: Callable[..., Path], tmp_path: Path) -> None:
    """Each has its adapter's update, its type and its place when it comes, and none that follows has been copied."""
    folder, came = adapter(base(), tmp_path / "adapter"), dict[str, torch.Tensor]()
    whole = RewardModel.from_pretrained(folder, new_head_seed=0, dtype=torch.bfloat16)

    def take(name: str, parameter: torch.nn.Parameter) -> None:
        came[name] = parameter.data
        parameter.data = parameter.data.new_empty(0)  # as one that was divided

    model = RewardModel.from_pretrained(folder, new_head_seed=0, dtype=torch.bfloat16, each=take)
    assert list(came) == [name for name, _ in whole.model.named_parameters()]
    assert all(torch.equal(came[name], value) for name, value in whole.model.named_parameters())
    assert not any(parameter.numel() for parameter in model.model.parameters())
    buffers = dict(whole.named_buffers())
    assert buffers and all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
    assert model.config.to_dict() == whole.config.to_dict()


def test_training_goes_on_from_the_adapter_and_its_head(job: TrainJob, lora: Path, tmp_path: Path) -> None:
    save_file(value_head(make_head()), lora / "value_head.safetensors")
    this = changed(job, "out", tmp_path, max_steps=1, learning_rate=1e-12)  # a step that changes next to nothing
    run(this.model_copy(update={"base_model": str(lora)}), [].append)
    made, before = RewardModel.from_pretrained(this.output).state_dict(), RewardModel.from_pretrained(lora).state_dict()
    assert max((value - made[name]).abs().max().item() for name, value in before.items()) < 1e-9
    assert torch.allclose(made["head.weight"], make_head(), atol=1e-9, rtol=0)


def test_a_processor_beside_the_adapter_is_the_one_in_use(base: Callable[..., Path], lora: Path) -> None:
    save_file(value_head(make_head()), lora / "value_head.safetensors")
    processor = load_processor(base())
    processor.chat_template = "{{ 'another template' }}"
    processor.save_pretrained(lora)
    model = RewardModel.from_pretrained(lora)
    assert model.processor_source == lora and model.source == base()
    assert load_processor(model.processor_source, family=model.family).chat_template == "{{ 'another template' }}"


def test_a_chat_template_beside_the_adapter_without_its_image_processor_is_refused(
    base: Callable[..., Path], lora: Path
) -> None:
    """TRL writes the tokenizer beside the adapter; where its template is the base model's, that is all the same."""
    save_file(value_head(make_head()), lora / "value_head.safetensors")
    tokenizer = load_processor(base()).tokenizer
    tokenizer.chat_template = load_processor(base()).chat_template
    tokenizer.save_pretrained(lora)
    assert RewardModel.from_pretrained(lora).processor_source == base()
    tokenizer.chat_template = "{{ 'another template' }}"
    tokenizer.save_pretrained(lora)
    with pytest.raises(
        CheckpointError, match=r"chat template of its own.*processor_config\.json.*copy the base model's"
    ):
        RewardModel.from_pretrained(lora)
    shutil.copyfile(base() / "processor_config.json", lora / "processor_config.json")
    assert RewardModel.from_pretrained(lora).processor_source == lora


def test_a_base_model_that_is_not_there_is_named_with_the_command(
    lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    save_file(value_head(make_head()), lora / "value_head.safetensors")
    for name in ("Qwen/Qwen3-VL-8B-Instruct", str(tmp_path / "gone")):
        command = f"dt2it convert {lora} DESTINATION --base-model"
        with pytest.raises(CheckpointError, match=rf"adapter_config\.json names, {name}, is not here \(.*{command}"):
            RewardModel.from_pretrained(named(lora, name))
    printed = " ".join(failing("convert", lora, tmp_path / "made").split())
    assert "--base-model BASE_MODEL_FOLDER" in printed and not (tmp_path / "made").exists()
    with pytest.raises(CheckpointError, match="does not name the base model"):
        RewardModel.from_pretrained(named(lora, ""))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, r"peft_type = 'IA3' cannot be merged here: supported is LoRA with r"),
        ({"use_dora": True}, "use_dora = True"),
        ({"alpha_pattern": {"q_proj": 8}}, r"alpha_pattern = \{'q_proj': 8\}"),
        ({"bias": "all"}, "bias = 'all'"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights = 'pissa_niter_4'"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"lora_alpha": "much"}, "lora_alpha = 'much' is no number"),
    ],
)
def test_another_kind_of_adapter_is_refused(lora: Path, base: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        RewardModel.from_pretrained(named(lora, base(), **changes))


def test_an_adapter_that_does_not_fit_is_refused(base: Callable[..., Path], lora: Path, tmp_path: Path) -> None:
    save_file(value_head(make_head()), lora / "value_head.safetensors")
    weights = load_file(lora / "adapter_model.safetensors")
    name = next(name for name in weights if "q_proj.lora_A" in name)

    def written(**changes: torch.Tensor) -> Path:
        save_file(weights | changes, lora / "adapter_model.safetensors")
        return lora

    cases: list[tuple[dict[str, torch.Tensor], str]] = [
        ({"base_model.model.x.lora_A.weight": torch.ones(4, 4)}, r"1 weights .* such as base_model\.model\.x\.lora_A"),
        ({"base_model.model.score.lora_A.weight": torch.ones(4, 32)}, r"such as base_model\.model\.score\.lora_A"),
        ({name: torch.ones(4, 33)}, r"q_proj\.weight has shape \(64, 32\), its adapter \(64, 4\) times \(4, 33\)"),
        ({name: torch.full_like(weights[name], float("inf"))}, "values that are not finite"),
        ({name.replace("q_proj", "v_proj"): weights[name].clone()}, "one of lora_A and lora_B alone"),
        (
            {"base_model.model.model.language_model.norm.weight": torch.ones(3)},
            r"shape \(3,\), in the base model \(32,\)",
        ),
    ]
    for changes, message in cases:
        with pytest.raises(CheckpointError, match=message):
            RewardModel.from_pretrained(written(**changes))
    (lora / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights of an adapter"):
        RewardModel.from_pretrained(lora)
    shutil.copyfile(base() / "model.safetensors", lora / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"an adapter .* and whole weights \(model\.safetensors\): remove one"):
        RewardModel.from_pretrained(lora)


def test_a_base_model_of_another_size_is_refused(lora: Path, tmp_path: Path) -> None:
    (tmp_path / "wider").mkdir()
    wider = make_tiny(tmp_path / "wider", hidden=64)
    with pytest.raises(CheckpointError, match="trained on another base model"):
        RewardModel.from_pretrained(lora, base_model=wider, new_head_seed=0)
    with pytest.raises(CheckpointError, match="is an adapter itself"):
        RewardModel.from_pretrained(lora, base_model=lora)
    with pytest.raises(CheckpointError, match="so it takes no base model"):
        import_checkpoint(wider, tmp_path / "made", base_model=wider)
