"""Low-rank adapters in the language model, and the way back: merged weights under the names of the ordinary checkpoint.

Every adapted layer computes `W x + (alpha / rank) B A x` with W frozen (LoRA, arXiv 2106.09685, section
"Low-Rank-Parametrized Update Matrices"). A starts random, B at zero, so that training starts from the base model's own
scores. Adapters that others have trained are merged by adapters.py.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import TYPE_CHECKING

from dt2it_pipeline.reward.checkpoints.adapters import with_update
from dt2it_pipeline.reward.errors import TrainingError

if TYPE_CHECKING:
    import torch

    from dt2it_pipeline.config.sections.training import LoraSettings
    from dt2it_pipeline.reward.modeling.model import RewardNetwork

_ADAPTER = "default"  # the name that peft gives to an adapter which nobody named


def add_adapters(model: RewardNetwork, settings: LoraSettings, seed: int) -> None:
    """Put adapters on the linear layers of the language model, in place; all else but the head is frozen.

    Args:
        model: a model without adapters.
        settings: rank, scale, dropout, and which layers.
        seed: of the adapters' first values.

    Raises:
        TrainingError: a named layer does not exist; the message lists those that do.
    """
    import peft
    import torch

    language = model.model.language_model
    linear = [name for name, layer in language.named_modules() if isinstance(layer, torch.nn.Linear)]
    kinds = sorted({name.rpartition(".")[2] for name in linear})
    unknown = sorted(set(settings.target_modules) - set(kinds))
    if unknown:
        raise TrainingError(
            f"training.lora.target_modules: the language model has no linear layer {', '.join(unknown)}; "
            f"it has {', '.join(kinds)}"
        )
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # declared int, used as a factor
        lora_dropout=settings.dropout,
        target_modules=list(settings.target_modules or kinds),
    )
    torch.manual_seed(seed)
    peft.inject_adapter_in_model(config, language, adapter_name=_ADAPTER)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name or name.startswith("head."))


def merge(state: MutableMapping[str, torch.Tensor], settings: LoraSettings) -> dict[str, torch.Tensor]:
    """Weights by name with every adapter added to its layer, `W + (alpha / rank) B A`, as if there had been none.

    Args:
        state: full weights of a model with adapters. All but the adapters are taken out of it, one by one, so that a
            model whose weights are nowhere else is not held twice.
        settings: those that the adapters were made with.

    Returns:
        Weights under the names of the model without adapters, each in the type that it had, in the host's memory: a GPU
        that holds the model may have no room for more. Sums are made in float32, where the weights lie.
    """
    merged = {}
    for name in [name for name in state if ".lora_" not in name]:
        value = state.pop(name)
        if name.endswith(".base_layer.weight"):
            layer = name.removesuffix(".base_layer.weight")
            down, up = (state[f"{layer}.lora_{factor}.{_ADAPTER}.weight"] for factor in "AB")
            value = with_update(value, down, up, settings.alpha / settings.rank).to(value.dtype)
        merged[name.replace(".base_layer.", ".")] = value.cpu()
    return merged
