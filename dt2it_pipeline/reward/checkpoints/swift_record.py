"""What ms-swift wrote beside a checkpoint about its inputs: the system turn and the size of images.

ms-swift keeps the arguments of a training in args.json. It renders conversations with a template of its own, which for
Qwen models agrees with theirs, and scales images by qwen-vl-utils, whose limits are not those of the image processor's
files: Qwen3-VL's processor enlarges images below 65,536 pixels, and ms-swift does not. Without this file's facts, such
images would be scored at another size than that of the training.

Limits that were set by environment variables of the training alone stand in no file: name them (`--max-pixels`).
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dt2it_pipeline.reward.checkpoints.checkpoint import CONFIG, CheckpointError, read_json

ARGUMENTS = "args.json"
_OF_SWIFT = {"template", "system", "max_pixels", "task_type"}  # arguments that ms-swift always writes
# System turns that its templates give a conversation without one.
_DEFAULTS = {"qwen2_5_vl": "You are a helpful assistant."}
_LEAST_TOKENS, _MOST_TOKENS = 4, 16384  # of an image, in qwen-vl-utils
_SIDES = ("patch_size", "spatial_merge_size")  # their product is the side of an image token, in pixels


def swift_record(folder: Path, backbone: Path) -> dict[str, Any]:
    """Entries of a card (`processor_files`) that ms-swift's args.json stands for; empty where it is not there.

    Args:
        folder: of the model or adapter.
        backbone: folder of the model's config.json.

    Raises:
        CheckpointError: args.json is damaged; or says that the training wrote no chat turns, which our scorers do.
    """
    found = _arguments(folder / ARGUMENTS)
    if found is None:
        return {}
    if found.get("use_chat_template") is False:
        raise CheckpointError(
            f"{folder / ARGUMENTS} says that the model was trained without a chat template (use_chat_template = "
            "false); scores here are those of a conversation in chat turns: train it with --use_chat_template true"
        )
    system = found["system"]
    if not isinstance(system, str):
        system = _DEFAULTS.get(str(found["template"]), "")
    record = {"system_prompt": system, "system_default": True, "image_newlines": False}
    return record | _pixels(found, read_json(backbone / CONFIG))


def _arguments(file: Path) -> Mapping[str, Any] | None:
    """The arguments in a file of ms-swift; None where it is not there or another program's."""
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"cannot read {file} ({error}), which says how the model was trained; copy the checkpoint again"
        ) from error
    return found if isinstance(found, dict) and found.keys() >= _OF_SWIFT else None


def _pixels(found: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, int]:
    """Least and most pixels of an image: of qwen-vl-utils, as `--model_kwargs` and `--max_pixels` change them."""
    vision = config.get("vision_config")
    sides = [_whole(vision.get(name)) for name in _SIDES] if isinstance(vision, Mapping) else [None]
    if None in sides:
        return {}  # the family's code knows them; its image processor's own limits then count
    token = math.prod(filter(None, sides)) ** 2  # pixels
    given = found.get("model_kwargs")
    named = {str(key).upper(): value for key, value in given.items()} if isinstance(given, Mapping) else {}
    least = _whole(named.get("IMAGE_MIN_TOKEN_NUM")) or (_whole(named.get("MIN_PIXELS")) or 0) // token
    most = _whole(named.get("IMAGE_MAX_TOKEN_NUM")) or (_whole(named.get("MAX_PIXELS")) or 0) // token
    longest = (most or _MOST_TOKENS) * token
    if scaled := _whole(found["max_pixels"]):
        logging.getLogger(__name__).warning(
            "ms-swift was given max_pixels = %d, scales larger images twice and rounds to image tokens after it: "
            "scores of such images are near the trainer's, not the same",
            scaled,
        )
        longest = min(longest, scaled)
    return {"min_pixels": min((least or _LEAST_TOKENS) * token, longest), "max_pixels": longest}


def _whole(value: Any) -> int | None:
    """A positive whole number, or one in a text; None for anything else."""
    try:
        number = int(value) if isinstance(value, (int, str)) and not isinstance(value, bool) else 0
    except ValueError:
        return None
    return number if number > 0 else None
