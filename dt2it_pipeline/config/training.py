"""Section `training`: the reward model's training (arXiv 2604.19544, implementation details)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from dt2it_pipeline.config.base import DEMO_BASE_MODEL, Settings


class LossSettings(Settings):
    """What training minimises; the formulas and their sources stand in reward/modeling/loss.py.

    `strength` is the pairs table's column, in the unit of whoever wrote it (0 to 10 for constructed pairs, reward
    margins for verified ones). A pair without a strength gets the plain Bradley-Terry loss; a negative one counts as 0.
    """

    kind: Literal["bradley_terry", "margin", "soft_label"] = Field(
        "bradley_terry",
        description="plain; margin: strong pairs must be told apart by more; soft_label: weak pairs count as near ties",
    )
    strength_scale: float = Field(
        1.0, gt=0, le=1000, description="margin, or logit of the soft label, per unit of strength"
    )
    center_rewards_coefficient: float = Field(
        0.0, ge=0, le=100, description="weight of (chosen score + rejected score)^2; 0.01 keeps scores around zero"
    )


class LoraSettings(Settings):
    """Low-rank adapters instead of all weights of the language model (arXiv 2106.09685); the head is trained in full.

    The checkpoint holds merged weights, so that scoring, export and vLLM see an ordinary reward model. Memory of
    gradients and optimiser falls to that of the adapters; ten times the learning rate of full training is usual.
    """

    rank: int = Field(16, ge=1, le=1024)
    alpha: float = Field(32.0, gt=0, le=8192, description="the update is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="on the adapters' input, in training")
    target_modules: tuple[str, ...] = Field(
        (), strict=False, description="names of linear layers, such as q_proj; all of the language model when empty"
    )


class TrainingSettings(Settings):
    """Bradley-Terry training of backbone and linear head (arXiv 2604.19544, implementation details).

    With `validation_fraction` or `validation_pairs`, prompts are held out by seed (all pairs of a prompt are on one
    side), evaluated every `eval_steps` optimiser steps and at the end.
    """

    base_model: str = Field(
        DEMO_BASE_MODEL,
        min_length=1,
        description="model folder or Hub id; `demo` is the model that ships with the package",
    )
    processes: int = Field(2, ge=1, le=1024, description="ranks that the DeepSpeed launcher starts on this machine")
    hostfile: str | None = Field(
        None,
        min_length=1,
        description="machines of a multi-node run, `host slots=n` per line (relative: from the project root); "
        "`processes` then counts ranks per machine, and this machine stands first",
    )
    deepspeed_config: str = Field("zero2_cpu", description="file in configs/deepspeed, without .json")
    global_batch_size: int = Field(64, ge=1, le=65_536, description="pairs per optimiser step, over all ranks")
    micro_batch_size: int = Field(32, ge=1, le=4096, description="most pairs per forward pass of one rank")
    micro_batch_tokens: int | None = Field(
        None,
        ge=16,
        le=10_000_000,
        description="most tokens per forward pass of one rank, padding included; a longer pair has a pass to itself. "
        "`micro_batch_size` holds too: raise it to let tokens alone decide",
    )
    epochs: float = Field(2.0, gt=0, le=100)
    max_steps: int | None = Field(
        None, ge=1, description="stop after this many optimiser steps, whatever `epochs` says"
    )
    learning_rate: float = Field(5e-4, gt=0, le=1)
    warmup_ratio: float = Field(0.1, ge=0, le=1)
    weight_decay: float = Field(0.0, ge=0, le=1)
    max_grad_norm: float = Field(1.0, gt=0)
    precision: Literal["float32", "bfloat16"] = "float32"
    loss: LossSettings = LossSettings()
    lora: LoraSettings | None = Field(None, description="all weights of the language model are trained when absent")
    validation_fraction: float = Field(0.0, ge=0, lt=1, description="share of the pairs; 0: nothing is held out")
    validation_pairs: int | None = Field(None, ge=1, description="pairs, instead of a share")
    eval_steps: int = Field(50, ge=1, description="optimiser steps between evaluations of the held-out pairs")
    keep: Literal["last", "best"] = Field(
        "last", description="which weights become the checkpoint; best: lowest loss on the held-out pairs"
    )
    shared_prefix: bool = Field(
        True, description="both responses behind one prompt in one sequence, instead of two sequences"
    )
    cache_vision: bool = Field(True, description="keep the frozen vision encoder's output per image in memory")
    vision_cache_gib: float = Field(
        4.0, gt=0, description="GiB; where the vision encoder's output needs more, it is computed at every step instead"
    )
    gradient_checkpointing: bool = False
    max_length: int = Field(512, ge=16, le=131_072, description="longer prompt + response: the pair is quarantined")
    max_pixels: int = Field(268_324, ge=1024, description="images are scaled down to this many pixels")
    system_prompt: str = Field(
        "You are an impartial evaluator. Judge how well the assistant answers the question about the picture.",
        description="system turn before every training and scoring prompt",
    )
    logging_steps: int = Field(10, ge=1, description="optimiser steps")
    save_steps: int = Field(50, ge=1, description="optimiser steps")
    tensorboard: bool = Field(False, description="write TensorBoard event files into the checkpoint's folder")
    wandb_project: str | None = Field(
        None, min_length=1, description="also log to this Weights & Biases project; needs the package wandb"
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
