from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from dt2it_pipeline.config.paths import model_path
from dt2it_pipeline.reward.checkpoints.checkpoint import CheckpointError, resolve_folder
from dt2it_pipeline.reward.checkpoints.heads import serving_fault
from dt2it_pipeline.reward.data.collation import PackedExample, collate, with_pixels
from dt2it_pipeline.reward.data.preparation import prompt_rows
from dt2it_pipeline.reward.foreign import import_checkpoint
from dt2it_pipeline.reward.reward_model import RewardModel
from dt2it_pipeline.reward.scoring.scorer import Scorer
from dt2it_pipeline.storage import atomic
from dt2it_pipeline_tests.support.commands import dt2it, failing
from dt2it_pipeline_tests.support.tiny import make_prompt
from dt2it_pipeline_tests.support.tolerance import score_tolerance
from dt2it_pipeline_tests.support.trainer_layouts import (
    Layout,
    head_with_bias,
    llamafactory,
    make_head,
    ms_swift,
    older_ms_swift,
    sequence_classification,
    trl_value_head,
    value_head,
)


def test_a_folder_that_does_not_say_how_images_are_read_is_not_converted(
    base: Callable[[str], Path], tmp_path: Path
) -> None:
    source = llamafactory(base("qwen3_vl"), tmp_path / "source", make_head())
    for name in ("processor_config.json", "preprocessor_config.json"):
        (source / name).unlink(missing_ok=True)
    said = failing("convert", source, tmp_path / "made")
    assert f"{source} has neither processor_config.json" in said and not (tmp_path / "made").exists()


@pytest.mark.parametrize("known", [True, False])
def test_converting_says_where_no_system_turn_is_known(
    base: Callable[[str], Path], tmp_path: Path, known: bool
) -> None:
    source = llamafactory(base("qwen3_vl"), tmp_path / "source", make_head())
    said = dt2it("convert", source, tmp_path / "made", *(["--system-prompt", ""] if known else []))
    assert ("system turn: not known, since no file names it" in said) is not known


@pytest.mark.numerics
@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
@pytest.mark.parametrize("layout", [llamafactory, trl_value_head])
def test_scores_are_the_hidden_state_times_the_head(
    base: Callable[[str], Path],
    setup: Callable[..., Any],
    media: tuple[Path, Any],
    tmp_path: Path,
    family: str,
    layout: Layout,
) -> None:
    source = layout(base(family), tmp_path / "source", make_head())
    offset = import_checkpoint(source, tmp_path / "made", system_prompt="You judge.", max_pixels=65536).dropped_bias
    assert offset == 0.75

    backbone, prompt_encoder, registry = setup(family)
    model = RewardModel.from_pretrained(tmp_path / "made").eval()
    assert model.card["dropped_bias"] == 0.75
    assert "0.75" in (tmp_path / "made" / "README.md").read_text()
    for shown in (0, 1, 2):
        (prompt,) = prompt_encoder.prompts([make_prompt(media[1][:shown], "what colour")])
        (response,) = prompt_encoder.responses(["it looks red to me"])
        ids = torch.from_numpy(np.concatenate([prompt.tokens, response])).long()[None]
        given = {}
        if shown:
            pixels, grids = registry.patches([registry.decode(i) for i in prompt.images])
            given = {"pixel_values": pixels, "image_grid_thw": grids}
        types = (ids == prompt_encoder.image_token).int()
        hidden = backbone.model(input_ids=ids, mm_token_type_ids=types, **given).last_hidden_state
        original = (hidden[0, -1] * make_head()[0]).sum() + 0.75
        ours = model(with_pixels(collate([PackedExample(prompt, (response,))]), registry))
        within = score_tolerance(model, ids.shape[1])
        assert ours.item() + offset == pytest.approx(original.item(), abs=within, rel=0)


