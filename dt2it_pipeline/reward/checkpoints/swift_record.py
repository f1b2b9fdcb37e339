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
_QWEN = "You are a helpful assistant."
# System turns that its templates give a conversation without one; empty for none. Others are not known.
_DEFAULTS = {
    "chatml": "",
    "mimo_vl": "You are MiMo, an AI assistant developed by Xiaomi.",
    "qvq": "You are a helpful and harmless assistant. You are Qwen developed by Alibaba. Answer in the language of the "
    "question. You should think step-by-step.",
    "qwen": _QWEN,
    "qwen2_5": "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    "qwen2_5_vl": _QWEN,
    "qwen2_vl": _QWEN,
    "qwen3_vl": "",
}
_SWITCHES = {True: (True, 1, "true", "1"), False: (False, 0, "false", "0")}
_LEAST_TOKENS, _MOST_TOKENS = 4, 16384  # of an image, in qwen-vl-utils
_LIMITS = ("IMAGE_MIN_TOKEN_NUM", "IMAGE_MAX_TOKEN_NUM", "MIN_PIXELS", "MAX_PIXELS")  # in model_kwargs
_SIDES = ("patch_size", "spatial_merge_size")  # their product is the side of an image token, in pixels


def swift_record(folder: Path, backbone: Path) -> dict[str, Any]:
    """Entries of a card (`processor_files`) that ms-swift's args.json stands for; empty where it is not there.

    The system turn is not among them where args.json names none and the template is not one of those known here.

    Args:
        folder: of the model or adapter.
        backbone: folder of the model's config.json.

    Raises:
        CheckpointError: args.json is damaged, or a value in it that decides how inputs were read is not of its kind; or
            it says that the training wrote no chat turns, which our scorers do.
    """
    file = folder / ARGUMENTS
    found = _arguments(file)
    if found is None:
        return {}
    if not _switch(found, "use_chat_template", file):
        raise CheckpointError(
            f"{file} says that the model was trained without a chat template (use_chat_template = "
            "false); scores here are those of a conversation in chat turns: train it with --use_chat_template true"
        )
    record = {"system_default": True, "image_newlines": False}
    return record | _system(found, file) | _pixels(found, read_json(backbone / CONFIG), file)


def _system(found: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The system turn of the training, and whether there was none; nothing where that is not known."""
    system, template = found["system"], found["template"]
    if system is None:
        system = _DEFAULTS.get(template) if isinstance(template, str) else None
        if system is None:
            logging.getLogger(__name__).warning(
                "%s names the template %r of ms-swift, whose system turn is not known here, so that what the chat "
                "template itself writes is taken; unless --system-prompt gives that of the training, scores may not be "
                "those of the trainer",
                file,
                template,
            )
            return {}
    if not isinstance(system, str):
        raise _unreadable(file, "system", system, "a text, or null for that of the template")
    return {"system_prompt": system, "system_suppressed": not system}


def _switch(found: Mapping[str, Any], name: str, file: Path) -> bool:
    """A setting that is on where it is not named."""
    value = found.get(name)
    given = value.lower() if isinstance(value, str) else value
    if given is None:
        return True
    for state, values in _SWITCHES.items():
        if isinstance(given, (bool, int, float, str)) and given in values:
            return state
    raise _unreadable(file, name, value, "true or false")


def _unreadable(file: Path, name: str, value: Any, expected: str) -> CheckpointError:
    return CheckpointError(
        f"{file}: {name} = {value!r}"[:300] + f", expected {expected}; it says how inputs of the training were read: "
        "correct it there"
    )


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


def _pixels(found: Mapping[str, Any], config: Mapping[str, Any], file: Path) -> dict[str, int]:
    """Least and most pixels of an image: of qwen-vl-utils, as `--model_kwargs` and `--max_pixels` change them."""
    given = found.get("model_kwargs")
    if isinstance(given, str):
        try:
            given = json.loads(given) if given.strip() else None
        except ValueError:
            given = [given]  # refused below
    if not isinstance(given, Mapping) and given is not None:
        raise _unreadable(file, "model_kwargs", found["model_kwargs"], "an object")
    settings = {str(key).upper(): value for key, value in (given or {}).items()}
    limits = {name: _limit(file, f"model_kwargs.{name}", settings.get(name)) for name in _LIMITS}
    scaled = _limit(file, "max_pixels", found["max_pixels"])
    vision = config.get("vision_config")
    sides = [vision.get(name) for name in _SIDES] if isinstance(vision, Mapping) else [None]
    if not all(isinstance(side, int) and side > 0 for side in sides):
        return {}  # the family's code knows them; its image processor's own limits then count
    token = math.prod(filter(None, sides)) ** 2  # pixels
    least = limits["IMAGE_MIN_TOKEN_NUM"] or limits["MIN_PIXELS"] // token
    most = limits["IMAGE_MAX_TOKEN_NUM"] or limits["MAX_PIXELS"] // token
    longest = (most or _MOST_TOKENS) * token
    if scaled:
        logging.getLogger(__name__).warning(
            "ms-swift was given max_pixels = %d, scales larger images twice and rounds to image tokens after it: "
            "scores of such images are near the trainer's, not the same",
            scaled,
        )
        longest = min(longest, scaled)
    return {"min_pixels": min((least or _LEAST_TOKENS) * token, longest), "max_pixels": longest}


def _limit(file: Path, name: str, value: Any) -> int:
    """A whole number above 0 that a setting has, as a number or in a text; 0 where it is not set."""
    if value is None or value == "":
        return 0
    try:
        number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else -1.0
    except (ValueError, OverflowError):
        number = -1.0
    if not (number >= 0 and number.is_integer()):
        raise _unreadable(file, name, value, "a whole number")
    return int(number)
