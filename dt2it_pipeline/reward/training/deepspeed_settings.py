"""The DeepSpeed configuration of a training: a file of configs/deepspeed, completed by the recipe."""

from __future__ import annotations

from typing import Any

from dt2it_pipeline.config.recipe_files import read_deepspeed_config
from dt2it_pipeline.config.sections.training import TrainingSettings


def deepspeed_config(settings: TrainingSettings, decay: float) -> dict[str, Any]:
    """The DeepSpeed configuration: the file that the recipe names, completed with the recipe's own settings."""
    config = read_deepspeed_config(settings.deepspeed_config)
    optimizer = config.setdefault("optimizer", {"type": "AdamW", "params": {}})
    optimizer["params"] = {"lr": settings.learning_rate, "weight_decay": decay} | optimizer.get("params", {})
    return config | {
        "train_micro_batch_size_per_gpu": 1,  # nominal: the schedule says how many pairs a pass holds
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.max_grad_norm,
        "bf16": {"enabled": settings.precision == "bfloat16"},
        # Sums over the passes of a step: in bfloat16, a pass that adds less than 1/256 of the sum would be lost.
        "data_types": {"grad_accum_dtype": "fp32"},
        "steps_per_print": 2**31 - 1,
    }
