"""Adapter folders (LoRA) as PEFT writes them for LLaMA-Factory, TRL and ms-swift, merged into their base model.

adapter_config.json names the base model and the scale, adapter_model.safetensors holds A and B of every adapted layer
and modules that were trained whole (PEFT's `modules_to_save`). An adapted layer becomes

    W + scale B A,  scale = alpha / r, or alpha / sqrt(r) with `use_rslora` (arXiv 2312.03732),

rounded to the type in which the base model lies on disk, so that the merged folder that `dt2it convert` writes has the
same weights. Variants of LoRA that change more than that are refused, by the settings that stand for them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dt2it_pipeline.reward.checkpoints.checkpoint import (
    ADAPTER_CONFIG,
    BACKBONE,
    CONFIG,
    CheckpointError,
    hidden_size,
    plain_name,
    read_json,
    read_weights,
    resolve_folder,
    stored_types,
    weight_files,
    weight_names,
)
from dt2it_pipeline.reward.checkpoints.heads import Head, find_head, is_head
from dt2it_pipeline.reward.checkpoints.processor_files import chat_template

# Settings of PEFT that change what an adapter computes. Where one of them is set, A and B alone do not say it.
_VARIANTS = (
    "alora_invocation_tokens", "alpha_pattern", "arrow_config", "kasa_config", "layer_replication", "lora_bias",
    "monteclora_config", "target_parameters", "trainable_token_indices", "use_bdlora", "use_dora", "use_qalora",
)  # fmt: skip
_PLAIN_STARTS = (
    None,
    True,
    False,
    "true",
    "gaussian",
    "eva",
    "orthogonal",
)  # these leave the base model's weights alone
_DEFAULT_ALPHA = 8  # PEFT's, of a setting that a file leaves out
_FACTORS = {"lora_A": "down", "lora_B": "up"}
_PROCESSOR = (("tokenizer.json",), ("preprocessor_config.json", "processor_config.json"))  # one of each
_SHOWN = 5  # names in a message


@dataclass(frozen=True, slots=True)
class ModelParts:
    """Where the parts of a model lie.

    Attributes:
        folder: that was named; it may hold an adapter alone.
        backbone: folder with config.json and whole weights: the base model of an adapter, else `folder` itself.
        base_model: name of an adapter's base model, a folder or Hub id; None where `folder` holds no adapter.
        processor: folder with tokenizer, image and video processor and chat template.
    """

    folder: Path
    backbone: Path
    base_model: str | None
    processor: Path

    def head(self) -> Head | None:
        """The head of the adapter, else that among the whole weights. Raises CheckpointError as `find_head` does."""
        hidden = hidden_size(self.backbone)
        return find_head(self.folder, hidden) or find_head(self.backbone, hidden)


def find_parts(path: str | Path, base_model: str | Path | None = None) -> ModelParts:
    """Find the parts of a model.

    Args:
        path: folder or Hub id, of whole weights or of an adapter.
        base_model: folder or Hub id of an adapter's base model; by default the one that adapter_config.json names.

    Raises:
        CheckpointError: a folder is not there; the base model of an adapter is not found, or is an adapter itself; the
            adapter is of a kind that cannot be merged; the folder holds whole weights and an adapter; or an adapter's
            chat template differs from the base model's and comes without an image processor.
    """
    folder = resolve_folder(path)
    if not (folder / ADAPTER_CONFIG).is_file():
        if base_model is not None:
            raise CheckpointError(
                f"{folder} holds no adapter ({ADAPTER_CONFIG}), so it takes no base model: leave it out"
            )
        return ModelParts(folder, folder, None, folder)
    config = read_json(folder / ADAPTER_CONFIG)
    _require_plain_lora(config, folder / ADAPTER_CONFIG)
    name = base_model or config.get("base_model_name_or_path")
    backbone = _base_folder(folder, name, given=base_model is not None)
    others = [file for file in weight_files(folder) if file not in _adapter_files(folder)]
    whole = [file.name for file in others if any(plain_name(n).startswith(BACKBONE) for n in weight_names(file))]
    if whole:
        raise CheckpointError(
            f"{folder} holds an adapter ({ADAPTER_CONFIG}) and whole weights ({', '.join(whole[:_SHOWN])}): remove one"
        )
    has_processor = all(any((folder / name).is_file() for name in names) for names in _PROCESSOR)
    if not has_processor and chat_template(folder) not in (None, chat_template(backbone)):
        raise CheckpointError(
            f"{folder} has a chat template of its own, which is not that of its base model {backbone}, but no "
            f"{' or '.join(_PROCESSOR[1])}, so that it cannot be read: copy the base model's into it; or remove "
            "chat_template.jinja and chat_template of tokenizer_config.json, where the training used the base model's"
        )
    return ModelParts(folder, backbone, str(name), folder if has_processor else backbone)


@dataclass(frozen=True, slots=True)
class Adapter:
    """What an adapter changes in its base model. Its tensors stay where its files are mapped into memory.

    Attributes:
        updates: down [r, in], up [out, r] and scale, by the plain name of the weight that they are added to.
        whole: weights that were trained whole, by the plain name of the weight that they replace.
        kinds: types in which the base model's weights lie on disk, by plain name.
    """

    updates: Mapping[str, tuple[torch.Tensor, torch.Tensor, float]]
    whole: Mapping[str, torch.Tensor]
    kinds: Mapping[str, torch.dtype]

    def merged(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """A weight as the adapter leaves it, where `weight` lies; `weight` itself where the adapter leaves it alone.

        Args:
            name: of the weight in the backbone.
            weight: as the base model has it, in the type that it has on disk or in a larger one.

        Returns:
            The weight, with no more digits than its type on disk has.
        """
        name = plain_name(name)
        if name in self.whole:
            value = self.whole[name]
            return value.to(device=weight.device, dtype=self.kinds.get(name, value.dtype))
        if name in self.updates:
            return with_update(weight, *self.updates[name]).to(self.kinds.get(name, weight.dtype))
        return weight


def read_adapter(parts: ModelParts, backbone: torch.nn.Module) -> Adapter:
    """Read the adapter of a model; its head is left to heads.py.

    Args:
        parts: of a model with an adapter.
        backbone: model of transformers without a language-model head, loaded from `parts.backbone`.

    Raises:
        CheckpointError: the adapter is damaged, or does not fit the backbone.
    """
    folder = parts.folder
    config = read_json(folder / ADAPTER_CONFIG)
    targets = {plain_name(name): parameter.shape for name, parameter in backbone.named_parameters()}
    factors: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    whole: dict[str, torch.Tensor] = {}
    unknown: list[str] = []
    for file in _adapter_files(folder):
        names = sorted(name for name in weight_names(file) if not is_head(name) and ".original_module." not in name)
        for name, value in read_weights(file, names).items():
            layer, factor = _factor(name)
            target = f"{layer}.weight" if factor else plain_name(name)
            if target.startswith("lm_head."):  # generates text; a reward model has none
                continue
            if target not in targets or (factor is None and ".lora_" in name):
                unknown.append(name)
            elif not bool(torch.isfinite(value).all()):
                raise CheckpointError(f"{file}: {name} holds values that are not finite")
            elif factor:
                factors[target][factor] = value
            else:  # trained whole
                _require_shape(value, targets[target], file, name)
                whole[target] = value
    if unknown:
        raise CheckpointError(
            f"{folder}: {len(unknown)} weights of the adapter belong to no layer of the language model or vision "
            f"encoder in {parts.backbone}, such as {', '.join(unknown[:_SHOWN])}; name the base model that it was "
            "trained on, or merge it with PEFT (merge_and_unload)"
        )
    if not factors and not whole:
        raise CheckpointError(
            f"{folder} has an {ADAPTER_CONFIG}, but no weights of an adapter (adapter_model.safetensors)"
        )
    updates = {
        target: _update(pair, targets[target], config, f"{folder}: {target}")
        for target, pair in sorted(factors.items())
    }
    return Adapter(updates, whole, stored_types(parts.backbone))


def with_update(weight: torch.Tensor, down: torch.Tensor, up: torch.Tensor, scale: float) -> torch.Tensor:
    """`weight` [out, in] plus scale `up` [out, r] `down` [r, in], float32, where `weight` lies."""
    first, second = (part.to(weight.device).float() for part in (down, up))
    return weight.float() + scale * (second @ first)


def _base_folder(folder: Path, name: Any, *, given: bool) -> Path:
    """Folder of an adapter's base model."""
    command = f"dt2it convert {folder} DESTINATION --base-model BASE_MODEL_FOLDER"
    if not isinstance(name, (str, Path)) or not str(name):
        raise CheckpointError(
            f"{folder / ADAPTER_CONFIG} does not name the base model (base_model_name_or_path); merge the adapter with "
            f"it by: {command}"
        )
    try:
        found = resolve_folder(name)
    except CheckpointError as error:
        origin = "the base model that was given" if given else "the base model that its adapter_config.json names"
        raise CheckpointError(
            f"{folder} is an adapter (LoRA), and {origin}, {name}, is not here ({error}); merge the adapter "
            f"with a folder of it by: {command}"
        ) from error
    if (found / ADAPTER_CONFIG).is_file():
        raise CheckpointError(
            f"{found}, the base model of the adapter {folder}, is an adapter itself; convert it first"
        )
    if not (found / CONFIG).is_file():
        raise CheckpointError(f"{found}, the base model of the adapter {folder}, has no {CONFIG}; it holds no model")
    return found


