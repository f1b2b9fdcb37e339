"""Brings a reward model of another trainer into our checkpoint layout, which vLLM serves as it is.

    dt2it convert SOURCE DESTINATION [--base-model FOLDER] [--system-prompt TEXT] [--max-pixels PIXELS]

SOURCE holds whole weights or an adapter, with a head as heads.py finds it. Adapters are merged with their base model.
Our head has no bias and needs none: a constant added to every score changes no preference. It is noted in the card.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dt2it_pipeline.storage import atomic

if TYPE_CHECKING:
    import torch

    from dt2it_pipeline.reward.checkpoints.adapters import ModelParts
    from dt2it_pipeline.reward.modeling.model import RewardNetwork


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import found and made.

    Attributes:
        layout: of the source, in words.
        base_model: folder or Hub id that an adapter was merged with; None where the source has whole weights.
        head: where the head came from: name of the weight, and its file.
        dropped_bias: scores of the original are ours plus this constant.
        record: entries of the card that ms-swift's args.json stands for; empty for other trainers.
        system_unknown: whether neither the files nor the call say with which system turn it was trained.
    """

    layout: str
    base_model: str | None
    head: str
    dropped_bias: float
    record: dict[str, Any]
    system_unknown: bool


def import_checkpoint(
    source: str | Path,
    destination: str | Path,
    *,
    base_model: str | Path | None = None,
    system_prompt: str | None = None,
    max_pixels: int | None = None,
) -> Imported:
    """Write the reward model in `source` to the new folder `destination`, which appears whole or not at all.

    Every weight keeps the type in which it lies on disk; a merged one that of the base model's. config.json of
    `destination` names the type of most weights of the language model.

    Args:
        source: folder or Hub id of a reward model.
        destination: folder to make.
        base_model: folder or Hub id of an adapter's base model, where it is not the one that its files name.
        system_prompt: system turn that the model was trained with. Other trainers' models have it in conversations
            without one of their own; where it is empty, these have none, whatever their chat template writes by itself.
            None: what the card or ms-swift's args.json in `source` says, or else the chat template.
        max_pixels: pixels per image that it was trained with; by default those that args.json says, or else those of
            its image processor.

    Returns:
        What was found in `source`, with the bias that was dropped.

    Raises:
        CheckpointError: `destination` exists, or `source` cannot be loaded; see `RewardNetwork.from_pretrained`.
    """
    from dt2it_pipeline.reward.calibration import CARD_KEY
    from dt2it_pipeline.reward.checkpoints.adapters import find_parts
    from dt2it_pipeline.reward.checkpoints.checkpoint import CheckpointError, family_of, stored_type, stored_types
    from dt2it_pipeline.reward.checkpoints.model_card import write_card
    from dt2it_pipeline.reward.checkpoints.processor_files import chat_template, pixel_limit, trained_with
    from dt2it_pipeline.reward.checkpoints.swift_record import swift_record
    from dt2it_pipeline.reward.data.encoding import load_processor
    from dt2it_pipeline.reward.modeling.model import RewardNetwork

    destination = Path(destination)
    if destination.exists():
        raise CheckpointError(f"{destination} exists already; name a new folder")
    parts = find_parts(source, base_model)
    load_processor(parts.processor, family=family_of(parts.backbone))  # what cannot be read cannot be served either
    model = RewardNetwork.from_pretrained(source, base_model=base_model, dtype=stored_type(parts.backbone))
    _keep_types(model, stored_types(parts.backbone))
    name, head, record = Path(source).resolve().name, parts.head(), swift_record(parts.folder, parts.backbone)
    assert head is not None  # the model has been loaded with it
    kept = trained_with(chat_template(parts.processor) or "")
    said = system_prompt is not None or kept is not None or "system_prompt" in {**model.card, **record}
    where = f"{head.name} in {head.file.name}"
    found = Imported(_layout(parts), parts.base_model, where, float(head.bias or 0.0), record, not said)
    if kept is None:
        # Other trainers write a turn as the data have it, and give their system turn to conversations without one.
        model.card = {"system_prompt": "", "image_newlines": False, "system_default": True} | model.card
    model.card = {
        "name": name,
        "dropped_bias": found.dropped_bias,
        "imported_from": found.head,
    } | model.card
    if system_prompt is not None:
        as_others = bool(model.card.get("system_default", kept is not None and kept.system_default))
        model.card |= {"system_prompt": system_prompt, "system_suppressed": as_others and not system_prompt}
    if max_pixels is not None:
        limit = pixel_limit(model.processor_source) if model.processor_source is not None else None
        model.card["max_pixels"] = min(max_pixels, limit or max_pixels)
    if system_prompt is not None or max_pixels is not None:
        model.card.pop(CARD_KEY, None)  # its scores are others now
    with atomic.atomic_directory(destination) as folder:
        model.save_pretrained(folder)
        write_card(folder, base_model=parts.base_model or name)
    return found


def _keep_types(model: RewardNetwork, types: Mapping[str, torch.dtype]) -> None:
    """Give the backbone's weights their types on disk, and its configuration that of most of the language model's."""
    from dt2it_pipeline.reward.checkpoints.checkpoint import plain_name

    sizes: Counter[torch.dtype] = Counter()
    for name, parameter in model.model.named_parameters():
        parameter.data = parameter.data.to(types.get(plain_name(name), parameter.dtype))
        if not plain_name(name).startswith("visual."):
            sizes[parameter.dtype] += parameter.numel()
    [(most, _)] = sizes.most_common(1)
    for config in (model.config, model.config.text_config, model.config.vision_config):
        config.dtype = most


def _layout(parts: ModelParts) -> str:
    """How the source keeps its weights, in words."""
    from dt2it_pipeline.reward.checkpoints.checkpoint import CONFIG, read_json

    names = read_json(parts.backbone / CONFIG).get("architectures")
    named = ", ".join(map(str, names)) if isinstance(names, list) and names else "no architecture"
    if parts.base_model is not None:
        return f"adapter (LoRA), of a model that {CONFIG} calls {named}"
    return f"whole weights, which {CONFIG} calls {named}"
