"""The DeepSpeed engine of a training: its configuration, a file of configs/deepspeed completed by the recipe, and its
optimiser.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dt2it_pipeline.config.recipe_files import read_deepspeed_config
from dt2it_pipeline.config.sections.training import TrainingSettings
from dt2it_pipeline.reward.modeling import lora

if TYPE_CHECKING:
    import torch

    from dt2it_pipeline.reward.modeling.model import RewardNetwork

_ADAMW = "adamw"


def make_engine(model: RewardNetwork, settings: TrainingSettings, seed: int) -> Any:
    """Make a model ready to be trained under DeepSpeed: adapters, checkpointing, optimiser.

    Args:
        model: with a frozen vision encoder.
        settings: of the training.
        seed: of the adapters' first values.
    """
    import deepspeed
    from deepspeed.utils import set_z3_leaf_module

    if settings.lora is not None:
        lora.add_adapters(model, settings.lora, seed)
    if settings.gradient_checkpointing:
        model.model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    model.model.visual.eval()
    trained = [p for p in model.parameters() if p.requires_grad]
    # As everywhere, weight decay is for matrices: norms and biases (one dimension) are left alone.
    decay = settings.weight_decay
    groups: list[dict[str, Any]] = [{"params": [p for p in trained if p.ndim > 1], "weight_decay": decay}]
    groups.append({"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0})
    if decay == 0:
        groups = [{"params": trained, "weight_decay": 0.0}]
    if model.compiled:
        # ZeRO-3 then gathers a layer's weights at once, outside what is compiled, and not part by part inside it.
        for layer in model.called_whole():
            set_z3_leaf_module(layer, True)
    config = deepspeed_config(settings)
    optimizer = take_optimizer(config, groups)
    given = {"model_parameters": groups} if optimizer is None else {"optimizer": optimizer}
    return deepspeed.initialize(model=model, config=config, dist_init_required=False, **given)[0]


def deepspeed_config(settings: TrainingSettings) -> dict[str, Any]:
    """The DeepSpeed configuration: the file that the recipe names, completed with the recipe's own settings."""
    config = read_deepspeed_config(settings.deepspeed_config)
    optimizer = config.setdefault("optimizer", {"type": "AdamW", "params": {}})
    optimizer["params"] = {"lr": settings.learning_rate} | optimizer.get("params", {})
    return config | {
        "train_micro_batch_size_per_gpu": 1,  # nominal: the schedule says how many pairs a pass holds
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.max_grad_norm,
        "bf16": {"enabled": settings.precision == "bfloat16"},
        # Sums over the passes of a step: in bfloat16, a pass that adds less than 1/256 of the sum would be lost.
        "data_types": {"grad_accum_dtype": "fp32"},
        "steps_per_print": 2**31 - 1,
    }


def take_optimizer(config: dict[str, Any], groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer | None:
    """PyTorch's AdamW in the place of what DeepSpeed would make, fused on a GPU.

    DeepSpeed compiles an AdamW of its own at the first start: 35 seconds, and nvcc must be there. PyTorch's is compiled
    already. Another optimiser than AdamW, or one whose state is offloaded, stays DeepSpeed's business.

    Args:
        config: of DeepSpeed; its entry `optimizer` is taken out where the optimiser is made here.
        groups: trained parameters with their weight decay.

    Returns:
        The optimiser; None where DeepSpeed is to make what the file says.
    """
    import torch

    wanted = config["optimizer"]
    offloads = (config.get("zero_optimization") or {}).get("offload_optimizer")
    if str(wanted.get("type", "")).lower() != _ADAMW or (offloads or {}).get("device", "none") != "none":
        return None
    params = {name: value for name, value in wanted["params"].items() if name in ("lr", "betas", "eps")}
    del config["optimizer"]
    fused = all(parameter.is_cuda for group in groups for parameter in group["params"])
    return torch.optim.AdamW(groups, **params, fused=fused or None)
