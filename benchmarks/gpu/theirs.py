"""LLaMA-Factory's reward-modelling stage on the same model and pairs, in an environment of its own.

Alike: model files, pairs and JPEG files, tokens of a prompt's image, pairs of a forward pass and of a step, AdamW,
learning rate and its schedule, clipping, what is frozen, gradient checkpointing, LoRA, processes that read images.
`benchmarks/README.md` says what is not alike.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.case import Case
from benchmarks.gpu.data import prompt_rows
from benchmarks.gpu.figures import OUT_OF_MEMORY, Result
from benchmarks.gpu.shapes import SHAPES
from benchmarks.gpu.their_process import Unfit
from benchmarks.llamafactory import ROOT, make_model, their_arguments, write_ranking
from dt2it_pipeline.errors import WorkerError
from dt2it_pipeline.reward.training.batches import loader_workers
from dt2it_pipeline.storage import atomic

_TEMPLATES = {"qwen3_vl": "qwen3_vl_nothink", "qwen2_5_vl": "qwen2_vl"}


class TheirError(WorkerError):
    """LLaMA-Factory's process failed; the message is one sentence."""


@dataclass
class Events:
    """What LLaMA-Factory's process wrote, see their_process.py.

    Attributes:
        versions: of its packages.
        tokens: of a pair, both responses with a prompt each, padding not counted.
        times: at which the optimiser steps ended, in seconds since 1970.
        memory: its peak, in bytes.
        failed: type of the exception that ended it.
        message: of that exception.
    """

    versions: dict[str, str] = field(default_factory=dict)
    tokens: float | None = None
    times: list[float] = field(default_factory=list)
    memory: int | None = None
    failed: str = ""
    message: str = ""


def arguments(case: Case, place: Path, pixels: int, *, cuda: bool) -> dict[str, Any]:
    """Arguments of LLaMA-Factory for the training that the case's settings describe.

    Args:
        case: whose settings and `their_settings` count.
        place: folder of the data set.
        pixels: to which an image is scaled down.
        cuda: whether there is a GPU: bfloat16 on it, float32 without.
    """
    settings = case.settings
    shape = SHAPES[case.shape]
    made = their_arguments(place, settings.micro_batch_size, case.warmup + case.steps) | {
        "model_name_or_path": str(case.base if cuda else place / "model"),
        "template": _TEMPLATES[shape.family],
        "cutoff_len": settings.max_length or shape.text["max_position_embeddings"],
        "image_max_pixels": pixels,
        "gradient_accumulation_steps": max(1, settings.global_batch_size // settings.micro_batch_size),
        "learning_rate": settings.learning_rate,
        "warmup_ratio": settings.warmup_ratio,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "disable_gradient_checkpointing": not settings.gradient_checkpointing,
        "use_cpu": not cuda,
        "bf16": cuda,
        "optim": "adamw_torch_fused" if cuda else "adamw_torch",  # as ours has it
        "dataloader_num_workers": loader_workers(settings.loader_workers, cuda, 1),
        "num_train_epochs": 1000,
    }
    if settings.lora is not None:
        made |= {"finetuning_type": "lora", "lora_rank": settings.lora.rank, "lora_alpha": int(settings.lora.alpha)}
        made |= {
            "lora_dropout": settings.lora.dropout,
            "lora_target": ",".join(settings.lora.target_modules) or "all",
        }
    return made | case.their_settings


def write_pairs(case: Case, place: Path) -> None:
    """The case's pairs as a data set of LLaMA-Factory."""
    data = case.data("training")
    prompts = {row["prompt_id"]: row for row in prompt_rows(data)}
    pairs = atomic.read_parquet(data / "pairs.parquet", "pairs").to_pylist()
    texts = {pair["prompt_id"]: [pair["chosen"], pair["rejected"]] for pair in pairs}
    write_ranking(place, data / "media", prompts, texts, case.settings.system_prompt)


def run(case: Case, made: Result, pixels: int, python: str, *, cuda: bool) -> Result:
    """Train until all steps are measured, and put rates, tokens, first step, memory and versions into `made`.

    Args:
        case: to be measured.
        made: a result whose FLOP are those of `made.tokens`; both are scaled to the tokens that LLaMA-Factory has.
        pixels: to which an image is scaled down.
        python: of LLaMA-Factory's environment.
        cuda: whether there is a GPU.

    Raises:
        MemoryError: a GPU's memory did not suffice.
        TheirError: the training did not end as it should; its output stands in the log of the case.
    """
    place = Path(case.place)
    write_pairs(case, place)
    if not cuda:  # frozen weights keep the type that their files have, and nothing would cast them to float32
        make_model(case.base, place / "model")
    asked = arguments(case, place, pixels, cuda=cuda)
    file, events = place / "arguments.json", place / "events.jsonl"
    file.write_text(json.dumps(asked), encoding="utf-8")
    print("arguments of llamafactory-cli train:", json.dumps(asked, indent=1), flush=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HOME": str(place / "cache"), "DISABLE_VERSION_CHECK": "1"}
    if cuda:  # of several it would use all
        environment["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    command = [python, "-m", "benchmarks.gpu.their_process", str(file), str(events)]
    began = time.time()
    try:
        code = subprocess.run(command, env=environment, cwd=place, stderr=subprocess.STDOUT, check=False).returncode
    except OSError as error:
        raise TheirError(f"{python} cannot be started: {error.strerror}") from error
    text = events.read_text(encoding="utf-8") if events.exists() else ""
    batch = asked["per_device_train_batch_size"] * asked["gradient_accumulation_steps"]
    return fill(made, read(text), began, code=code, batch=batch, warmup=case.warmup, steps=case.warmup + case.steps)


def read(text: str) -> Events:
    """What the lines of a file of events say; a last line that was not finished is left out."""
    found = Events()
    for line in text.splitlines(keepends=True):
        if not line.endswith("\n"):
            continue
        values = json.loads(line)
        found.versions = values.get("versions", found.versions)
        found.tokens = values.get("tokens", found.tokens)
        found.failed, found.message = values.get("failed", found.failed), values.get("message", found.message)
        if "step" in values:
            found.times.append(values["time"])
            found.memory = values["memory"]
    return found


def fill(made: Result, found: Events, began: float, *, code: int, batch: int, warmup: int, steps: int) -> Result:
    """Put what was measured into a result.

    Args:
        made: the result; its tokens and FLOP are scaled to what LLaMA-Factory computes.
        found: what its process wrote.
        began: when that process was started, in seconds since 1970.
        code: with which it ended.
        batch: pairs of an optimiser step.
        warmup: steps that do not count.
        steps: all of them.

    Raises:
        MemoryError: a GPU's memory did not suffice.
        TheirError: there are fewer steps than that; the message says why.
    """
    if len(found.times) < steps:
        if "OutOfMemoryError" in found.failed:
            raise MemoryError(OUT_OF_MEMORY)
        if found.failed == Unfit.__name__:
            raise TheirError(found.message)
        if found.failed:
            raise TheirError(f"LLaMA-Factory raised {found.failed} after {len(found.times)} steps: {found.message}")
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        raise TheirError(f"LLaMA-Factory's process {how} after {len(found.times)} of {steps} steps")
    ends = found.times[max(0, warmup - 1) : steps]
    made.rates = [batch / (after - before) for before, after in itertools.pairwise(ends)]
    made.first, made.peak_memory, made.versions = found.times[0] - began, found.memory, found.versions
    if found.tokens and made.tokens:
        made.decoder = made.decoder and made.decoder * found.tokens / made.tokens
        made.tokens = found.tokens
    return made