def _require_plain_lora(config: Mapping[str, Any], file: Path) -> None:
    """Raise where an adapter is another thing than W + scale B A."""
    faults = [f"{key} = {config[key]!r}" for key in _VARIANTS if config.get(key)]
    if str(config.get("peft_type", "")).upper() != "LORA":
        faults.insert(0, f"peft_type = {config.get('peft_type')!r}")
    if config.get("bias") not in (None, "none"):
        faults.append(f"bias = {config['bias']!r}")
    if config.get("init_lora_weights") not in _PLAIN_STARTS:
        faults.append(f"init_lora_weights = {config['init_lora_weights']!r}")
    if faults:
        raise CheckpointError(
            f"{file}: {'; '.join(faults)} cannot be merged here: supported is LoRA with r, lora_alpha, rank_pattern, "
            "use_rslora and modules_to_save; merge it with PEFT (merge_and_unload) and load the result"
        )
    alpha = config.get("lora_alpha", _DEFAULT_ALPHA)
    if not isinstance(alpha, (int, float)) or isinstance(alpha, bool) or not math.isfinite(alpha):
        raise CheckpointError(f"{file}: lora_alpha = {alpha!r} is no number")


def _factor(name: str) -> tuple[str, str | None]:
    """Layer (plain name) and factor (`down` or `up`) of a weight of an adapter; no factor where it is none."""
    for found, factor in _FACTORS.items():
        layer, dot, rest = plain_name(name).partition(f".{found}.")
        if dot and rest in ("weight", "default.weight"):
            return layer, factor
    return name, None