def test_the_backbone_keeps_its_type(base: Callable[..., Path], tmp_path: Path) -> None:
    source = shutil.copytree(base(), tmp_path / "source")
    weights = {name: value.bfloat16() for name, value in load_file(source / "model.safetensors").items()}
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text()) | {"dtype": "bfloat16"}
    (source / "config.json").write_text(json.dumps(config))
    save_file(value_head(make_head()), source / "value_head.safetensors")
    printed = dt2it("convert", source, tmp_path / "made")
    assert "the original's scores are these plus 0.75" in printed
    made = load_file(tmp_path / "made" / "model.safetensors")
    assert made["score.weight"].dtype == torch.float32
    assert {value.dtype for name, value in made.items() if name != "score.weight"} == {torch.bfloat16}
    name = "model.language_model.norm.weight"
    assert torch.equal(made[name], weights[name])


def test_what_cannot_be_imported_leaves_nothing_behind(base: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="the name of a model is empty"):
        resolve_folder("")
    with pytest.raises(CheckpointError, match="no model folder"):
        import_checkpoint(tmp_path / "nowhere", tmp_path / "made")
    with pytest.raises(CheckpointError, match="has no head"):
        import_checkpoint(base(), tmp_path / "made")
    assert not list(tmp_path.iterdir())
    source = llamafactory(base(), tmp_path / "source", make_head())
    (tmp_path / "made").mkdir()
    with pytest.raises(CheckpointError, match="exists already"):
        import_checkpoint(source, tmp_path / "made")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"model_type": "llama", "architectures": ["Llama"]}))
    assert re.search(r"Llama.*made of qwen3_vl or qwen2_5_vl", failing("convert", source, tmp_path / "other"))


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
@pytest.mark.parametrize("layout", [ms_swift, older_ms_swift, sequence_classification, head_with_bias])
def test_what_is_imported_is_in_our_layout(
    base: Callable[[str], Path], tmp_path: Path, layout: Layout, family: str
) -> None:
    source = layout(base(family), tmp_path / "source", make_head())
    printed = dt2it("convert", source, tmp_path / "made")
    assert ("plus 0.75" in printed) == (layout is head_with_bias)
    assert serving_fault(tmp_path / "made") is None
    made, direct = RewardModel.from_pretrained(tmp_path / "made"), RewardModel.from_pretrained(source)
    assert all(torch.equal(value, made.state_dict()[name]) for name, value in direct.state_dict().items())
    assert made.card["imported_from"] == "score.weight in model.safetensors"


def test_a_card_that_the_source_has_is_kept(base: Callable[[str], Path], tmp_path: Path) -> None:
    model = RewardModel.from_pretrained(base("qwen3_vl"), new_head_seed=0)
    model.card |= {"system_prompt": "You judge.", "max_pixels": 4096}
    (tmp_path / "ours").mkdir()
    model.save_pretrained(tmp_path / "ours")
    import_checkpoint(tmp_path / "ours", tmp_path / "made")
    import_checkpoint(tmp_path / "ours", tmp_path / "other", system_prompt="", max_pixels=2048)
    assert RewardModel.from_pretrained(tmp_path / "made").card.items() >= model.card.items()
    other = RewardModel.from_pretrained(tmp_path / "other").card
    assert (other["system_prompt"], other["max_pixels"]) == ("", 2048)


@pytest.mark.numerics
@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
def test_transformers_alone_gives_the_same_score(
    base: Callable[[str], Path], media: tuple[Path, Any], tmp_path: Path, family: str
) -> None:
    """By its Auto class where it has one for the family, else by the lines of the card."""
    from transformers import AutoModelForSequenceClassification, AutoProcessor
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as CLASSES

    import_checkpoint(ms_swift(base(family), tmp_path / "source", make_head()), tmp_path / "made")
    model = RewardModel.from_pretrained(tmp_path / "made").eval()
    image = media[0] / media[1][0]["path"]
    prompt = {"turns": [{"role": "user", "text": "<image>what colour"}], "images": [image]}
    (expected,) = model.score([prompt], [["it looks red"]])
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what colour"}]},
        {"role": "assistant", "content": "it looks red"},
    ]
    processor = AutoProcessor.from_pretrained(tmp_path / "made")
    text = processor.apply_chat_template(messages, tokenize=False)
    inputs = processor(text=[text], images=[Image.open(image)], return_tensors="pt")
    if family in CLASSES:
        whole = AutoModelForSequenceClassification.from_pretrained(tmp_path / "made", dtype=torch.float32).eval()
        score = whole(**inputs).logits[0, 0]
    else:
        card = (tmp_path / "made" / "README.md").read_text()
        lines = re.search(r"With Transformers alone.*?```python\n(.*?)```", card, re.S)
        assert lines is not None
        names: dict[str, Any] = {"inputs": inputs}
        exec(lines[1].replace("CHECKPOINT", str(tmp_path / "made")), names)
        score = names["score"]
    assert score.item() == pytest.approx(expected.item(), abs=score_tolerance(model, inputs["input_ids"].shape[1]))


