"""Imports a reward model that LLaMA-Factory trained (such as Skywork-VL-Reward-7B) into our checkpoint layout.

    dt2it convert SOURCE DESTINATION [--system-prompt TEXT] [--max-pixels PIXELS]

SOURCE holds a backbone in Hugging Face layout and the head in `value_head.safetensors` or `value_head.bin`:
`v_head.summary.weight` [1, hidden] and `v_head.summary.bias` [1]. Our head has no bias and needs none: a constant added
to every score changes no preference. It is noted in the card.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING

from dt2it_pipeline.storage import atomic

if TYPE_CHECKING:
    import torch

WEIGHT, BIAS = "v_head.summary.weight", "v_head.summary.bias"
_FILES = ("value_head.safetensors", "value_head.bin")


def import_llamafactory(
    source: str | Path, destination: str | Path, *, system_prompt: str = "", max_pixels: int | None = None
) -> float:
    """Write the checkpoint in `source` to the new folder `destination`, which appears whole or not at all.

    Args:
        source: folder with backbone, processor files and value head.
        destination: folder to make.
        system_prompt: system turn that the model was trained with; empty for none.
        max_pixels: pixels per image that it was trained with; by default those of its image processor.

    Returns:
        The dropped bias: scores of the original are ours plus this constant.

    Raises:
        CheckpointError: a file is missing, the head does not fit the backbone, or the architecture is not supported.
    """
    import torch

    from dt2it_pipeline.reward.modeling.model import CheckpointError, RewardNetwork
    from dt2it_pipeline.reward.modeling.model_card import write_card
    from dt2it_pipeline.reward.modeling.processor_files import pixel_limit

    source, destination = Path(source), Path(destination)
    if not source.is_dir():
        raise CheckpointError(f"there is no folder {source}")
    if destination.exists():
        raise CheckpointError(f"{destination} exists already; name a new folder")
    head = _read_head(source)
    model = RewardNetwork.from_pretrained(source, dtype=_stored_type(source))
    expected = tuple(model.head.weight.shape)
    weight = head.get(WEIGHT)
    if weight is None:
        raise CheckpointError(f"{source}: the value head has no {WEIGHT}, only {sorted(head) or 'nothing'}")
    if tuple(weight.shape) != expected:
        raise CheckpointError(f"{source}: {WEIGHT} has shape {tuple(weight.shape)}, the backbone needs {expected}")
    if not bool(torch.isfinite(weight).all()):
        raise CheckpointError(f"{source}: {WEIGHT} holds values that are not finite")
    bias = head.get(BIAS)
    if bias is not None and bias.numel() != 1:
        raise CheckpointError(f"{source}: {BIAS} has shape {tuple(bias.shape)}, expected one number")
    offset = 0.0 if bias is None else float(bias.float().reshape(()))
    model.head.weight.data = weight.float()
    model.card = {
        "name": source.name,
        "imported_from": "LLaMA-Factory",
        "dropped_bias": offset,
        "system_prompt": system_prompt,
        "image_newlines": False,  # it writes a turn as the data have it
    }
    if max_pixels is not None:
        model.card["max_pixels"] = min(max_pixels, pixel_limit(source) or max_pixels)
    with atomic.atomic_directory(destination) as folder:
        model.save_pretrained(folder)
        write_card(folder, base_model=source.name)
    return offset


def _stored_type(source: Path) -> torch.dtype:
    """Type in which the backbone lies on disk, so that nothing is rounded or blown up."""
    import torch

    from dt2it_pipeline.reward.modeling.checkpoint import CheckpointError, read_json

    config = read_json(source / "config.json")
    text = config.get("text_config") or {}
    name = str(config.get("dtype") or config.get("torch_dtype") or text.get("dtype") or "float32")
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise CheckpointError(f"{source / 'config.json'} names the type {name!r}, which torch does not know")
    return found


def _read_head(source: Path) -> dict[str, torch.Tensor]:
    """Tensors of the value head by name."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from dt2it_pipeline.reward.modeling.model import CheckpointError

    safe, pickled = (source / name for name in _FILES)
    try:
        if safe.is_file():
            return load_file(safe)
        if pickled.is_file():
            found = torch.load(pickled, map_location="cpu", weights_only=True)  # nothing in the file is executed
            if not isinstance(found, dict):
                raise CheckpointError(f"{pickled} holds a {type(found).__name__}, not tensors by name")
            return found
    except (OSError, SafetensorError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise CheckpointError(f"{source}: the value head cannot be read: {error}") from error
    raise CheckpointError(f"{source} has no value head: neither {' nor '.join(_FILES)} is there")
