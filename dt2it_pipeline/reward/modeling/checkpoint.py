"""Files of a checkpoint: where they lie, their names for weights, and what is wrong with damaged ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch

from dt2it_pipeline.errors import UserError
from dt2it_pipeline.reward.modeling.families import FAMILIES, Family

_HEAD_NAMES = {family.head_name for family in FAMILIES.values()}
_SHARD_BYTES = 5 * 10**9


class CheckpointError(UserError, ValueError):
    """A model folder is not one that this reward model can be made from."""

    help_page: ClassVar[str] = "troubleshooting#checkpoint"


def resolve_folder(path: str | Path) -> Path:
    """Folder of a model: `path` itself when it exists, else a snapshot of the Hub repository of that name.

    Raises CheckpointError where it is neither.
    """
    if not isinstance(path, (str, Path)):
        raise CheckpointError(f"expected the path or Hub id of a model, found {type(path).__name__}")
    folder = Path(path)
    if folder.is_dir():
        return folder
    if folder.is_absolute() or str(path).startswith("."):
        raise CheckpointError(f"there is no model folder {path}")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(path)))
    except (OSError, ValueError) as error:  # the Hub's own errors are of these kinds
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(
            f"{str(path)!r} is neither a folder (seen from {Path.cwd()}) nor a model that the Hub gives: {reason}"
        ) from error


def architecture(config: Mapping[str, Any], folder: Path) -> tuple[Family, bool]:
    """Family of the model that `config` (config.json of `folder`) describes, and whether it is a reward model.

    Raises CheckpointError where it is neither a base model nor a reward model of a supported family.
    """
    kind = str(config.get("model_type", ""))
    names = list(config.get("architectures") or [])
    family = FAMILIES.get(kind)
    if family is None or not {family.base_architecture, family.reward_architecture} & set(names):
        raise CheckpointError(
            f"{folder / 'config.json'} describes {names or 'a nameless architecture'} of type {kind or 'unknown'!r}; "
            f"a reward model is made of {' or '.join(FAMILIES)}: choose such a model"
        )
    return family, any(name.endswith("ForSequenceClassification") for name in names)


def family_of(folder: Path) -> Family:
    """Family of the model in `folder`. Raises CheckpointError where its config.json names none that is supported."""
    kind = str(read_json(folder / "config.json").get("model_type", ""))
    if kind not in FAMILIES:
        raise CheckpointError(
            f"{folder / 'config.json'} describes a model of type {kind or 'unknown'!r}; known are {', '.join(FAMILIES)}"
        )
    return FAMILIES[kind]


def weight_files(folder: Path) -> list[Path]:
    """Weight files of a model folder, by name."""
    return sorted(folder.glob("*.safetensors"))


def weight_names(file: Path) -> set[str]:
    """Names of the weights in a file, whose header must be sound."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as weights:
            return set(weights.keys())
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{file} is not a whole safetensors file ({error}); copy or export the checkpoint again"
        ) from error


def load_head(folder: Path, hidden: int) -> torch.Tensor:
    """The head of a reward model, float32 [1, hidden]. Raises CheckpointError where it is missing or misshapen."""
    from safetensors import safe_open

    for file in weight_files(folder):
        for name in _HEAD_NAMES & weight_names(file):
            with safe_open(file, framework="pt") as weights:
                head = weights.get_tensor(name).float()
            if head.shape != (1, hidden):
                raise CheckpointError(
                    f"{file}: {name} has shape {tuple(head.shape)}, expected (1, {hidden}); the head must be one "
                    "linear map to one score, without bias"
                )
            return torch.as_tensor(head)
    raise CheckpointError(
        f"{folder / 'config.json'} says that this is a reward model, but no *.safetensors file beside it has the head, "
        f"{' or '.join(sorted(_HEAD_NAMES))}; export it again with its head, or start from the base model"
    )


def file_names(weights: Mapping[str, torch.Tensor], family: Family) -> dict[str, torch.Tensor]:
    """Weights under their names in a file, which are those of the family's published checkpoints."""
    renamed = {}
    for name, value in weights.items():
        for ours, outside in family.file_names:
            name = name.replace(ours, outside, 1)
        renamed[family.head_name if name == "head.weight" else name] = value
    return renamed


def save_weights(weights: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Write weights as safetensors, in several files with an index where one would be too large."""
    from safetensors.torch import save_file

    shards: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for name in sorted(weights):
        bytes_here = weights[name].numel() * weights[name].element_size()
        if shards[-1] and size + bytes_here > _SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = weights[name]
        size += bytes_here
    if len(shards) == 1:
        save_file(shards[0], folder / "model.safetensors", metadata={"format": "pt"})
        return
    index: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        index |= dict.fromkeys(shard, name)
    total = sum(value.numel() * value.element_size() for value in weights.values())
    write_json({"metadata": {"total_size": total}, "weight_map": index}, folder / "model.safetensors.index.json")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a file. Raises CheckpointError naming the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return value


def write_json(value: Mapping[str, Any], path: Path) -> None:
    """Write a JSON object for people to read, keys in order."""
    path.write_text(json.dumps(value, ensure_ascii=False, sort_keys=True, indent=2) + "\n", encoding="utf-8")