# Names and shapes in a value_head.safetensors that LLaMA-Factory 0.9.5 wrote for a model of hidden size 128.
WRITTEN = {"v_head.summary.bias": (1,), "v_head.summary.weight": (1, 128)}
# Runs in LLaMA-Factory's environment: trains, then writes its own scores of the same pairs, which it would round.
THEIR_RUN = """
import json, sys
from pathlib import Path
from benchmarks.llamafactory import make_importable, train_with_llamafactory

make_importable()
from llamafactory.train.rm.trainer import PairwiseTrainer

def save(trainer, results):
    chosen, rejected = ([float(score) for score in side] for side in results.predictions)
    Path(sys.argv[2]).write_text(json.dumps([chosen, rejected]))

PairwiseTrainer.save_predictions = save
train_with_llamafactory(json.loads(Path(sys.argv[1]).read_text()))
"""


def test_the_heads_made_up_here_look_like_what_llamafactory_writes() -> None:
    """So that the fast tests stand for real checkpoints where LLaMA-Factory is not installed."""
    assert {name: tuple(value.shape) for name, value in value_head(make_head(128)).items()} == WRITTEN


@pytest.mark.heavy
def test_a_checkpoint_that_llamafactory_wrote_keeps_its_scores(tmp_path: Path) -> None:
    """LLaMA-Factory itself writes the checkpoint, in an environment of its own; see benchmarks/llamafactory.py."""
    python = os.environ.get("LLAMAFACTORY_PYTHON")
    if not python:
        pytest.skip("LLAMAFACTORY_PYTHON names no python of an environment with LLaMA-Factory")
    from benchmarks.llamafactory import ROOT, make_data, make_model, their_arguments
    from benchmarks.scoring import SYSTEM

    make_model(Path(model_path("demo")), tmp_path / "model")
    data = make_data(tmp_path, 24)
    arguments = their_arguments(tmp_path, batch=8, steps=3) | {
        "do_predict": True, "eval_dataset": "pairs", "per_device_eval_batch_size": 4, "save_strategy": "steps",
    }  # fmt: skip
    (tmp_path / "arguments.json").write_text(json.dumps(arguments))
    (tmp_path / "run.py").write_text(THEIR_RUN)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "DISABLE_VERSION_CHECK": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [python, str(tmp_path / "run.py"), str(tmp_path / "arguments.json"), str(tmp_path / "scores.json")],
        env=environment | {"HF_HOME": str(tmp_path / "cache"), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    written = load_file(tmp_path / "theirs" / "value_head.safetensors")
    assert {name: tuple(value.shape) for name, value in written.items()} == WRITTEN

    offset = import_checkpoint(
        tmp_path / "theirs", tmp_path / "made", system_prompt=SYSTEM, max_pixels=10**6
    ).dropped_bias
    scorer = Scorer(tmp_path / "made", data["media"], max_length=512, max_pixels=10**6, tokens_per_batch=4096)
    pairs = atomic.read_parquet(data["pairs"], "pairs").to_pylist()
    prompts = prompt_rows(atomic.read_parquet(data["prompts"], "prompts"), {row["prompt_id"] for row in pairs})
    asked = [(row[f"{side}_id"], row["prompt_id"], row[side]) for row in pairs for side in ("chosen", "rejected")]
    ours, faults = scorer.score(prompts, asked)
    assert not faults
    theirs = json.loads((tmp_path / "scores.json").read_text())
    differences = [
        abs(ours[row[f"{side}_id"]] + offset - score)
        for side, scores in zip(("chosen", "rejected"), theirs, strict=True)
        for row, score in zip(pairs, scores, strict=True)
    ]
    print(f"largest difference {max(differences):.2e} over {len(differences)} responses")
    assert max(differences) < 1e-4
    assert max(ours.values()) - min(ours.values()) > 1e-2
