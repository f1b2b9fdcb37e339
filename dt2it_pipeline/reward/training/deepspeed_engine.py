"""The DeepSpeed engine of a training: its configuration, a file of configs/deepspeed completed by the recipe, its
optimiser, how a model is loaded for it, and how the weights are read for a checkpoint.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from dt2it_pipeline.config.recipe_files import read_deepspeed_config, zero_stage
from dt2it_pipeline.config.sections.training import LoraSettings, TrainingSettings
from dt2it_pipeline.engines.device import weight_type
from dt2it_pipeline.reward.checkpoints.checkpoint import HEAD, shards_of
from dt2it_pipeline.reward.modeling import lora

if TYPE_CHECKING:
    import torch

    from dt2it_pipeline.reward.modeling.model import RewardNetwork

_ADAMW = "adamw"


def load_network(
    base_model: str, settings: TrainingSettings, seed: int, device: torch.device, fallbacks: int = 0
) -> RewardNetwork:
    """Load a base model to be trained, with its vision encoder frozen and on the device.

    Under ZeRO-3 each weight of the language model is divided among the ranks as soon as it is read, an adapter's update
    included, so that no rank ever has a copy of the model. Every rank calls this then. The vision encoder stays whole:
    a rank runs it only for batches with images, and ranks gather divided weights together.

    Args:
        base_model: folder or Hub id; an adapter is merged with its base model.
        settings: of the training.
        seed: of the head, where the model has none.
        device: that the rank computes on.
        fallbacks: how often kernels did not fit the GPU; see `kernels_for`.
    """
    from dt2it_pipeline.reward.modeling.model import RewardNetwork

    dtype = weight_type(settings.precision, device)
    divide = _Divider(settings, dtype) if zero_stage(settings.deepspeed_config) == 3 else None

    def divide_language(name: str, parameter: torch.nn.Parameter) -> None:
        if divide is not None and not name.startswith("visual."):
            divide(parameter)

    model = RewardNetwork.from_pretrained(
        base_model, new_head_seed=seed, dtype=dtype, attention=settings.attention, device=device,
        compile=settings.compile, fallbacks=fallbacks, trains=True, each=None if divide is None else divide_language,
    )  # fmt: skip
    model.freeze_vision()
    return model


def make_engine(model: RewardNetwork, settings: TrainingSettings, seed: int, device: torch.device) -> Any:
    """Make a model ready to be trained under DeepSpeed: adapters, checkpointing, optimiser.

    Args:
        model: as `load_network` has loaded it.
        settings: of the training.
        seed: of the adapters' first values.
        device: that the rank computes on.
    """
    import deepspeed
    import torch
    from deepspeed.utils import set_z3_leaf_module

    config = deepspeed_config(settings, torch.distributed.get_world_size())
    if zero_stage(settings.deepspeed_config) == 3:
        divide = _Divider(settings, weight_type(settings.precision, device))
        for parameter in model.head.parameters():
            divide(parameter)
        # A plain attribute from now on: DeepSpeed divides and gathers the weights of all modules that it finds.
        backbone = model.model
        backbone.__dict__["visual"] = backbone._modules.pop("visual")
    if settings.lora is not None:  # adapters take type and device of the weights beside them
        lora.add_adapters(model, settings.lora, seed)
    if settings.gradient_checkpointing:
        model.model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    model.model.visual.eval()
    trained = [p for p in model.parameters() if p.requires_grad]
    # As everywhere, weight decay is for matrices: norms and biases (one dimension) are left alone.
    decay = settings.weight_decay
    groups: list[dict[str, Any]] = [{"params": [p for p in trained if _dimensions(p) > 1], "weight_decay": decay}]
    groups.append({"params": [p for p in trained if _dimensions(p) <= 1], "weight_decay": 0.0})
    if decay == 0:
        groups = [{"params": trained, "weight_decay": 0.0}]
    if model.compiled:
        # ZeRO-3 then gathers a layer's weights at once, outside what is compiled, and not part by part inside it.
        for layer in model.called_whole():
            set_z3_leaf_module(layer, True)
    optimizer = take_optimizer(config, groups)
    given = {"model_parameters": groups} if optimizer is None else {"optimizer": optimizer}
    engine = deepspeed.initialize(model=model, config=config, dist_init_required=False, **given)[0]
    if model.compiled and settings.lora is not None and zero_stage(settings.deepspeed_config) == 3:
        # DeepSpeed 0.19 reduces the gradients of a layer that is gathered at once in a hook for the end of its backward
        # pass. PyTorch calls it before that pass where no input of the layer takes a gradient, as the first layer's
        # when the embedding is frozen.
        model.model.language_model.embed_tokens.register_forward_hook(_take_gradient)
    return engine


def _take_gradient(module: torch.nn.Module, given: Any, states: torch.Tensor) -> None:
    """Let hidden states take a gradient where one is computed."""
    import torch

    if torch.is_grad_enabled():
        states.requires_grad_()


class TrainedWeights:
    """Weights under the names of the model without adapters, for `RewardNetwork.save_pretrained` of the first rank.

    A model that is divided among ranks, or that fills a GPU, may be larger than the memory that is left. So no copy of
    it is made: each weight is read when its file is written. The other ranks call `take_part` instead, since ranks read
    divided weights together.

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
        self._parts = {lora.base_name(name): lora.parts_of(name, named) for name in named if ".lora_" not in name}
        self.sizes = {name: _numbers(parts[0]) * parts[0].element_size() for name, parts in self._parts.items()}

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
            value = parts[0] if self._settings is None else lora.merged(parts, self._settings)
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


