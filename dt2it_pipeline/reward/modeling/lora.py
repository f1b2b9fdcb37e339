"""Low-rank adapters in the language model, and the way back: merged weights under the names of the ordinary checkpoint.

Every adapted layer computes `W x + (alpha / rank) B A x` with W frozen (LoRA, arXiv 2106.09685, section
"Low-Rank-Parametrized Update Matrices"). A starts random, B at zero, so that training starts from the base model's own
scores. Adapters that others have trained are merged by adapters.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.target_modules or kinds),
    )
    torch.manual_seed(seed)
    peft.inject_adapter_in_model(config, language, adapter_name=_ADAPTER)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name or name.startswith("head."))


def base_name(name: str) -> str:
    """Name that a weight of a model with adapters had before it had them.

    >>> base_name("model.language_model.layers.0.mlp.up_proj.base_layer.weight")
    'model.language_model.layers.0.mlp.up_proj.weight'
    """
    return name.replace(".base_layer.", ".")


def parts_of(name: str, weights: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """The weight `name` and, where its layer is adapted, the factors A and B of the update.

    Args:
        name: of a weight that is no factor itself.
        weights: of a model with adapters, or without, by name.
    """
    if not name.endswith(".base_layer.weight"):
        return [weights[name]]
    layer = name.removesuffix(".base_layer.weight")
    return [weights[name], *(weights[f"{layer}.lora_{factor}.{_ADAPTER}.weight"] for factor in "AB")]


def merged(parts: Sequence[torch.Tensor], settings: LoraSettings) -> torch.Tensor:
    """A weight with its update added, `W + (alpha / rank) B A`, in the type and on the device of W.

    Args:
        parts: as `parts_of` gives them; W alone is returned as it is. The sum is made in float32.
        settings: those that the adapters were made with.
    """
    weight, *factors = parts
    if not factors:
        return weight
    down, up = factors
    return with_update(weight, down, up, settings.alpha / settings.rank).to(weight.dtype)
