"""A reward model as other trainers leave it on disk, made from a tiny base model and a head."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

BIAS = 0.75  # of every head that has one


def make_head(hidden: int = 32, seed: int = 7) -> torch.Tensor:
    """A head, float32 [1, hidden], with values that float16 and bfloat16 would round."""
    import torch

    return torch.randn(1, hidden, generator=torch.Generator().manual_seed(seed))


def value_head(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """Names and shapes as LLaMA-Factory 0.9.5 and TRL write them."""
    import torch

    return {"v_head.summary.weight": weight.clone(), "v_head.summary.bias": torch.tensor([BIAS])}


def with_weights(base: Path, folder: Path, weights: dict[str, torch.Tensor], **config: Any) -> Path:
    """A copy of `base` in `folder` that holds `weights` instead, and `config` in its config.json."""
    from safetensors.torch import save_file

    shutil.copytree(base, folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    written = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(written))
    return folder


def _backbone(base: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {name: value for name, value in load_file(base / "model.safetensors").items() if "lm_head" not in name}


def ms_swift(base: Path, folder: Path, head: torch.Tensor) -> Path:
    """ms-swift 4.6.0: a `...ForSequenceClassification`, and args.json, which says how inputs were read."""
    sequence_classification(base, folder, head)
    return with_arguments(folder)


def with_arguments(folder: Path, **changes: Any) -> Path:
    """The folder with an args.json as ms-swift 4.6.0 writes it, less the arguments that have no part in scores."""
    kind = json.loads((folder / "config.json").read_text())["model_type"] if (folder / "config.json").is_file() else ""
    arguments = {
        "tuner_type": "full", "model_type": kind, "task_type": "seq_cls", "num_labels": 1, "template": kind,
        "system": None, "max_pixels": None, "use_chat_template": True, "padding_side": "right",
        "template_backend": "swift", "response_prefix": None, "model_kwargs": {}, "rlhf_type": "rm",
        "swift_version": "4.6.0",
    }  # fmt: skip
    (folder / "args.json").write_text(json.dumps(arguments | changes))
    return folder


def older_ms_swift(base: Path, folder: Path, head: torch.Tensor) -> Path:
    """`score.weight`, while config.json still names the generating architecture."""
    return with_weights(base, folder, _backbone(base) | {"score.weight": head})


def sequence_classification(base: Path, folder: Path, head: torch.Tensor) -> Path:
    """TRL or Transformers: a `...ForSequenceClassification` with one label."""
    name = json.loads((base / "config.json").read_text())["architectures"][0]
    name = name.replace("ForConditionalGeneration", "ForSequenceClassification")
    return with_weights(
        base, folder, _backbone(base) | {"score.weight": head},
        architectures=[name], num_labels=1, problem_type="regression",
    )  # fmt: skip


def names_of_memory(base: Path, folder: Path, head: torch.Tensor) -> Path:
    """TRL 1.16, a class of one's own around the model: `model.visual`, `model.language_model` in both families."""
    weights = {}
    for name, value in _backbone(base).items():
        plain = name.removeprefix("model.")
        own = plain if plain.startswith(("visual.", "language_model.")) else f"language_model.{plain}"
        weights[f"model.{own}"] = value
    return with_weights(base, folder, weights | {"score.weight": head}, num_labels=1)


def head_with_bias(base: Path, folder: Path, head: torch.Tensor) -> Path:
    import torch

    return with_weights(
        base, folder, _backbone(base) | {"score.weight": head, "score.bias": torch.tensor([BIAS])}, architectures=["X"]
    )


def data_parallel(base: Path, folder: Path, head: torch.Tensor) -> Path:
    """Saved from within a wrapper, which stands before every name."""
    weights = _backbone(base) | {"score.weight": head}
    return with_weights(base, folder, {f"module.{name}": value for name, value in weights.items()})


def llamafactory(base: Path, folder: Path, head: torch.Tensor) -> Path:
    """LLaMA-Factory, Skywork-VL-Reward: the head in a file of its own."""
    from safetensors.torch import save_file

    shutil.copytree(base, folder)
    save_file(value_head(head), folder / "value_head.safetensors")
    return folder


def llamafactory_pickled(base: Path, folder: Path, head: torch.Tensor) -> Path:
    import torch

    shutil.copytree(base, folder)
    torch.save(value_head(head), folder / "value_head.bin")
    return folder


def trl_value_head(base: Path, folder: Path, head: torch.Tensor) -> Path:
    """TRL's model with a value head: the head lies among the other weights."""
    return with_weights(base, folder, _backbone(base) | value_head(head))


def llamafactory_zero3(base: Path, folder: Path, head: torch.Tensor) -> Path:
    """LLaMA-Factory under ZeRO-3, before its own clean-up: a prefix before the backbone alone."""
    weights = {f"pretrained_model.{name}": value for name, value in _backbone(base).items()}
    return with_weights(base, folder, weights | value_head(head))


def adapter(base: Path, folder: Path, rank: int = 4) -> Path:
    """PEFT: an adapter of the linear layers of language model and vision encoder, and a norm that was trained whole."""
    import torch
    from safetensors.torch import save_file

    generator, weights = torch.Generator().manual_seed(3), {}
    for name, value in _backbone(base).items():
        if value.ndim == 2 and "embed" not in name:
            for factor, shape in {"A": (rank, value.shape[1]), "B": (value.shape[0], rank)}.items():
                layer = f"base_model.model.{name.removesuffix('.weight')}.lora_{factor}.weight"
                weights[layer] = 0.1 * torch.randn(shape, generator=generator)
        elif name.endswith("layers.0.input_layernorm.weight"):
            weights[f"base_model.model.{name}"] = value + 0.1 * torch.randn(value.shape, generator=generator)
    folder.mkdir()
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 6, "base_model_name_or_path": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def sharded(base: Path, folder: Path, head: torch.Tensor) -> Path:
    """Two files with an index, the head in the second, as models of some billions are."""
    from safetensors.torch import save_file

    weights = _backbone(base) | {"score.weight": head}
    shutil.copytree(base, folder)
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    index = {}
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), start=1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    total = sum(value.numel() * value.element_size() for value in weights.values())
    written = {"metadata": {"total_size": total}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(written))
    return folder


def pickled(base: Path, folder: Path, head: torch.Tensor) -> Path:
    """Weights in the format before safetensors."""
    import torch

    shutil.copytree(base, folder)
    (folder / "model.safetensors").unlink()
    torch.save(_backbone(base) | {"score.weight": head}, folder / "pytorch_model.bin")
    return folder


Layout = Callable[[Path, Path, "torch.Tensor"], Path]
WITHOUT_BIAS: tuple[Layout, ...] = (
    ms_swift, older_ms_swift, sequence_classification, names_of_memory, data_parallel, sharded, pickled
)  # fmt: skip
WITH_BIAS: tuple[Layout, ...] = (
    head_with_bias, llamafactory, llamafactory_pickled, llamafactory_zero3, trl_value_head
)  # fmt: skip