class _Divider:
    """Leaves each rank its part of a weight, as ZeRO-3 keeps it. Every rank calls it with the same weights in turn.

    DeepSpeed would divide all weights of a model at once, after it has brought them to the type of the training.
    """

    def __init__(self, settings: TrainingSettings, dtype: torch.dtype) -> None:
        import torch

        self._config, self._dtype = deepspeed_config(settings, torch.distributed.get_world_size()), dtype
        self._divided: Any = None  # the first weight; it has a method then that divides others in the same way

    def __call__(self, parameter: torch.nn.Parameter) -> None:
        import torch
        from deepspeed import zero

        # A copy: DeepSpeed writes the first rank's values into it, and pages of a mapped file would stay once written.
        parameter.data = parameter.data.to(self._dtype, copy=True)
        if self._divided is None:
            only = torch.nn.ParameterList([parameter])
            zero.Init(module=only, config_dict_or_path=self._config, dtype=self._dtype)
            self._divided = parameter
        else:
            self._divided.convert_to_zero_parameters(param_list=[parameter])


def _dimensions(parameter: Any) -> int:
    """Of a weight, divided among ranks or whole."""
    return len(getattr(parameter, "ds_shape", parameter.shape))


def _numbers(weight: torch.Tensor) -> int:
    """Of a weight, divided among ranks or whole."""
    return int(getattr(weight, "ds_numel", weight.numel()))


def deepspeed_config(settings: TrainingSettings, ranks: int) -> dict[str, Any]:
    """The DeepSpeed configuration: the file that the recipe names, completed with the recipe's own settings.

    One rank exchanges nothing that could overlap with computing. DeepSpeed would still wait for the device in each pass
    where the file asks for `overlap_comm`, so that it is off then.
    """
    config = read_deepspeed_config(settings.deepspeed_config)
    optimizer = config.setdefault("optimizer", {"type": "AdamW", "params": {}})
    optimizer["params"] = {"lr": settings.learning_rate} | optimizer.get("params", {})
    zero = config.get("zero_optimization")
    if ranks == 1 and zero:
        config["zero_optimization"] = zero | {"overlap_comm": False}
    # These timers wait for the device at every pass.
    config.setdefault("timers", {}).setdefault("throughput", {"enabled": False})
    return config | {
        "train_micro_batch_size_per_gpu": 1,  # nominal: the schedule says how many pairs a pass holds
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.max_grad_norm,
        # Without a look at every gradient for what is not finite: the norm shows it, and the training stops.
        "bf16": {"enabled": settings.precision == "bfloat16", "check_grad_overflow": False},
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
