"""Plain Python inputs of `RewardModel.score`: checked, and handed to the same scorer that the pipeline uses."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dt2it_pipeline.media.errors import MediaError
from dt2it_pipeline.media.markers import user_marker_kinds, with_media_first
from dt2it_pipeline.media.opening import open_image
from dt2it_pipeline.reward.modeling.model import RewardNetwork
from dt2it_pipeline.reward.scoring.scorer import Scorer
from dt2it_pipeline.reward.too_long import TOO_LONG

_KEYS = ("turns", "system", "images", "videos")


def score_lists(
    model: RewardNetwork,
    prompts: Sequence[Mapping[str, Any]],
    responses: Sequence[Sequence[str]],
    media_root: str | Path | None,
    max_length: int | None,
    max_pixels: int | None,
    tokens_per_batch: int,
) -> list[np.ndarray]:
    """See `RewardModel.score`."""
    if isinstance(prompts, Mapping) or isinstance(responses, str):
        raise ValueError(
            "prompts and responses are lists; for a single prompt write score([prompt], [[response, ...]])"
        )
    for name, given in (("prompts", prompts), ("responses", responses)):
        if not isinstance(given, Sequence):
            raise ValueError(f"{name} must be a list with one entry per prompt, found {type(given).__name__}")
    limits = {"max_length": max_length, "max_pixels": max_pixels, "tokens_per_batch": tokens_per_batch}
    for name, limit in limits.items():
        if limit is not None and (not isinstance(limit, int) or limit < 1):
            raise ValueError(f"{name} must be a whole number above 0, found {limit!r}")
    if len(prompts) != len(responses):
        raise ValueError(f"{len(prompts)} prompts but {len(responses)} lists of responses; give one list per prompt")
    rows = {str(number): prompt_row(prompt, number, media_root) for number, prompt in enumerate(prompts)}
    texts = [
        (f"{number}.{place}", str(number), text)
        for number, members in enumerate(responses)
        for place, text in enumerate(checked_texts(members, number))
    ]
    scorer = Scorer(
        model,
        media_root if media_root is not None else "/",
        max_length=max_length,
        max_pixels=max_pixels,
        tokens_per_batch=tokens_per_batch,
    )
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        scores, faults = scorer.score(rows, texts)
    finally:
        for module, training in modes.items():
            module.training = training
    if faults:
        name = min(faults, key=lambda key: tuple(map(int, key.split("."))))
        number, place = name.split(".")
        reason, detail = faults[name]
        raise ValueError(
            f"prompt {number}, response {place}: {reason}{_hint(reason)} ({detail})"
            + (f"; {len(faults) - 1} more cannot be scored either" if len(faults) > 1 else "")
        )
    return [
        np.array([scores[f"{number}.{place}"] for place in range(len(members))], dtype=np.float32)
        for number, members in enumerate(responses)
    ]


def checked_texts(members: Sequence[str], number: int) -> Sequence[str]:
    """The responses to prompt `number` as they are. Raises ValueError where they are no list of texts."""
    if isinstance(members, str):
        raise ValueError(f"responses to prompt {number} are a single text; put it into a list")
    if not isinstance(members, Sequence):
        raise ValueError(f"responses to prompt {number} must be a list of texts, found {type(members).__name__}")
    if not len(members):
        raise ValueError(f"prompt {number} has no responses; give at least one, or leave the prompt out")
    for place, text in enumerate(members):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"prompt {number}, response {place}: expected a text that is not empty, found {text!r}")
    return members


def prompt_row(prompt: Mapping[str, Any], number: int, media_root: str | Path | None) -> dict[str, Any]:
    """A prompt as a row of a prompts table; arguments are those of `RewardModel.score`, `number` is its place there.

    Raises:
        ValueError: its shape is another; the message says where and what is expected.
    """
    if not isinstance(prompt, Mapping) or "turns" not in prompt:
        raise ValueError(f"prompt {number} is not a mapping with `turns`, a list of {{'role': ..., 'text': ...}}")
    turns = prompt["turns"]
    if not isinstance(turns, Sequence) or isinstance(turns, str):
        raise ValueError(f"prompt {number}: `turns` must be a list of {{'role': ..., 'text': ...}}, found {turns!r}")
    for place, turn in enumerate(turns):
        if not isinstance(turn, Mapping) or not isinstance(turn.get("text"), str) or "role" not in turn:
            raise ValueError(f"prompt {number}, turn {place}: expected {{'role': ..., 'text': ...}}, found {turn!r}")
        if not turn["text"].strip():
            raise ValueError(f"prompt {number}, turn {place}: the text is empty")
    if "media" in prompt:
        if media_root is None and len(prompt["media"]):
            raise ValueError(f"prompt {number} is a row of a table: say in media_root where its media lie")
        return dict(prompt)
    unknown = sorted(set(prompt) - set(_KEYS))
    if unknown:
        raise ValueError(f"prompt {number} has unknown keys {unknown}; known: {', '.join(_KEYS)}")
    for key, kind_of, what in (("images", list, "a list"), ("videos", list, "a list"), ("system", str, "a text")):
        value = prompt.get(key)
        if value is not None and not isinstance(value, (kind_of, tuple) if kind_of is list else kind_of):
            raise ValueError(f"prompt {number}: `{key}` must be {what}, found {type(value).__name__}")
    given = {kind: list(prompt.get(f"{kind}s") or ()) for kind in ("image", "video")}
    markers = user_marker_kinds(turns)
    if not markers:  # they may be left out
        markers = ["image"] * len(given["image"]) + ["video"] * len(given["video"])
        turns = with_media_first(turns, markers)
    for kind, items in given.items():
        if markers.count(kind) != len(items):
            raise ValueError(
                f"prompt {number} has {markers.count(kind)} <{kind}> markers in its user turns, but {len(items)} "
                f"{kind}s; write one marker for each"
            )
    queues = {kind: iter(items) for kind, items in given.items()}
    media = [_medium(next(queues[kind]), kind, number, media_root) for kind in markers]
    return {"turns": turns, "system": prompt.get("system") or "", "media": media}


def _medium(item: Any, kind: str, number: int, media_root: str | Path | None) -> dict[str, Any]:
    if kind == "image" and isinstance(item, bytes):
        try:
            item = open_image(item)
        except MediaError as error:
            raise ValueError(f"prompt {number}: {error}") from None
    if kind == "image" and isinstance(item, Image.Image):
        digest = hashlib.sha256(f"{item.mode} {item.size}".encode())
        digest.update(item.convert("RGBA").tobytes())
        return {"kind": kind, "sha256": digest.hexdigest(), "path": "", "image": item}
    if not isinstance(item, (str, Path)):
        more = ", bytes or an image of PIL" if kind == "image" else " of a file or of a folder of frames"
        raise ValueError(f"prompt {number}: expected a path{more} for an <{kind}>, found {type(item).__name__}")
    path = str(item) if media_root is not None else str(Path(item).absolute())
    return {"kind": kind, "sha256": "", "path": path}


def _hint(reason: str) -> str:
    return {
        TOO_LONG: ", which may be raised or the text shortened",
        "prompt does not end with a user turn": "; the response comes after the user's last turn",
        "score is not a number": "; the model's weights are damaged",
    }.get(reason, "")
