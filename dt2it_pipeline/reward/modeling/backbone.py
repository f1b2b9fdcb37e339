"""Loads the backbone of a reward model: a vision-language model of transformers without its language-model head."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dt2it_pipeline.reward.checkpoints.adapters import ModelParts, read_adapter
from dt2it_pipeline.reward.checkpoints.checkpoint import CheckpointError, stored_type, weight_files, weight_names
from dt2it_pipeline.reward.families import Family
from dt2it_pipeline.reward.modeling.attention import register
from dt2it_pipeline.reward.modeling.vision_attention import replace_attention

# Wrappers of trainers put these before all names of weights (DDP, torch.compile, FSDP, TRL's value head, PEFT).
_WRAPPERS = {
    r"^(?:module\.|_orig_mod\.|_fsdp_wrapped_module\.|pretrained_model\.|base_model\.model\.)+": "",
    # A class of one's own around Qwen2.5-VL keeps the names of memory. Transformers finds its language model and loses
    # the vision encoder.
    r"^model\.(?=visual\.)": "",
}


class _Patches(nn.Conv3d):
    """The vision encoder's first layer as the matrix product that it is: its kernel covers exactly one patch, and the
    general convolution is several times slower at it. Weight and its shape stay those of the convolution.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Patches [patches, channels, time, height, width] to [patches, hidden]."""
        return nn.functional.linear(input.flatten(1), self.weight.flatten(1), self.bias)


def load_backbone(
    folder: Path, family: Family, dtype: torch.dtype, attention: str, device: torch.device | None = None
) -> Any:
    """Load the backbone from a folder with config.json and whole weights.

    Args:
        folder: of the model.
        family: of the model.
        dtype: type of the weights in memory.
        attention: implementation of the language model's attention; see `attention.layer_mask`.
        device: where the weights are put as they are read, without a second copy in memory; the CPU by default.

    Raises:
        CheckpointError: weights are missing or damaged.
        ValueError: the attention implementation is unknown or not installed.
    """
    import transformers
    from safetensors import SafetensorError

    transformers.logging.set_verbosity_error()  # a missing lm_head is expected here, and would be reported as a fault
    if hasattr(transformers.logging, "disable_progress_bar"):
        transformers.logging.disable_progress_bar()
    backbone = family.backbone_class()
    adapted = sorted(name for file in weight_files(folder) for name in weight_names(file) if ".lora_" in name)
    if adapted:
        raise CheckpointError(
            f"{folder} holds weights of an adapter that are not merged, such as {adapted[0]}; merge them, or put the "
            "adapter with its adapter_config.json into a folder of its own"
        )
    register()
    chosen: Any = {"": "sdpa", "text_config": attention, "vision_config": "sdpa"}
    try:
        made, found = backbone.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=chosen,
            local_files_only=True,
            output_loading_info=True,
            key_mapping=dict(_WRAPPERS),
            device_map=None if device is None or device.type == "cpu" else {"": device},
        )
    except ImportError as error:
        raise ValueError(f"attention {attention!r} does not work here: {error}; use 'sdpa'") from error
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder} cannot be loaded: {error}; copy or export the checkpoint again") from error
    missing = sorted(found["missing_keys"]) + sorted(str(key) for key in found["mismatched_keys"])
    if missing:  # the library would go on with random weights in their place
        raise CheckpointError(
            f"{folder} lacks {len(missing)} weights of its own architecture, such as {missing[0]}; copy or export the "
            "checkpoint again"
        )
    made.visual.patch_embed.proj.__class__ = _Patches
    replace_attention(made.visual)
    return made


def load_weight_by_weight(
    parts: ModelParts,
    family: Family,
    dtype: torch.dtype,
    attention: str,
    device: torch.device,
    each: Callable[[str, nn.Parameter], None] | None = None,
) -> Any:
    """Load the backbone of a model, adapter included, so that no rank ever has a second copy of it.

    Weights stay where their files are mapped into memory, in the type that they have there, until their turn comes: one
    after the other is brought to the device, gets the update of the adapter, and takes the type that is asked for.

    Args:
        parts: of the model.
        family: of the model.
        dtype: type of the weights in the end.
        attention: as of `load_backbone`.
        device: where the weights are put.
        each: called with the name of each weight and the weight, as soon as it is there; it may divide it among ranks.

    Raises:
        CheckpointError, ValueError: as `load_backbone`, and where the adapter is damaged or does not fit.
    """
    backbone = load_backbone(parts.backbone, family, stored_type(parts.backbone), attention)
    adapter = None if parts.base_model is None else read_adapter(parts, backbone)
    for name, parameter in backbone.named_parameters():
        value = parameter.data.to(device)
        if adapter is not None:
            value = adapter.merged(name, value)
        parameter.data = value.to(dtype)
        if each is not None:
            each(name, parameter)
    for module in backbone.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    for config in (backbone.config, backbone.config.text_config, backbone.config.vision_config):
        config.dtype = dtype  # not that on disk; it is written into a checkpoint
    return backbone
