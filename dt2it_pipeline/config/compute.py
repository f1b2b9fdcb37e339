"""Settings of every section that runs a model here: how it is computed, not what."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import Field

from dt2it_pipeline.config.base import Settings, unit

Precision: TypeAlias = Literal["auto", "float32", "bfloat16"]
Attention: TypeAlias = Literal["auto", "flex", "sdpa", "sdpa_blocks", "eager"]


class ComputeSettings(Settings):
    """How layers are computed. Results differ by rounding alone."""

    attention: Attention = Field(
        "auto",
        description="implementation of the language model's attention. auto: flex (FlexAttention, a compiled kernel "
        "that skips what nobody sees) on a GPU that can compile, sdpa on another GPU, sdpa_blocks on a CPU",
    )
    compile: Literal["auto"] | bool = Field(
        "auto",
        description="put the layers through torch.compile: faster steps, and a first one that takes about a minute. "
        "auto: on a GPU with a C compiler beside it",
    )
    vision_disk_gib: float = Field(
        0.0,
        ge=0,
        json_schema_extra=unit("GiB"),
        description="keep the output of the frozen vision encoder in `cache/vision_features` of the artifact home, for "
        "later epochs, rounds, scorings and benchmarks, while the whole folder takes at most this; each image is then "
        "encoded alone. What does not fit is encoded as without it. 0: nothing is kept",
    )


class ForwardSettings(Settings):
    """How a judge's model is computed that writes nothing."""

    precision: Precision = Field(
        "auto",
        description="likelihood: number format of weights and activations; probabilities are float32 in any case. "
        "auto: bfloat16 on a GPU that computes in it, float32 elsewhere",
    )
    tokens_per_batch: int = Field(
        8192,
        ge=64,
        json_schema_extra=unit("tokens"),
        description="likelihood: most tokens of one forward pass, padding included; one longer sequence has a pass to "
        "itself",
    )
    max_pixels: int | None = Field(
        None,
        ge=1024,
        json_schema_extra=unit("pixels"),
        description="likelihood: larger images are scaled down to this size. null: to what the model's own image "
        "processor allows",
    )


class VllmRunSettings(Settings):
    """How vLLM runs a model, by vLLM's own names. Unset, vLLM decides."""

    tensor_parallel: int = Field(
        1, ge=1, le=64, json_schema_extra=unit("GPUs"), description="GPUs that share one copy of a model that vLLM runs"
    )
    gpu_memory_utilization: float | None = Field(
        None,
        gt=0,
        le=1,
        json_schema_extra=unit("share"),
        description="share of a GPU's memory that vLLM takes, cache of keys and values included; 0.45 leaves room for "
        "a second model on the card",
    )
    max_num_seqs: int | None = Field(
        None,
        ge=1,
        le=65_536,
        json_schema_extra=unit("sequences"),
        description="most sequences that vLLM computes at once; fewer take less memory",
    )
    quantization: str | None = Field(
        None,
        min_length=1,
        description="how vLLM quantises weights when they are loaded, for instance fp8 or bitsandbytes; results "
        "change with it. Unset: as the model's files say",
    )
