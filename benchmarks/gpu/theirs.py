"""LLaMA-Factory's reward-modelling stage on the same model and pairs, in an environment of its own.

It has the trainer's micro-batch, batch, learning rate, gradient checkpointing and LoRA rank, and reads images in four
worker processes; vision encoder and projector are frozen.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.case import Case
from benchmarks.gpu.data import prompt_rows
from benchmarks.gpu.figures import Result
from benchmarks.gpu.shapes import SHAPES
from benchmarks.llamafactory import ROOT, their_arguments, write_ranking
from dt2it_pipeline.storage import atomic

_STEP = re.compile(r"step=(\d+) memory=(\d+)")
_TEMPLATES = {"qwen3_vl": "qwen3_vl_nothink", "qwen2_5_vl": "qwen2_vl"}
_WORKERS = 4


def arguments(case: Case, place: Path, *, cuda: bool) -> dict[str, Any]:
    """Arguments of LLaMA-Factory for the training that the case's settings describe."""
    settings = case.settings
    part = case.part("training")
    made = their_arguments(place, settings.micro_batch_size, case.warmup + case.steps) | {
        "model_name_or_path": str(case.base),
        "template": _TEMPLATES[SHAPES[case.shape].family],
        "cutoff_len": 2 * (part.prompt + part.response),
        "image_max_pixels": settings.max_pixels,
        "gradient_accumulation_steps": max(1, settings.global_batch_size // settings.micro_batch_size),
        "learning_rate": settings.learning_rate,
        "disable_gradient_checkpointing": not settings.gradient_checkpointing,
        "use_cpu": not cuda,
        "bf16": cuda,
        "dataloader_num_workers": _WORKERS,
        "num_train_epochs": 1000,
    }
    if settings.lora is not None:
        made |= {"finetuning_type": "lora", "lora_rank": settings.lora.rank, "lora_alpha": int(settings.lora.alpha)}
        made |= {"lora_target": "all"}
    return made


def write_pairs(case: Case, place: Path) -> None:
    """The case's pairs as a data set of LLaMA-Factory."""
    data = case.data("training")
    prompts = {row["prompt_id"]: row for row in prompt_rows(data)}
    pairs = atomic.read_parquet(data / "pairs.parquet", "pairs").to_pylist()
    texts = {pair["prompt_id"]: [pair["chosen"], pair["rejected"]] for pair in pairs}
    write_ranking(place, data / "media", prompts, texts, case.settings.system_prompt)


def run(case: Case, made: Result, python: str, *, cuda: bool) -> Result:
    """Train until all steps are measured, and put rates, first step and memory into `made`.

    Raises:
        MemoryError: a GPU's memory did not suffice.
        RuntimeError: the training ended early; its output stands in the log of the case.
    """
    place = Path(case.place)
    write_pairs(case, place)
    file = place / "arguments.json"
    file.write_text(json.dumps(arguments(case, place, cuda=cuda)), encoding="utf-8")
    command = [python, "-m", "benchmarks.llamafactory", "--arguments", str(file)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HOME": str(place / "cache"), "DISABLE_VERSION_CHECK": "1"}
    times, memory, last = [], 0, ""
    with subprocess.Popen(
        command, env=environment, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            if found := _STEP.match(line):
                times.append(time.time())
                memory = int(found[2])
            last = line.strip() or last
    if len(times) < case.warmup + case.steps:
        if "OutOfMemoryError" in last:
            raise MemoryError(last)
        raise RuntimeError(f"LLaMA-Factory ended after {len(times)} steps: {last}")
    batch = case.settings.global_batch_size
    ends = times[max(0, case.warmup - 1) :]
    made.rates = [batch / (after - before) for before, after in itertools.pairwise(ends)]
    made.first, made.peak_memory = times[0] - case.started, memory or None
    return made
