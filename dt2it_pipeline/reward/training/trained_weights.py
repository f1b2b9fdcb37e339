"""The weights of a model in training as its checkpoint holds them: whole, adapters merged, a few at a time.

A model that is divided among ranks, or that fills a GPU, may be larger than the memory that is left. So no copy of it
is made: each weight is read when its file is written.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dt2it_pipeline.reward.checkpoints.checkpoint import HEAD, shards_of
from dt2it_pipeline.reward.modeling.lora import base_name, merged, parts_of

if TYPE_CHECKING:
    import torch

    from dt2it_pipeline.config.sections.training import LoraSettings
    from dt2it_pipeline.reward.modeling.model import RewardNetwork


class TrainedWeights:
    """Weights under the names of the model without adapters, for `RewardNetwork.save_pretrained` of the first rank.

    The other ranks call `take_part` instead, since ranks read divided weights together.

    Args:
        model: in training.
        settings: those that its adapters were made with; None where it has none.
        rank: of this process; the first alone is given the weights.
    """

    def __init__(self, model: RewardNetwork, settings: LoraSettings | None, rank: int = 0) -> None:
        self._model, self._settings, self._rank = model, settings, rank
        named: dict[str, torch.Tensor] = model.state_dict(keep_vars=True)
        # Under ZeRO-3 the vision encoder is no module of the model.
        named |= model.model.visual.state_dict(keep_vars=True, prefix="model.visual.")
        self._parts = {base_name(name): parts_of(name, named) for name in named if ".lora_" not in name}
        self.sizes = {name: _bytes(parts[0]) for name, parts in self._parts.items()}

    def read(self, name: str) -> torch.Tensor:
        """A weight in the type of the training, in the host's memory; the head from its float32 master.

        Every rank must call it with the same names in the same order; all but the first get an empty tensor.
        """
        import torch
        from deepspeed import zero
        from deepspeed.utils import safe_get_full_fp32_param

        parts = self._parts[name]
        if name == HEAD and (master := safe_get_full_fp32_param(parts[0])) is not None:
            return master.detach().reshape(1, -1).float().cpu()
        divided = any(hasattr(part, "ds_id") for part in parts)
        with zero.GatheredParameters(parts) if divided else contextlib.nullcontext(), torch.no_grad():
            if self._rank:
                return torch.empty(0)
            value = parts[0] if self._settings is None else merged(parts, self._settings)
            return value.detach().cpu()

    def take_part(self) -> None:
        """Read all weights in the order in which the first rank writes them."""
        for shard in shards_of(self.sizes, self._model.family):
            for name in shard.values():
                self.read(name)


@contextlib.contextmanager
def reading(engine: Any) -> Iterator[None]:
    """Make an engine's weights ready to be read: under ZeRO-3, none stays gathered. Every rank must enter and leave."""
    optimizer = engine.optimizer
    if hasattr(optimizer, "checkpoint_event_prologue"):
        optimizer.checkpoint_event_prologue()
    yield
    if hasattr(optimizer, "checkpoint_event_epilogue"):
        optimizer.checkpoint_event_epilogue()


def _bytes(weight: torch.Tensor) -> int:
    """Of a weight, divided among ranks or whole."""
    return int(getattr(weight, "ds_numel", weight.numel())) * weight.element_size()
