"""Texts and images that all shapes are measured on: JPEG photographs, prompts, pairs and responses, as tables.

Photographs are gradients under noise, so that decoding and resizing them costs what it costs of real ones. Texts are
words that the tokenizer has whole, drawn until a number of tokens is reached.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.scoring import WORDS
from dt2it_pipeline.config.base import DEMO_BASE_MODEL
from dt2it_pipeline.config.paths import model_path
from dt2it_pipeline.storage import atomic, content_ids, records, schemas

_NOISE = 12.0  # standard deviation, of 255
_AROUND_IMAGE = 3  # tokens: vision start, vision end, and the newline behind it
RESPONSES = 4  # per prompt, of the scoring part


@dataclass(frozen=True)
class Part:
    """One part of a workload.

    Attributes:
        size: width and height of an image.
        max_pixels: to which the model scales it down.
        image_tokens: what that makes with patches of 16.
        prompt: tokens of a prompt, those of its image included.
        response: tokens of a response.
        prompts: how many.
    """

    size: tuple[int, int]
    max_pixels: int
    image_tokens: int
    prompt: int
    response: int
    prompts: int


WORKLOADS = {
    "photographs": {
        "training": Part((960, 720), 268_324, 252, 329, 175, 256),
        "scoring": Part((1280, 1024), 1_310_720, 1280, 1360, 200, 192),
    },
    "small": {
        "training": Part((96, 64), 8_192, 6, 64, 12, 16),
        "scoring": Part((128, 96), 16_384, 12, 70, 12, 12),
    },
}


def make_data(work: Path, workload: str, part: str, system_prompt: str) -> Path:
    """Folder with media/, prompts.parquet, pairs.parquet and responses.parquet; written where it is not there yet.

    Args:
        work: folder that is kept between runs.
        workload: a key of WORKLOADS.
        part: `training` (two responses per prompt) or `scoring` (RESPONSES).
        system_prompt: of the model, which is a part of every prompt's tokens.
    """
    spec = WORKLOADS[workload][part]
    key = hashlib.sha256(json.dumps([asdict(spec), system_prompt]).encode()).hexdigest()[:8]
    place = work / "data" / f"{workload}-{part}-{key}"
    if not place.exists():
        with atomic.atomic_directory(place) as folder:
            _write(folder, spec, 2 if part == "training" else RESPONSES, system_prompt)
    return place


def _write(folder: Path, spec: Part, responses: int, system_prompt: str) -> None:
    (folder / "media").mkdir()
    draw = np.random.default_rng(0)
    words = _Words(draw)
    question = spec.prompt - spec.image_tokens - _AROUND_IMAGE - words.around(system_prompt)
    rest = {"source": "benchmark", "reference": None, "language": "en", "meta": "{}"}
    prompts, pairs, answers = [], [], []
    for number in range(spec.prompts):
        path = f"{number:05d}.jpg"
        photograph(draw, spec.size).save(folder / "media" / path, quality=90)
        digest = hashlib.sha256((folder / "media" / path).read_bytes()).hexdigest()
        turns = [{"role": "user", "text": f"<image>\n{words.text(question)}"}]
        name = content_ids.prompt_id("", turns, [digest])
        media = [{"kind": "image", "sha256": digest, "path": path}]
        prompts.append({"prompt_id": name, "system": "", "turns": turns, "media": media} | rest)
        texts = [words.text(spec.response) for _ in range(responses)]
        pairs.append(records.make_pair(name, *texts[:2], source="benchmark"))
        for text in texts:
            row = {"response_id": content_ids.response_id(name, text), "prompt_id": name, "text": text}
            answers.append(row | {"generator": "benchmark"})
    for kind, rows in {"prompts": prompts, "pairs": pairs, "responses": answers}.items():
        atomic.write_parquet(schemas.table(rows, kind), folder / f"{kind}.parquet")


def photograph(draw: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """An image of a width and height in pixels that a JPEG file takes some work to hold."""
    width, height = size
    slopes = draw.uniform(-120, 120, size=(2, 1, 3)).astype(np.float32)
    across, down = (np.linspace(0, 1, count, dtype=np.float32)[:, None] for count in (width, height))
    light = 128 + (across * slopes[0])[None] + (down * slopes[1])[:, None]
    noise = draw.standard_normal((height, width, 3), dtype=np.float32) * np.float32(_NOISE)
    return Image.fromarray(np.clip(light + noise, 0, 255).astype(np.uint8))


class _Words:
    """Texts of a number of tokens, of words of one token each as the demo's tokenizer has them."""

    def __init__(self, draw: np.random.Generator) -> None:
        from tokenizers import Tokenizer

        self._draw = draw
        self._tokenizer = Tokenizer.from_file(str(Path(model_path(DEMO_BASE_MODEL)) / "tokenizer.json"))
        self._whole = [word for word in WORDS if self.count(f" {word}") == 1]

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def around(self, system_prompt: str) -> int:
        """Tokens of a prompt without its image and its question, in the demo's chat template."""
        turns = f"<|im_start|>system\n{system_prompt}<|im_end|>\n<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n"
        return self.count(turns)

    def text(self, tokens: int) -> str:
        """At least one word."""
        return " ".join(self._draw.choice(self._whole, size=max(1, tokens)))


@dataclass(frozen=True)
class Sizes:
    """Tokens and patches that a prompt and a response have on average, for one model."""

    prompt: float
    response: float
    patches: float
    image_tokens: float


def encoded(
    model: Path, data: Path, max_pixels: int, system_prompt: str
) -> tuple[Any, Any, list[Any], list[list[Any]]]:
    """Prompts and responses as a model takes them.

    Returns:
        The image registry, the prompt encoder, the encoded prompts, and the tokens of each prompt's responses.
    """
    from dt2it_pipeline.reward.data.encoding import PromptEncoder, load_processor
    from dt2it_pipeline.reward.data.images import ImageRegistry

    processor = load_processor(model, system_prompt)
    registry = ImageRegistry(processor.image_processor, data / "media", max_pixels)
    encoder = PromptEncoder(model, registry, processor)
    rows = list(prompt_rows(data))
    texts: dict[str, list[str]] = {row["prompt_id"]: [] for row in rows}
    for row in atomic.read_parquet(data / "responses.parquet", "responses").to_pylist():
        texts[row["prompt_id"]].append(row["text"])
    prompts = encoder.prompts(rows)
    for prompt in prompts:
        if isinstance(prompt, Exception):
            raise prompt
    return registry, encoder, list(prompts), [encoder.responses(texts[row["prompt_id"]]) for row in rows]


def prompt_rows(data: Path) -> Iterator[dict[str, Any]]:
    """Rows of the prompts table."""
    yield from atomic.read_parquet(data / "prompts.parquet", "prompts").to_pylist()


def sizes(registry: Any, prompts: list[Any], responses: list[list[Any]]) -> Sizes:
    """Means over all prompts and responses."""
    images = [registry.images[index] for prompt in prompts for index in prompt.images]
    return Sizes(
        prompt=float(np.mean([len(prompt.tokens) for prompt in prompts])),
        response=float(np.mean([len(tokens) for each in responses for tokens in each])),
        patches=float(np.mean([np.prod(image.grid) for image in images])),
        image_tokens=float(np.mean([image.tokens for image in images])),
    )
