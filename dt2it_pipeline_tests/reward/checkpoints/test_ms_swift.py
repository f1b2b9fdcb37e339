"""Reward models that ms-swift itself trains, in an environment of its own, keep their scores here.

SWIFT_PYTHON names its python: ms-swift 4.6.0 with qwen-vl-utils, beside a torch for CPUs.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from dt2it_pipeline.reward.foreign import import_checkpoint
from dt2it_pipeline.reward.reward_model import RewardModel
from dt2it_pipeline_tests.support.tiny import WORDS, make_tiny
from dt2it_pipeline_tests.support.trainer_layouts import make_head, ms_swift

ROOT = Path(__file__).parents[3]
PATCH = {"qwen3_vl": 16, "qwen2_5_vl": 14}
# Trains, then writes the scores of the trained model in memory. ms-swift takes the numbers of Qwen's image and video
# tokens for granted; the tiny vocabulary has others.
THEIR_RUN = """
import json, sys
from dt2it_pipeline.engines.torchvision_shim import ensure_torchvision

ensure_torchvision()
import torch
from swift.pipelines.train.rlhf import SwiftRLHF
from swift.rlhf_trainers import RewardTrainer
from swift.template.templates.qwen import Qwen2VLTemplate

base, scores, *arguments = sys.argv[1:]
config = json.load(open(base + "/config.json"))
Qwen2VLTemplate.image_token_id, Qwen2VLTemplate.video_token_id = config["image_token_id"], config["video_token_id"]
trained, train = [], RewardTrainer.train
RewardTrainer.train = lambda self, *given, **named: (trained.append(self), train(self, *given, **named))[1]
SwiftRLHF(arguments).main()
(trainer,) = trained
model, found = trainer.model.eval(), [[], []]
with torch.no_grad():
    for batch in trainer.get_eval_dataloader():
        for side, values in zip(found, trainer.compute_loss(model, batch, return_outputs=True)[1].values()):
            side += values.flatten().tolist()
json.dump(found, open(scores, "w"))
"""


def make_rows(folder: Path, side: int) -> list[dict[str, Any]]:
    """Pairs with no image, one and two, with and without a system turn, and of several turns; saved as ms-swift reads
    them. Sides of images are multiples of `side`, so that nobody resamples them."""
    generator = np.random.default_rng(5)
    images = []
    for number, (height, width) in enumerate([(5, 6), (8, 4), (9, 9)]):
        pixels = generator.integers(0, 255, (height * side, width * side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        images.append(str(folder / f"{number}.png"))
    rows, theirs = [], []
    for number in range(8):
        shown = [images[(number + place) % 3] for place in range((1, 0, 2, 1)[number % 4])]
        turns = [{"role": "user", "text": "<image>" * len(shown) + " ".join(generator.choice(WORDS, 5))}]
        if number % 4 == 3:
            turns += [{"role": "assistant", "text": "a circle"}, {"role": "user", "text": "is it blue"}]
        system = "Be kind." if number == 5 else ""
        answers = [" ".join(generator.choice(WORDS, int(generator.integers(2, 8)))) + end for end in (" yes", " no")]
        rows.append({"turns": turns, "images": shown, "system": system, "responses": answers})
        messages = [{"role": "system", "content": system}] if system else []
        messages += [{"role": turn["role"], "content": turn["text"]} for turn in turns]
        messages.append({"role": "assistant", "content": answers[0]})
        theirs.append({"messages": messages, "rejected_response": answers[1], "images": shown})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in theirs))
    return rows


def names_and_arguments(folder: Path) -> tuple[set[str], set[str]]:
    """Names of weights, and of arguments that the reader of args.json looks at."""
    with safe_open(folder / "model.safetensors", framework="pt") as weights:
        names = set(weights.keys())
    return names, set(json.loads((folder / "args.json").read_text()))


@pytest.mark.heavy
@pytest.mark.parametrize("tuner", ["full", "lora"])
@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
def test_a_checkpoint_that_ms_swift_wrote_keeps_its_scores(tmp_path: Path, family: str, tuner: str) -> None:
    python = os.environ.get("SWIFT_PYTHON")
    if not python:
        pytest.skip("SWIFT_PYTHON names no python of an environment with ms-swift")
    base = make_tiny(tmp_path / "base", family, patch=PATCH[family])
    rows = make_rows(tmp_path, 2 * PATCH[family])
    (tmp_path / "run.py").write_text(THEIR_RUN)
    output, scores, data = tmp_path / "theirs", tmp_path / "scores.json", str(tmp_path / "rows.jsonl")
    arguments = {
        "rlhf_type": "rm", "model": base, "model_type": family, "template": family, "tuner_type": tuner,
        "torch_dtype": "float32", "fp16": False, "bf16": False, "use_cpu": True, "dataset": data, "val_dataset": data,
        "split_dataset_ratio": 0, "per_device_train_batch_size": 2, "per_device_eval_batch_size": 2,
        "gradient_accumulation_steps": 1, "max_steps": 3, "learning_rate": 1e-2, "gradient_checkpointing": False,
        "save_strategy": "steps", "save_steps": 3, "eval_strategy": "no", "report_to": "none", "use_hf": True,
        "output_dir": output, "add_version": False, "check_model": False, "dataset_num_proc": 1,
    }  # fmt: skip
    given = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [python, str(tmp_path / "run.py"), str(base), str(scores), *given],
        env=environment | {"HF_HOME": str(tmp_path / "cache"), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    source = output / "checkpoint-3"
    if tuner == "full":  # the fast tests' layout looks like this one
        names, written = names_and_arguments(source)
        fake_names, fake_arguments = names_and_arguments(ms_swift(base, tmp_path / "fake", make_head()))
        assert names == fake_names and written >= fake_arguments
        config, fake = (json.loads((at / "config.json").read_text()) for at in (source, tmp_path / "fake"))
        for key in ("architectures", "problem_type", "model_type"):
            assert config[key] == fake[key]
    import_checkpoint(source, tmp_path / "made")
    expected = np.array(json.loads(scores.read_text())).T
    for folder in (source, tmp_path / "made"):
        prompts = [{key: row[key] for key in ("turns", "images", "system")} for row in rows]
        ours = np.stack(RewardModel.from_pretrained(folder).score(prompts, [row["responses"] for row in rows]))
        print(f"{folder.name}: largest difference {abs(ours - expected).max():.1e} of {np.ptp(expected):.2f}")
        assert abs(ours - expected).max() < 1e-5
    assert np.ptp(expected) > 0.1
