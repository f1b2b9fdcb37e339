"""Cases that train: this project's trainer, the bare loop and its profile, LLaMA-Factory."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.gpu.case import Case
from benchmarks.gpu.data import Sizes, encoded, sizes
from benchmarks.gpu.figures import Result, flops
from benchmarks.gpu.shapes import SHAPES


class _Enough(Exception):
    """All steps have been measured: writing a checkpoint and its digest would cost minutes, and nobody wants it."""


def train(case: Case) -> Result:
    """The trainer of this project, through its job; it is stopped when the last step has been logged."""
    from dt2it_pipeline.reward.training.job import TrainJob

    place, data, settings = Path(case.place), case.data("training"), case.settings
    waited = _watch_loading()
    seen: list[tuple[float, int, float]] = []  # time, step, and seconds spent waiting for data so far

    def report(row: Mapping[str, Any]) -> None:
        if "loss" in row:
            seen.append((time.time(), int(row["done"]), waited[0]))
            if row["done"] >= row["total"]:
                raise _Enough

    job = TrainJob(
        base_model=str(case.base),
        pairs=data / "pairs.parquet",
        prompts=data / "prompts.parquet",
        media_root=data / "media",
        output=place / "checkpoint",
        work=place / "work",
        settings=settings,
        seed=0,
        name="benchmark",
    )
    with contextlib.suppress(_Enough):
        job.run(report)
    made, _ = _training_result(case, kept=settings.vision_disk_gib > 0)
    made.first = seen[0][0] - case.started
    counted = [pair for pair in itertools.pairwise(seen) if pair[0][1] >= case.warmup]
    made.rates = [(b[1] - a[1]) * settings.global_batch_size / (b[0] - a[0]) for a, b in counted]
    spent = sum(b[0] - a[0] for a, b in counted)
    made.waits = sum(b[2] - a[2] for a, b in counted) / spent if spent else None
    return made


def _watch_loading() -> list[float]:
    """Let the trainer's loading of batches add the seconds that it takes to the one number of a list."""
    import torch

    from dt2it_pipeline.engines import lean_processes

    lean_processes.skip_unused()
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    from dt2it_pipeline.reward.training.training_data import TrainingData

    total, take = [0.0], TrainingData.take

    def timed(self: Any, *given: Any, **named: Any) -> Any:
        began = time.perf_counter()
        loaded = take(self, *given, **named)
        total[0] += time.perf_counter() - began
        return loaded

    TrainingData.take = timed  # type: ignore[method-assign]
    return total


def _training_result(case: Case, *, kept: bool = False) -> tuple[Result, Sizes]:
    """Tokens and FLOP of a pair in the layout that the settings ask for, and the sizes that they come from.

    The vision encoder counts where it runs at every step: not where its output is cached, or `kept` on disk.
    """
    settings, made = case.settings, case.result("pairs")
    registry, _, prompts, responses = encoded(
        case.base, case.data("training"), settings.max_pixels, settings.system_prompt
    )
    mean = sizes(registry, prompts, responses)
    made.tokens = mean.prompt * (1 if settings.shared_prefix else 2) + 2 * mean.response
    runs = 0 if settings.cache_vision or kept else 1
    per_parameter = 6 if settings.lora is None else 4
    made.decoder, made.encoder = flops(
        case.parameters, per_parameter, made.tokens, runs * mean.patches, runs * mean.image_tokens
    )
    return made, mean


def bare(case: Case) -> Result:
    """A plain loop over ready batches; see loop.py."""
    from benchmarks.gpu import loop

    made, _ = _training_result(case)
    rates, first = loop.run(case)
    made.rates, made.first = rates, first - case.started
    return made


def profile(case: Case) -> Result:
    """The same loop with its parts timed, images read at every step."""
    from benchmarks.gpu import loop

    made = case.result("pairs")
    made.profile = loop.profile(case)
    return made


def llamafactory(case: Case) -> Result:
    """LLaMA-Factory's trainer; see theirs.py."""
    import torch

    from benchmarks.gpu import theirs

    assert case.python is not None
    # It computes the prompt for each response anew, and at every step the vision encoder for each of them.
    alike = replace(case, training=case.training | {"shared_prefix": False, "cache_vision": False})
    made, mean = _training_result(alike)
    made.encoder = 2 * (made.encoder or 0.0)
    # Ours rounds a size down to whole patches, theirs to the nearest: given the size in whole patches, both have it.
    pixels = round(mean.patches) * SHAPES[case.shape].vision["patch_size"] ** 2
    return theirs.run(case, made, pixels, case.python, cuda=torch.cuda.is_available())
