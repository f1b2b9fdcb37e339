"""The head of a reward model: which weight files hold one, under which names, and whether vLLM finds it there.

What a file holds decides, whatever config.json calls the architecture. Trainers name the head in two ways:

- `score.weight` [1, hidden]: `...ForSequenceClassification` of Transformers, TRL, ms-swift, PEFT, and our own;
- `v_head.summary.weight` [1, hidden] with `v_head.summary.bias` [1]: the value head of TRL, as LLaMA-Factory writes it
  to `value_head.safetensors` or `value_head.bin`, or among the other weights.

Prefixes of wrappers (`module.`, `model.`, `base_model.model.` and the like) do not matter. A bias adds the same number
to every score, so that no comparison of scores depends on it: it is read, kept in the card, and not added.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch

from dt2it_pipeline.reward.checkpoints.checkpoint import (
    ADAPTER_CONFIG,
    BACKBONE,
    CONFIG,
    PICKLED_WEIGHTS,
    WEIGHTS,
    CheckpointError,
    family_of,
    hidden_size,
    plain_name,
    read_json,
    read_weights,
    weight_files,
    weight_names,
)
from dt2it_pipeline.reward.checkpoints.swift_record import ARGUMENTS, swift_record

HEADS = ("score", "v_head.summary")
_SHOWN = 5  # names in a message


@dataclass(frozen=True, slots=True)
class Head:
    """A linear map from hidden size to one score, as a file holds it.

    Attributes:
        weight: float32 [1, hidden].
        bias: added to every score by whoever trained it; 0 where there is none.
        file: that holds it.
        name: of the weight in the file.
        has_bias: whether the file has a bias, be it 0.
    """

    weight: torch.Tensor
    bias: float
    file: Path
    name: str
    has_bias: bool


def is_head(name: str) -> bool:
    """Whether a weight of this name belongs to a head."""
    return plain_name(name).rpartition(".")[0] in HEADS


def holds_head(folder: Path) -> bool:
    """Whether a weight file of a folder holds a head, whatever its shape. Raises CheckpointError for a damaged file."""
    return any(is_head(name) for file in weight_files(folder) for name in weight_names(file))


def find_head(folder: Path, hidden: int) -> Head | None:
    """The head that the weight files of a folder hold, or None where there is none.

    Args:
        folder: of a model or of an adapter.
        hidden: hidden size of the backbone.

    Raises:
        CheckpointError: a file is damaged; a head has several labels, another shape or values that are not finite; or
            there are several heads that differ.
    """
    found: list[Head] = []
    for file in weight_files(folder):
        parts: dict[str, dict[str, str]] = defaultdict(dict)  # module -> weight and bias -> name in the file
        for name in sorted(weight_names(file)):
            if not is_head(name) or ".original_module." in name:  # what PEFT keeps of the head before training
                continue
            module, _, kind = name.rpartition(".")
            parts[module][kind] = name
        found += [_read(file, names, hidden) for names in parts.values() if "weight" in names]
    for other in found[1:]:
        if not torch.equal(other.weight, found[0].weight):
            raise CheckpointError(
                f"{folder} holds several heads that differ: {found[0].name} in {found[0].file.name}, {other.name} in "
                f"{other.file.name}; a reward model has one: remove the one that is not to be used"
            )
    return found[0] if found else None


def no_head(folder: Path) -> CheckpointError:
    """The error of a model without a head where a score is asked for; says what was looked for and what to do."""
    files = weight_files(folder)
    names = {name for file in files for name in weight_names(file)}
    known = (*BACKBONE, "lm_head.")
    rest = sorted(n for n in names if not is_head(n) and ".lora_" not in n and not plain_name(n).startswith(known))
    held = f"Weights there that are no part of the backbone: {', '.join(rest[:_SHOWN])}. " if rest else ""
    looked = ", ".join(("value_head.safetensors", f"other {WEIGHTS}", *PICKLED_WEIGHTS))
    read = ", ".join(file.name for file in files[:_SHOWN]) + (", …" if len(files) > _SHOWN else "")
    return CheckpointError(
        f"{folder} has no head, so it gives no score: looked for {' and '.join(f'{n}.weight' for n in HEADS)} in files "
        f"{looked}; there are {read or 'none'}. {held}A base model is trained first (`dt2it train`, or "
        "training.base_model of a recipe), or used as a judge (kind: likelihood, which needs no head); in Python, "
        "new_head_seed=0 draws a fresh head"
    )


def serving_fault(folder: Path) -> CheckpointError | None:
    """Why vLLM would not serve the scores of the reward model in `folder`, or None where it does.

    vLLM looks for the head under one name, in a model that config.json calls a classifier; `dt2it convert` writes
    this layout.

    Raises:
        CheckpointError: the folder holds no model of a supported family, or is damaged.
    """
    convert = f"write it in our layout first: dt2it convert {folder} DESTINATION"
    if (folder / ADAPTER_CONFIG).is_file():
        return CheckpointError(f"{folder} is an adapter, and vLLM serves merged reward models; {convert}")
    family = family_of(folder)
    head = find_head(folder, hidden_size(folder))
    if head is None:
        return no_head(folder)
    names = list(read_json(folder / CONFIG).get("architectures") or [])
    if head.name != family.head_name or head.has_bias or head.file.suffix != ".safetensors":
        kind = "a head with bias" if head.has_bias else "the head"
        return CheckpointError(
            f"{folder} has {kind} as {head.name} in {head.file.name}; vLLM looks for {family.head_name} without bias, "
            f"in safetensors; {convert}"
        )
    if names != [family.reward_architecture]:
        return CheckpointError(
            f"{folder / CONFIG} names {names}, where vLLM serves scores of {family.reward_architecture}; {convert}"
        )
    if swift_record(folder, folder):
        return CheckpointError(
            f"{folder / ARGUMENTS} says how ms-swift read inputs (system turn, image size), and vLLM reads the "
            f"processor's files alone; {convert}"
        )
    return None


def _read(file: Path, names: dict[str, str], hidden: int) -> Head:
    """The head of one module of a file; `names` are those of its weight and, where it has one, its bias."""
    name = names["weight"]
    tensors = read_weights(file, names.values())
    weight = tensors[name].float()
    if weight.ndim == 2 and weight.shape[0] > 1 and weight.shape[1] == hidden:
        raise CheckpointError(
            f"{file}: {name} has {weight.shape[0]} labels (shape {tuple(weight.shape)}); a reward model has one: "
            "train with num_labels 1"
        )
    if weight.shape != (1, hidden):
        raise CheckpointError(
            f"{file}: {name} has shape {tuple(weight.shape)}, the backbone needs (1, {hidden}): one linear map from "
            "the hidden size to one score"
        )
    bias = tensors[names["bias"]].float() if "bias" in names else torch.zeros(1)
    if bias.numel() != 1:
        raise CheckpointError(f"{file}: {names['bias']} has shape {tuple(bias.shape)}, expected one number")
    if not bool(torch.isfinite(weight).all()) or not bool(torch.isfinite(bias).all()):
        raise CheckpointError(f"{file}: {name} or its bias holds values that are not finite")
    return Head(weight, float(bias.reshape(())), file, name, "bias" in names)
