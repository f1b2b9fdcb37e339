"""What is asked of the models of a pool: which of them, with which words, at which temperature, over which images.

What belongs here: the requests for one prompt, decided by the recipe's seed and the prompt alone. What does not:
engines, shards and tables (sample.py).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dt2it_pipeline.config.sections.sampling import SamplingSettings
from dt2it_pipeline.engines.chat import ChatError, ChatPrompt, chat_prompt
from dt2it_pipeline.engines.vllm_engine import SampleRequest
from dt2it_pipeline.storage import content_ids

CORRUPTED = ("|mismatched_image", "|noised_image")  # how `generator` ends where the answer is to another image
_DONOR_TRIES = 50  # random draws before giving up on finding another image

Row = dict[str, Any]


@dataclass(frozen=True)
class Drawn:
    """A request to the engine and where its answers belong."""

    row: Row
    generator: str
    request: SampleRequest


@dataclass(frozen=True)
class _Way:
    """One way of drawing an answer: a model (by its place in the pool), an instruction and a temperature."""

    model: int
    instruction: int
    temperature: float


@dataclass(frozen=True)
class Drawer:
    """Makes the requests of a prompt, for one model of the pool."""

    settings: SamplingSettings
    seed: int
    model: str
    place: int
    media_root: Path
    donors: Mapping[int, Sequence[Row]]

    def requests(self, row: Row) -> Iterator[Drawn]:
        """All answers to a prompt's own images, one request per way; then one per corrupted image.

        Raises:
            ChatError: the prompt cannot be put to a model.
        """
        settings, key = self.settings, row["prompt_id"]
        count = settings.samples + settings.mismatched_samples + settings.noised_samples
        ways = self._ways(key, count)
        own = Counter(ways[: settings.samples])
        for way, samples in own.items():
            if way.model == self.place:
                yield self._drawn(row, self._prompt(row, way), way, samples, self._own_seed(key, way), "")
        for index, way in enumerate(ways[settings.samples :]):
            if way.model != self.place:
                continue
            prompt = self._prompt(row, way)
            if not prompt.images:
                continue
            draw = _seed(self.seed, key, index)
            if index < settings.mismatched_samples:
                donor = _mismatched(row, self.donors.get(len(row["media"]), ()), draw)
                if donor is None:
                    continue
                try:
                    other = prompt.with_images(chat_prompt(donor, self.media_root).fitted(settings.max_pixels).images)
                except ChatError:
                    continue  # the donor is quarantined under its own prompt_id
                yield self._drawn(row, other, way, 1, draw, CORRUPTED[0])
            else:
                noised = tuple(_noised(image, settings.noise, draw) for image in prompt.images)
                yield self._drawn(row, prompt.with_images(noised), way, 1, draw, CORRUPTED[1])

    def _ways(self, key: str, count: int) -> list[_Way]:
        """How each answer of a prompt is drawn: all ways in turn, from a start that the prompt's id decides."""
        settings = self.settings
        every = [
            _Way(model, instruction, temperature)
            for temperature in settings.schedule
            for instruction in range(len(settings.instructions))
            for model in range(len(settings.pool))
        ]
        start = _seed(self.seed, key, "ways") % len(every)
        return [every[(start + index) % len(every)] for index in range(count)]

    def _prompt(self, row: Row, way: _Way) -> ChatPrompt:
        prompt = chat_prompt(row, self.media_root, suffix=self.settings.instructions[way.instruction])
        return prompt.fitted(self.settings.max_pixels)

    def _own_seed(self, key: str, way: _Way) -> int:
        single = len(self.settings.schedule) * len(self.settings.instructions) * len(self.settings.pool) == 1
        return _seed(self.seed, key, "own", *(() if single else (way.instruction, way.temperature)))

    def _drawn(self, row: Row, prompt: ChatPrompt, way: _Way, samples: int, seed: int, mark: str) -> Drawn:
        instruction = f"|i={way.instruction}" if len(self.settings.instructions) > 1 else ""
        generator = f"{self.model}|t={way.temperature:g}{instruction}{mark}"
        return Drawn(row, generator, SampleRequest(prompt, samples, seed, way.temperature))


def _noised(image: Image.Image, share: float, seed: int) -> Image.Image:
    """An image mixed with Gaussian noise around grey: `share` of it is noise."""
    noise = np.random.default_rng(seed).normal(128, 64, (image.height, image.width, 3))
    mixed = (1 - share) * np.asarray(image, dtype=np.float64) + share * noise
    return Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8))


def _mismatched(row: Row, candidates: Sequence[Row], draw: int) -> Row | None:
    """Another prompt with as many images, none of them this prompt's; None when there seems to be none."""
    own = {medium["sha256"] for medium in row["media"]}
    rng = random.Random(draw)
    for _ in range(_DONOR_TRIES if candidates else 0):
        donor = candidates[rng.randrange(len(candidates))]
        if not own & {medium["sha256"] for medium in donor["media"]}:
            return donor
    return None


def donors_of(prompts: Sequence[Row]) -> dict[int, list[Row]]:
    """Prompts that could lend their images, by the number of images."""
    by_count: dict[int, list[Row]] = {}
    for row in prompts:
        if row["media"] and all(medium["kind"] == "image" for medium in row["media"]):
            by_count.setdefault(len(row["media"]), []).append(row)
    return by_count


def _seed(*parts: object) -> int:
    return int(content_ids.content_hash(*parts)[:7], 16)  # 28 bits: vLLM adds the sample's index to it
