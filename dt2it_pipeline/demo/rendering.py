"""Draws images in the look of easy-VQA: one shape on a plain, pale background, 64 x 64 pixels.

The base model learns from these, so that every image of easy-VQA is new to it.
"""

from __future__ import annotations

import random

import numpy as np
from PIL import Image, ImageDraw

from dt2it_pipeline.demo.language import COLORS, SHAPES

SIZE = 64
_OVERSAMPLING = 4  # drawn larger and averaged down, which gives the soft edges of easy-VQA
_RGB = {
    "black": (0, 0, 0),
    "blue": (0, 0, 255),
    "brown": (165, 42, 42),
    "gray": (128, 128, 128),
    "green": (0, 255, 0),
    "red": (255, 0, 0),
    "teal": (0, 128, 128),
    "yellow": (255, 255, 0),
}


def _length(low: float, high: float, rng: random.Random) -> float:
    # Small shapes are the ones that look alike, so half of the lengths come from the lowest third.
    return rng.uniform(low, low + (high - low) / 3 if rng.random() < 0.5 else high)


def draw(color: str, shape: str, rng: random.Random) -> np.ndarray:
    """Draw a `color` `shape` of random size and place, small ones more often; returns uint8 [64, 64, 3]."""
    scale = _OVERSAMPLING
    image = Image.new("RGB", (SIZE * scale, SIZE * scale), tuple(rng.randint(230, 255) for _ in range(3)))
    pen = ImageDraw.Draw(image)
    if shape == "rectangle":
        width, height = _length(8, 32, rng), _length(8, 32, rng)
    elif shape == "circle":
        width = height = _length(9, 33, rng)
    else:
        width = _length(9, 32, rng)
        height = width * 3**0.5 / 2
    left, top = rng.uniform(0, SIZE - width) * scale, rng.uniform(0, SIZE - height) * scale
    right, bottom = left + width * scale, top + height * scale
    fill = _RGB[color]
    if shape == "rectangle":
        pen.rectangle((left, top, right, bottom), fill=fill)
    elif shape == "circle":
        pen.ellipse((left, top, right, bottom), fill=fill)
    else:
        pen.polygon(((left, bottom), ((left + right) / 2, top), (right, bottom)), fill=fill)
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX))


def draw_many(count: int, rng: random.Random) -> tuple[np.ndarray, list[str], list[str]]:
    """Draw `count` images; returns uint8 [count, 64, 64, 3], their colours and their shapes."""
    colors = [rng.choice(COLORS) for _ in range(count)]
    shapes = [rng.choice(SHAPES) for _ in range(count)]
    images = [draw(color, shape, rng) for color, shape in zip(colors, shapes, strict=True)]
    return np.stack(images), colors, shapes
