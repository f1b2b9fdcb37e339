"""At how many pixels images are scored, and at how many the model was trained: for summaries and for people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dt2it_pipeline.reward.checkpoints.processor_files import pixel_limit, trained_pixels

_USED, _TRAINED = "max_pixels", "trained_max_pixels"


def image_size(model: str | Path, max_pixels: int | None) -> dict[str, int | None]:
    """Entries of a scoring's summary.

    Args:
        model: folder of the checkpoint; of another, as of one on a server's machine, nothing is known.
        max_pixels: of the scoring; None: as the checkpoint's files say.

    Returns:
        max_pixels, which the scoring uses, and trained_max_pixels; None where it is not known.
    """
    return {_USED: pixel_limit(model) if max_pixels is None else max_pixels, _TRAINED: trained_pixels(model)}


def image_size_line(summary: Mapping[str, Any]) -> str:
    """The entries of `image_size` in words.

    >>> image_size_line({"max_pixels": 268324, "trained_max_pixels": 268324})
    'images: scaled down to at most 268,324 pixels, as in training'
    >>> image_size_line({"max_pixels": 1310720, "trained_max_pixels": 268324})
    'images: scaled down to at most 1,310,720 pixels; the model was trained at 268,324'
    """
    used, trained = summary.get(_USED), summary.get(_TRAINED)
    if used is None:
        return "images: scaled down as the server's checkpoint says, which is not on this machine"
    if trained is None:
        tail = "; at how many the model was trained is not known"
    elif used == trained:
        tail = ", as in training"
    else:
        tail = f"; the model was trained at {trained:,}"
    return f"images: scaled down to at most {used:,} pixels{tail}"
