"""Reads our exports with the loading and preprocessing code of TRL and LLaMA-Factory themselves, and trains two steps.

    python -m benchmarks.readers --trl TRL_ENVIRONMENT/bin/python --llamafactory LLAMA_FACTORY_ENVIRONMENT/bin/python

Either may be left out. They live in environments of their own, which this script takes and never makes:

    python3.11 -m venv trl_venv && trl_venv/bin/pip install trl==1.16.0 torch torchvision
    python3.11 -m venv lf_venv && lf_venv/bin/pip install llamafactory==0.9.5 torch torchvision torchaudio

Six pairs are exported: with one image, two, none; several turns; a system prompt; Chinese. LLaMA-Factory loads them
for its stage `rm` by `get_dataset` and its collator; TRL by `DPOTrainer` with its vision collator, images and all,
and those without images by `RewardTrainer`, which takes text alone. What reaches the model is compared pair by pair:
both answers' words, the images, and how many of them the prompt shows. Ends with an error where one differs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from dt2it_pipeline.storage import content_ids, records

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "dt2it_pipeline/demo/base_model"
_SHOWN = "<|vision_start|>"  # once per image


def export_some(folder: Path) -> list[dict[str, Any]]:
    """Write both exports; returns what every pair holds: images, chosen and rejected."""
    import hashlib

    from PIL import Image

    from dt2it_pipeline.export import export_pairs
    from dt2it_pipeline.storage import schemas

    def prompt(turns: list[tuple[str, str]], colors: tuple[str, ...] = (), system: str = "") -> dict[str, Any]:
        texts = [{"role": role, "text": text} for role, text in turns]
        media = []
        for color in colors:
            file = folder / "media" / f"{color}.png"
            file.parent.mkdir(exist_ok=True)
            Image.new("RGB", (64, 32), color).save(file)
            media.append({"kind": "image", "sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "path": file.name})
        key = content_ids.prompt_id(system, texts, [medium["sha256"] for medium in media])
        rest = {"source": "s", "reference": None, "language": "en", "meta": "{}"}
        return {"prompt_id": key, "system": system, "turns": texts, "media": media} | rest

    prompts = [
        prompt([("user", "<image>\nwhat colour?")], ("red",)),
        prompt([("user", "first <image> then <image>?")], ("green", "blue")),
        prompt([("user", 'just words "quoted" | 图')]),
        prompt([("user", "<image>hi"), ("assistant", "hello"), ("user", "and now?")], ("yellow",), "Be kind."),
        prompt([("user", "no image")], (), "Be kind."),
        prompt([("user", "one"), ("assistant", "two"), ("user", "three")]),
    ]
    pairs = [
        records.make_pair(p["prompt_id"], f"better {n}", f"worse {n}", source="s", strength=n / 3 if n else None)
        for n, p in enumerate(prompts)
    ]
    for name in ("trl", "llamafactory"):
        export_pairs(
            schemas.table(pairs, "pairs"), schemas.table(prompts, "prompts"), folder / "media", folder / name, name
        )
    return [
        {"images": len(p["media"]), "chosen": pair["chosen"], "rejected": pair["rejected"]}
        for p, pair in zip(prompts, pairs, strict=True)
    ]


def _answers(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()


def read_with_llamafactory(folder: Path) -> list[dict[str, Any]]:
    """In an environment of LLaMA-Factory: its arguments, template, dataset, preprocessing, collator and trainer."""
    from benchmarks.llamafactory import make_importable

    make_importable()
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.data.collator import PairwiseDataCollatorWithPadding
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer
    from llamafactory.train.tuner import run_exp

    arguments = {
        "model_name_or_path": str(MODEL),
        "stage": "rm",
        "do_train": True,
        "finetuning_type": "full",
        "template": "qwen3_vl_nothink",
        "dataset": "dt2it_pairs",
        "dataset_dir": str(folder / "llamafactory"),
        "cutoff_len": 512,
        "output_dir": str(folder / "out"),
        "per_device_train_batch_size": 3,
        "max_steps": 2,
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
    }
    model_args, data_args, training_args, _, _ = get_train_args(dict(arguments))
    module = load_tokenizer(model_args)
    tokenizer = module["tokenizer"]
    template = get_template_and_fix_tokenizer(tokenizer, data_args)
    made = get_dataset(template, model_args, data_args, training_args, stage="rm", **module)["train_dataset"]
    collator = PairwiseDataCollatorWithPadding(template=template, **module)
    read = []
    for row in made:
        batch = collator([row])
        sides = {
            side: _answers(tokenizer, [token for token in row[f"{side}_labels"] if token >= 0])
            for side in ("chosen", "rejected")
        }
        words = tokenizer.decode(row["chosen_input_ids"])
        # Both sides of the pair carry the images.
        images = 0 if batch.get("image_grid_thw") is None else len(batch["image_grid_thw"]) // 2
        shown = words.count(_SHOWN) if row["images"] else 0  # rows without images may get a dummy in the collator
        read.append({"images": len(row["images"] or []), "shown": shown, "collated": images} | sides)
    run_exp(dict(arguments))
    return read


def read_with_trl(folder: Path) -> list[dict[str, Any]]:
    """In an environment of TRL: `DPOTrainer` with images, and `RewardTrainer` on what has none."""
    from dt2it_pipeline.engines.torchvision_shim import ensure_torchvision

    ensure_torchvision()
    import datasets
    from transformers import AutoProcessor, AutoTokenizer, Qwen3Config, Qwen3ForSequenceClassification
    from transformers import Qwen3VLForConditionalGeneration as Model
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

    rows = datasets.load_dataset(str(folder / "trl"), cache_dir=str(folder / "cache"), split="train")
    processor = AutoProcessor.from_pretrained(MODEL)
    common = {
        "per_device_train_batch_size": 3, "max_steps": 2, "use_cpu": True, "report_to": "none", "save_strategy": "no",
        "disable_tqdm": True, "bf16": False, "gradient_checkpointing": False,
    }  # fmt: skip
    trainer = DPOTrainer(
        model=Model.from_pretrained(MODEL, dtype="float32"),
        ref_model=Model.from_pretrained(MODEL, dtype="float32"),
        args=DPOConfig(output_dir=str(folder / "dpo"), max_length=None, **common),
        train_dataset=rows,
        processing_class=processor,
    )
    read = []
    for row in trainer.train_dataset:
        batch = trainer.data_collator([dict(row)])
        tokens, completion = batch["input_ids"], batch["completion_mask"]
        answers = [_answers(processor.tokenizer, t[m.bool()].tolist()) for t, m in zip(tokens, completion, strict=True)]
        grid = batch.get("image_grid_thw")
        shown = processor.tokenizer.decode(tokens[0]).count(_SHOWN)
        read.append(
            {"images": len(row["images"]), "shown": shown, "collated": 0 if grid is None else len(grid) // 2}
            | {"chosen": answers[0], "rejected": answers[1]}
        )
    trainer.train()

    words = rows.filter(lambda row: not row["images"])
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Qwen3Config(
        vocab_size=len(tokenizer), num_key_value_heads=1, head_dim=16, num_labels=1,
        pad_token_id=tokenizer.pad_token_id, **small,
    )  # fmt: skip
    reward = RewardTrainer(
        model=Qwen3ForSequenceClassification(config),
        args=RewardConfig(output_dir=str(folder / "reward"), **common),
        train_dataset=words,
        processing_class=tokenizer,
    )
    for row in reward.train_dataset:
        for side in ("chosen", "rejected"):
            text = tokenizer.decode(row[f"{side}_ids"], skip_special_tokens=True).strip()
            original = next(one for one in words if one["pair_id"] == row["pair_id"])
            texts = [message["content"][0]["text"] for message in (*original["prompt"], *original[side])]
            if not text.endswith(texts[-1]) or not all(words_of in text for words_of in texts):
                raise SystemExit(f"RewardTrainer: exported {texts}, read {text!r}")
    if len(reward.train_dataset) != len(words):
        raise SystemExit(f"RewardTrainer read {len(reward.train_dataset)} of {len(words)} pairs")
    reward.train()
    return read


def compare(name: str, expected: list[dict[str, Any]], read: list[dict[str, Any]]) -> None:
    """Raise SystemExit where what was read is not what was exported."""
    if len(read) != len(expected):
        raise SystemExit(f"{name} read {len(read)} of {len(expected)} pairs")
    for number, (wanted, found) in enumerate(zip(expected, read, strict=True)):
        whole = wanted | {"shown": wanted["images"], "collated": wanted["images"]}
        if not wanted["images"]:  # a batch without images may get a blank one, so that every step looks alike
            whole["collated"] = found["collated"]
        if whole != found:
            raise SystemExit(f"{name}, pair {number}: exported {whole}, read {found}")
    print(f"{name}: {len(read)} pairs read as they were exported, two steps trained")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", help="python of an environment with TRL 1.16.0")
    parser.add_argument("--llamafactory", help="python of an environment with LLaMA-Factory 0.9.5")
    parser.add_argument("--read", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.read:
        name, folder = given.read[0], Path(given.read[1])
        read = (read_with_trl if name == "trl" else read_with_llamafactory)(folder)
        (folder / f"{name}.json").write_text(json.dumps(read), encoding="utf-8")
        return
    pythons = {name: python for name in ("trl", "llamafactory") if (python := getattr(given, name))}
    missing = [python for python in pythons.values() if shutil.which(python) is None]
    if missing or not pythons:
        parser.error(f"name a python by --trl or --llamafactory; --help says how to make one {missing or ''}")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        expected = export_some(folder)
        environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
        environment |= {"HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "DISABLE_VERSION_CHECK": "1"}
        for name, python in pythons.items():
            command = [python, "-m", "benchmarks.readers", "--read", name, str(folder)]
            done = subprocess.run(command, env=environment, cwd=folder, stdout=sys.stderr, check=False)
            if done.returncode:
                raise SystemExit(f"{name} ended with status {done.returncode}")
            compare(name, expected, json.loads((folder / f"{name}.json").read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
