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
from safetensors.torch import load_file, save_file

from dt2it_pipeline.config.paths import model_path
from dt2it_pipeline.reward.data.collation import PackedExample, collate, with_pixels
from dt2it_pipeline.reward.data.preparation import prompt_rows
from dt2it_pipeline.reward.modeling.checkpoint import CheckpointError
from dt2it_pipeline.reward.modeling.llamafactory import BIAS, WEIGHT, import_llamafactory
from dt2it_pipeline.reward.reward_model import RewardModel
from dt2it_pipeline.reward.scoring.scorer import Scorer
from dt2it_pipeline.storage import atomic
from dt2it_pipeline_tests.support.commands import dt2it, failing
from dt2it_pipeline_tests.support.tiny import make_prompt
from dt2it_pipeline_tests.support.tolerance import score_tolerance


def head(hidden: int = 32, bias: float = 0.75) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    weight = torch.randn(1, hidden, generator=generator)
    return {"v_head.summary.weight": weight, "v_head.summary.bias": torch.tensor([bias])}


@pytest.mark.numerics
@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
@pytest.mark.parametrize("pickled", [False, True])
def test_scores_are_the_hidden_state_times_the_head(
    base: Callable[[str], Path],
    setup: Callable[..., Any],
    media: tuple[Path, Any],
    tmp_path: Path,
    family: str,
    pickled: bool,
) -> None:
    source = shutil.copytree(base(family), tmp_path / "source")
    if pickled:
        torch.save(head(), source / "value_head.bin")
    else:
        save_file(head(), source / "value_head.safetensors")
    offset = import_llamafactory(source, tmp_path / "made", system_prompt="You judge.", max_pixels=65536)
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
        original = (hidden[0, -1] * head()["v_head.summary.weight"][0]).sum() + 0.75
        ours = model(with_pixels(collate([PackedExample(prompt, (response,))]), registry))
        within = score_tolerance(model, ids.shape[1])
        assert ours.item() + offset == pytest.approx(original.item(), abs=within, rel=0)


def test_the_backbone_keeps_its_type(base: Callable[..., Path], tmp_path: Path) -> None:
    source = shutil.copytree(base(), tmp_path / "source")
    weights = {name: value.bfloat16() for name, value in load_file(source / "model.safetensors").items()}
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text()) | {"dtype": "bfloat16"}
    (source / "config.json").write_text(json.dumps(config))
    save_file(head(), source / "value_head.safetensors")
    printed = dt2it("convert", source, tmp_path / "made")
    assert "the original's scores are these plus 0.75" in printed
    made = load_file(tmp_path / "made" / "model.safetensors")
    assert made["score.weight"].dtype == torch.float32
    assert {value.dtype for name, value in made.items() if name != "score.weight"} == {torch.bfloat16}
    name = "model.language_model.norm.weight"
    assert torch.equal(made[name], weights[name])


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (None, "has no value head: neither value_head.safetensors nor value_head.bin"),
        ({"other": torch.zeros(1)}, r"has no v_head\.summary\.weight, only \['other'\]"),
        (head(hidden=64), r"shape \(1, 64\), the backbone needs \(1, 32\)"),
        (head() | {"v_head.summary.bias": torch.zeros(2)}, r"v_head\.summary\.bias has shape \(2,\)"),
        ({"v_head.summary.weight": torch.full((1, 32), float("nan"))}, "not finite"),
    ],
)
def test_a_head_that_does_not_fit_is_refused(
    base: Callable[..., Path], tmp_path: Path, tensors: dict[str, torch.Tensor] | None, message: str
) -> None:
    source = shutil.copytree(base(), tmp_path / "source")
    if tensors is not None:
        save_file(tensors, source / "value_head.safetensors")
    with pytest.raises(CheckpointError, match=message):
        import_llamafactory(source, tmp_path / "made")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_other_folders_are_refused(base: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no folder"):
        import_llamafactory(tmp_path / "nowhere", tmp_path / "made")
    source = shutil.copytree(base(), tmp_path / "source")
    (source / "value_head.bin").write_bytes(b"not a pickle")
    with pytest.raises(CheckpointError, match="cannot be read"):
        import_llamafactory(source, tmp_path / "made")
    (source / "value_head.bin").unlink()
    save_file(head(), source / "value_head.safetensors")
    (tmp_path / "made").mkdir()
    with pytest.raises(CheckpointError, match="exists already"):
        import_llamafactory(source, tmp_path / "made")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"model_type": "llama", "architectures": ["Llama"]}))
    assert re.search(r"Llama.*made of qwen3_vl or qwen2_5_vl", failing("convert", source, tmp_path / "other"))


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
    assert {name: tuple(value.shape) for name, value in head(hidden=128).items()} == WRITTEN
    assert set(WRITTEN) == {WEIGHT, BIAS}


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

    offset = import_llamafactory(tmp_path / "theirs", tmp_path / "made", system_prompt=SYSTEM, max_pixels=10**6)
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