def _adapter_files(folder: Path) -> list[Path]:
    return [file for file in weight_files(folder) if file.name.startswith("adapter_model")]


def _require_shape(value: torch.Tensor, shape: torch.Size, file: Path, name: str) -> None:
    if value.shape != shape:
        raise CheckpointError(
            f"{file}: {name} has shape {tuple(value.shape)}, in the base model {tuple(shape)}; it was "
            "trained on another base model"
        )


def _update(
    pair: Mapping[str, torch.Tensor], shape: torch.Size, config: Mapping[str, Any], where: str
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """A, B and scale of a weight. The rank is that of the factors, so that PEFT's `rank_pattern` needs no reading."""
    if set(pair) != {"down", "up"}:
        raise CheckpointError(f"{where} has one of lora_A and lora_B alone; copy the adapter again")
    down, up = pair["down"], pair["up"]
    rank = down.shape[0] if down.ndim == 2 else 0
    if not rank or (up.shape + shape) != (shape[0], rank, shape[0], down.shape[1]):
        raise CheckpointError(
            f"{where} has shape {tuple(shape)}, its adapter {tuple(up.shape)} times {tuple(down.shape)}; it "
            "was trained on another base model"
        )
    return down, up, config.get("lora_alpha", _DEFAULT_ALPHA) / (math.sqrt(rank) if config.get("use_rslora") else rank)
