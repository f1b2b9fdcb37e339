"""Section `training`: how reward models are trained (arXiv 2604.19544, implementation details)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from dt2it_pipeline.config.base import DEMO_BASE_MODEL, Settings, unit
from dt2it_pipeline.config.compute import ComputeSettings
from dt2it_pipeline.config.models import MODEL_NAME


class LossSettings(Settings):
    """What training minimises; reward/modeling/loss.py has the formulas and their sources.

    `strength` is the pairs table's column, in the unit of whoever wrote it (0 to 10 for constructed pairs, reward
    margins for verified ones). A pair without a strength gets the plain Bradley-Terry loss; a negative one counts as 0.
    A list is what the columns `list_id` of its pairs say, as far as curation left them.
    """

    kind: Literal["bradley_terry", "margin", "soft_label", "davidson"] = Field(
        "bradley_terry",
        description="loss of a pair. bradley_terry: strength does not count. margin: the scores of strong pairs must "
        "differ by more. soft_label: weak pairs count as near ties. davidson: pairs of strength 0 are ties",
    )
    lists: Literal["pairwise", "plackett_luce"] = Field(
        "pairwise",
        description="loss of a list of answers to one prompt, which is one sequence in any case. pairwise: the sum of "
        "its pairs' losses. plackett_luce: each answer is chosen over all that it is better than; pairs alone, and "
        "lists whose pairs contradict each other, keep the loss of a pair",
    )
    tie_probability: float = Field(
        0.25,
        gt=0,
        lt=1,
        json_schema_extra=unit("probability"),
        description="of davidson: how likely two equally good answers are a tie",
    )
    strength_scale: float = Field(
        1.0,
        gt=0,
        le=1000,
        json_schema_extra=unit("score per unit of strength"),
        description="margin, or logit of the soft label, per unit of strength",
    )
    center_rewards_coefficient: float = Field(
        0.0,
        ge=0,
        le=100,
        json_schema_extra=unit("loss weight"),
        description="weight of (chosen score + rejected score)^2 in the loss; 0.01 keeps scores around zero",
    )

    @model_validator(mode="after")
    def _lists_have_this_kind(self) -> LossSettings:
        if self.lists == "plackett_luce" and self.kind in ("soft_label", "davidson"):
            raise ValueError(
                f"lists: plackett_luce has no form of kind: {self.kind}, which is about pairs; set lists: pairwise, or "
                "kind: bradley_terry or margin"
            )
        return self


class LoraSettings(Settings):
    """Low-rank adapters instead of all weights of the language model (arXiv 2106.09685); the head is trained in full.

    The checkpoint holds merged weights, so that scoring, export and vLLM see an ordinary reward model. Memory of
    gradients and optimiser falls to that of the adapters; ten times the learning rate of full training is usual.
    """

    rank: int = Field(
        16, ge=1, le=1024, json_schema_extra=unit("dimensions"), description="inner dimension of every adapter"
    )
    alpha: float = Field(
        32.0, gt=0, le=8192, json_schema_extra=unit("factor"), description="the update is scaled by alpha / rank"
    )
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        json_schema_extra=unit("probability"),
        description="dropout on the input of the adapters, in training",
    )
    target_modules: tuple[str, ...] = Field(
        (),
        strict=False,
        description="names of linear layers, such as q_proj. Empty: all linear layers of the language model",
    )


class TrainingSettings(ComputeSettings):
    """Bradley-Terry training of backbone and linear head (arXiv 2604.19544, implementation details).

    With `validation_fraction` or `validation_pairs`, prompts are held out by seed (all pairs of a prompt are on one
    side), evaluated every `eval_steps` optimiser steps and at the end.
    """

    base_model: str = Field(DEMO_BASE_MODEL, min_length=1, description=MODEL_NAME)
    processes: int = Field(
        2,
        ge=1,
        le=1024,
        json_schema_extra=unit("ranks"),
        description="ranks that train on this machine, one per GPU",
    )
    hostfile: str | None = Field(
        None,
        min_length=1,
        description="file with the machines of a multi-node run, `host slots=n` per line, this machine first (a "
        "relative path counts from the project); `processes` then counts ranks per machine. null: this machine alone",
    )
    deepspeed_config: str = Field("zero2_cpu", description="name of a file in configs/deepspeed, without .json")
    global_batch_size: int = Field(
        64,
        ge=1,
        le=65_536,
        json_schema_extra=unit("pairs"),
        description="pairs per optimiser step, over all ranks; with lists, which are never divided: so many on average",
    )
    micro_batch_size: int = Field(
        32,
        ge=1,
        le=4096,
        json_schema_extra=unit("pairs"),
        description="most pairs per forward pass of one rank; a list counts by its answers, two for a pair",
    )
    micro_batch_tokens: int | None = Field(
        8192,
        ge=16,
        le=10_000_000,
        json_schema_extra=unit("tokens"),
        description="most tokens per forward pass of one rank, padding included; a longer pair has a pass to itself. "
        "`micro_batch_size` limits too: raise it to let tokens alone decide. null: only pairs are counted",
    )
    epochs: float = Field(
        2.0, gt=0, le=100, json_schema_extra=unit("epochs"), description="how often every pair is seen"
    )
    max_steps: int | None = Field(
        None,
        ge=1,
        json_schema_extra=unit("optimiser steps"),
        description="training stops after this many steps, whatever `epochs` says. null: `epochs` decides",
    )
    learning_rate: float = Field(
        5e-4,
        gt=0,
        le=1,
        json_schema_extra=unit("learning rate"),
        description="highest learning rate, reached after warm-up and then lowered to zero along a cosine",
    )
    warmup_ratio: float = Field(
        0.1, ge=0, le=1, json_schema_extra=unit("share of all steps"), description="length of the linear warm-up"
    )
    weight_decay: float = Field(
        0.0, ge=0, le=1, json_schema_extra=unit("factor"), description="weight decay of AdamW; not on norms and biases"
    )
    max_grad_norm: float = Field(
        1.0, gt=0, json_schema_extra=unit("L2 norm"), description="larger gradients are scaled down to this norm"
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="number format of weights and activations; gradients are summed, and updates made, in float32",
    )
    loss: LossSettings = Field(LossSettings(), description="what training minimises")
    lora: LoraSettings | None = Field(
        None, description="low-rank adapters. null: all weights of the language model are trained"
    )
    validation_fraction: float = Field(
        0.0, ge=0, lt=1, json_schema_extra=unit("share"), description="share of the pairs that is held out; 0: none"
    )
    validation_pairs: int | None = Field(
        None, ge=1, json_schema_extra=unit("pairs"), description="number of pairs to hold out, instead of a share"
    )
    eval_steps: int = Field(
        50,
        ge=1,
        json_schema_extra=unit("optimiser steps"),
        description="steps between evaluations of the held-out pairs",
    )
    keep: Literal["last", "best"] = Field(
        "last",
        description="which weights become the checkpoint. best: those with the lowest loss on the held-out pairs",
    )
    shared_prefix: bool = Field(
        True, description="compute the prompt once for both responses, in one sequence instead of two; same gradients"
    )
    cache_vision: bool = Field(
        True,
        description="keep the output of the frozen vision encoder in memory, where it is not kept on disk "
        "(`vision_disk_gib`)",
    )
    vision_cache_gib: float = Field(
        4.0,
        gt=0,
        json_schema_extra=unit("GiB"),
        description="limit of `cache_vision`; where more is needed, the vision encoder runs at every step instead",
    )
    loader_workers: int | None = Field(
        None,
        ge=0,
        le=64,
        json_schema_extra=unit("processes per rank"),
        description="processes that read and resize images ahead of the step that needs them; results do not depend on "
        "them. null: none without a GPU, else what cores are left beside the ranks, at most 8",
    )
    gradient_checkpointing: bool = Field(
        False, description="recompute activations in the backward pass: less memory, about a third more computation"
    )
    max_length: int | None = Field(
        None,
        ge=16,
        le=1_048_576,
        json_schema_extra=unit("tokens"),
        description="a pair whose prompt and longer response exceed this together is quarantined, and counted in the "
        "log and the report; set it where memory needs a limit. null: the context of the base model",
    )
    max_pixels: int = Field(
        268_324,
        ge=1024,
        json_schema_extra=unit("pixels"),
        description="larger images are scaled down to this size, or to the base model's own limit where that is "
        "smaller; the checkpoint's files hold it",
    )
    system_prompt: str = Field(
        "You are an impartial evaluator. Judge how well the assistant answers the question about the picture.",
        description="system turn before every training and scoring prompt",
    )
    logging_steps: int = Field(
        10, ge=1, json_schema_extra=unit("optimiser steps"), description="steps between two logged lines"
    )
    save_steps: int = Field(
        50,
        ge=1,
        json_schema_extra=unit("optimiser steps"),
        description="steps between saved training states; a killed run repeats at most this many",
    )
    tensorboard: bool = Field(False, description="write TensorBoard event files into the checkpoint's folder")
    wandb_project: str | None = Field(
        None,
        min_length=1,
        description="also log to this Weights & Biases project; needs the package wandb. With WANDB_MODE=offline its "
        "files lie in the checkpoint's folder. null: do not",
    )
    mlflow_experiment: str | None = Field(
        None,
        min_length=1,
        description="also log to this MLflow experiment; needs the package mlflow-skinny or mlflow. It goes to "
        "MLFLOW_TRACKING_URI, else into files in the checkpoint's folder. null: do not",
    )

    @model_validator(mode="after")
    def _validation_fits(self) -> TrainingSettings:
        if self.validation_fraction and self.validation_pairs:
            raise ValueError("set validation_fraction or validation_pairs, not both")
        if self.keep == "best" and not self.validates:
            raise ValueError("keep: best needs held-out pairs; set validation_fraction or validation_pairs")
        return self

    @property
    def validates(self) -> bool:
        """Whether pairs are held out."""
        return self.validation_fraction > 0 or self.validation_pairs is not None

    @model_validator(mode="after")
    def _features_stay_on_one_machine(self) -> TrainingSettings:
        if self.hostfile is not None and self.cache_vision:
            raise ValueError(
                "cache_vision must be false where hostfile is given: ranks share the vision encoder's output through "
                "the memory of one machine"
            )
        return self
