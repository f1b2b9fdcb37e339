"""An estimate of the GPU memory that training takes, from the headers of the weights; no model is loaded.

Bytes per GPU when most is held, for P trained parameters and F frozen ones (V of the vision encoder; with LoRA the
language model too), N ranks and b bytes per weight (2 in bfloat16, 4 in float32), as DeepSpeed keeps them:

    weights     b (P + F)     in stage 3, b (P + F - V) / N + b V: each rank has the vision encoder whole
    optimiser   12 P          / N from stage 1 on: float32 copy and AdamW's two moments
    gradients   12 P / N      in stage 2: those of a pass, their sums over passes, and a flat copy for the update
                8 P / N       in stage 3: sums over passes and a copy for the update; 12 P / N in bfloat16
    buffers     b buckets     gradients on their way to other ranks, twice where communication overlaps
                b live        in stage 3: weights that are gathered at once, no more than all

That is the end of a backward pass. In stage 3 a forward pass may hold more. It has the sums of gradients alone,
4 P / N, and the gather under way, b prefetch (no more than all), from which the live weights are copied. The greater
counts: the forward pass where few weights are trained, as with LoRA.

Weights and optimiser are those of ZeRO (arXiv 1910.02054, section 3.1). Its gradients are 2 P; DeepSpeed holds more,
which was measured on a CPU (test_memory.py). In stages 0 and 1, which no configuration of ours has, 4 P are taken.
Activations come on top. They grow with the tokens of a micro-batch, so the estimate is a lower bound.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from dt2it_pipeline.config.sections.training import LoraSettings, TrainingSettings
from dt2it_pipeline.errors import UserError

GIB = 2**30
_LARGEST_HEADER = 100_000_000  # bytes; the format's own limit
_BUCKET, _LIVE, _PREFETCH = 500_000_000, 1_000_000_000, 50_000_000  # DeepSpeed's defaults, in numbers
_GRADIENTS = (4, 4, 12, 8)  # bytes per trained parameter, by stage
_VISION = ("visual.", "vision_tower.", "vision_model.", "vision_encoder.")
_NOT_ADAPTED = ("embed", "lm_head", "norm")


class WeightsError(UserError, ValueError):
    """A model folder has no weights in safetensors, or their headers cannot be read."""


@dataclass(frozen=True)
class Parameters:
    """Parameters of a model.

    Attributes:
        language: of the language model.
        vision: of the vision encoder, which is frozen.
        linear: rows + columns of each linear layer of the language model, summed: one adapter of rank r adds r times
            that.
        file_bytes: size of the weights on disk.
    """

    language: int
    vision: int
    linear: int
    file_bytes: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.language + self.vision


@dataclass(frozen=True)
class Estimate:
    """Bytes of GPU memory per rank, activations not counted."""

    weights: float
    gradients: float
    optimiser: float
    buffers: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.weights + self.gradients + self.optimiser + self.buffers

    def in_words(self, parameters: Parameters, settings: TrainingSettings, stage: int) -> str:
        """For a check and a log: the sum, its parts, and what it was estimated for.

        Args:
            parameters: of the base model.
            settings: as `training_memory` had them.
            stage: of ZeRO.
        """
        how = f"{settings.precision}, ZeRO stage {stage}, {settings.processes} rank(s)"
        how += "" if settings.lora is None else f", LoRA of rank {settings.lora.rank}"
        return (
            f"training takes about {amount(self.total)} per rank and activations on top: weights "
            f"{amount(self.weights)}, gradients {amount(self.gradients)}, optimiser {amount(self.optimiser)}, buffers "
            f"{amount(self.buffers)} ({parameters.total / 1e6:,.1f} million parameters, {how})"
        )


def amount(size: float) -> str:
    """Bytes for a reader.

    >>> amount(3 * 2**30), amount(5 * 2**20)
    ('3.0 GiB', '5 MiB')
    """
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:.0f} MiB"


def count_parameters(folder: Path) -> Parameters:
    """Count a model's parameters in the headers of its safetensors files.

    Raises:
        WeightsError: there are no such files, or one is damaged.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise WeightsError(f"{folder} holds no *.safetensors")
    language = vision = linear = 0
    for file in files:
        for name, entry in _header(file).items():
            if name == "__metadata__":
                continue
            shape = entry["shape"]
            if any(part in name for part in _VISION):
                vision += prod(shape)
                continue
            language += prod(shape)
            if len(shape) == 2 and not any(part in name for part in _NOT_ADAPTED):
                linear += sum(shape)
    return Parameters(language, vision, linear, sum(file.stat().st_size for file in files))


def training_memory(parameters: Parameters, settings: TrainingSettings, zero: Mapping[str, Any]) -> Estimate:
    """Bytes per GPU that training takes; see the module's docstring for the formula.

    Args:
        parameters: of the base model.
        settings: precision, LoRA and the number of ranks (of one machine, where there are several).
        zero: `zero_optimization` of the DeepSpeed configuration; what it leaves out is DeepSpeed's default.
    """
    stage = int(zero.get("stage", 0))
    width = 2 if settings.precision == "bfloat16" else 4
    ranks = settings.processes
    trained = parameters.language if settings.lora is None else _adapters(parameters, settings.lora)
    held = parameters.language + (0 if settings.lora is None else trained)  # divided in stage 3
    gradients = (12 if stage == 3 and width == 2 else _GRADIENTS[stage]) * trained / (ranks if stage >= 2 else 1)
    buffers = 0
    if stage >= 2:
        overlaps = ranks > 1 and zero.get("overlap_comm", stage == 3)  # see deepspeed_config
        buffers = int(zero.get("reduce_bucket_size", _BUCKET)) * (2 if overlaps else 1)
    if stage == 3:
        buffers += min(held, int(zero.get("stage3_max_live_parameters", _LIVE)))
        gathered, sums = min(held, int(zero.get("stage3_prefetch_bucket_size", _PREFETCH))), 4 * trained / ranks
        if sums + width * gathered > gradients:
            gradients, buffers = sums, buffers + gathered
    return Estimate(
        weights=width * (held / (ranks if stage == 3 else 1) + parameters.vision),
        gradients=gradients,
        optimiser=12 * trained / (ranks if stage >= 1 else 1),
        buffers=width * buffers,
    )


def _adapters(parameters: Parameters, lora: LoraSettings) -> int:
    return lora.rank * parameters.linear


def _header(file: Path) -> dict[str, Any]:
    """The header of a safetensors file: names -> dtype, shape and offsets."""
    try:
        with file.open("rb") as stream:
            (size,) = struct.unpack("<Q", stream.read(8))
            if size > _LARGEST_HEADER:
                raise ValueError(f"a header of {size} bytes")
            header = json.loads(stream.read(size))
        if not isinstance(header, dict) or any(
            not isinstance(entry.get("shape"), list) for name, entry in header.items() if name != "__metadata__"
        ):
            raise ValueError("no tensors in its header")
    except (OSError, ValueError, struct.error, AttributeError) as error:
        raise WeightsError(f"{file} cannot be read as safetensors: {error}") from error
    return header
