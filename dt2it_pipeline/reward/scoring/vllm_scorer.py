"""Scores of responses from vLLM's pooling engine: the same tokens, images and quarantine rules as scorer.py.

Prompts and responses are encoded by our own PromptEncoder, and images are checked by our own ImageRegistry; vLLM gets
token ids and decoded images. Its prefix cache plays the part of packed batches: a prompt is computed for the first of
its responses and read back for the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dt2it_pipeline.config.compute import VllmRunSettings
from dt2it_pipeline.engines.device import found_device, read_ahead, threads_for
from dt2it_pipeline.engines.vllm_engine import EngineError
from dt2it_pipeline.engines.vllm_pooling import PoolingEngine, PoolingRequest, VllmPoolingEngine
from dt2it_pipeline.media.errors import MediaError
from dt2it_pipeline.reward.checkpoints.checkpoint import read_json, resolve_folder
from dt2it_pipeline.reward.checkpoints.heads import serving_fault
from dt2it_pipeline.reward.data.encoding import EncodedPrompt, PromptEncoder, load_processor
from dt2it_pipeline.reward.data.images import ImageRegistry
from dt2it_pipeline.reward.data.preparation import encode_prompts, fault_of
from dt2it_pipeline.reward.too_long import length_limit

_CONVERSATIONS_AT_ONCE = 512  # handed to the engine together, with their decoded images in memory


class VllmScorer:
    """A reward model served by vLLM, with the system prompt it was trained with.

    Args:
        checkpoint: folder as `RewardModel.save_pretrained` writes it, or Hub id of such a checkpoint.
        media_root: folder that no image may leave.
        max_length: longer prompt + response: the response is quarantined; None: what the model's positions allow.
        max_pixels: images are scaled down to this many pixels; None: as in training.
        tokens_per_batch: tokens that the engine computes in one step.
        max_images: most images in one prompt.
        precision: number format of the weights: float32, bfloat16, or auto for what suits the device.
        run: GPUs, memory and quantisation of vLLM.
        engine: another engine than vLLM's own, for tests.

    Raises:
        CheckpointError: the folder is not a reward model in our layout; see `heads.serving_fault`.
        EngineError: vLLM cannot load it.
        DeviceError: the GPU does not compute in this format.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        media_root: str | Path,
        *,
        max_length: int | None,
        max_pixels: int | None,
        tokens_per_batch: int,
        max_images: int,
        precision: str = "auto",
        run: VllmRunSettings | None = None,
        engine: PoolingEngine | None = None,
    ) -> None:
        folder = resolve_folder(checkpoint)
        if fault := serving_fault(folder):
            raise fault
        self.processor = load_processor(folder)
        self.media_root, self.max_pixels = media_root, max_pixels
        self.max_length = length_limit(max_length, read_json(folder / "config.json")["text_config"])
        self.prompt_encoder = PromptEncoder(folder, None, self.processor)
        self.engine = engine or VllmPoolingEngine(
            str(folder),
            self.max_length,
            self._registry().size,
            max(1, max_images),
            tokens_per_batch,
            precision,
            run,
        )

    def _registry(self) -> ImageRegistry:
        return ImageRegistry(self.processor.image_processor, self.media_root, self.max_pixels)

    def score(
        self, prompts: Mapping[str, Mapping[str, Any]], responses: Sequence[tuple[str, str, str]]
    ) -> tuple[dict[str, float], dict[str, tuple[str, str]]]:
        """Score responses; arguments and results are those of `scorer.Scorer.score`."""
        registry = self._registry()
        self.prompt_encoder.registry = registry
        encoded = encode_prompts(self.prompt_encoder, prompts)
        tokens = self.prompt_encoder.responses([text for _, _, text in responses])
        faults: dict[str, tuple[str, str]] = {}
        fine: list[tuple[str, EncodedPrompt, np.ndarray]] = []
        # Responses of a prompt follow each other, so that its tokens are still in the engine's cache.
        for (response_id, prompt_id, _), ids in sorted(
            zip(responses, tokens, strict=True), key=lambda item: (item[0][1], item[0][0])
        ):
            prompt = encoded.get(prompt_id)
            fault = fault_of(prompt, prompt_id, len(ids), self.max_length)
            if fault:
                faults[response_id] = fault
            else:
                assert isinstance(prompt, EncodedPrompt)
                fine.append((response_id, prompt, ids))
        scores: dict[str, float] = {}
        for names, requests in self._requests(fine, registry, faults):
            for name, value in zip(names, self.engine.score(requests), strict=True):
                if isinstance(value, EngineError):
                    faults[name] = ("refused by vLLM", str(value))
                elif not math.isfinite(value):
                    faults[name] = ("score is not a number", str(value))
                else:
                    scores[name] = value
        return scores, faults

    @staticmethod
    def _requests(
        fine: Sequence[tuple[str, EncodedPrompt, np.ndarray]],
        registry: ImageRegistry,
        faults: dict[str, tuple[str, str]],
    ) -> Iterator[tuple[list[str], list[PoolingRequest]]]:
        """Requests with decoded images, some hundred at a time; responses about a damaged image go to `faults`."""
        from PIL import Image

        def decode(index: int) -> Image.Image | MediaError:
            try:
                return Image.fromarray(registry.decode(index).permute(1, 2, 0).numpy())
            except MediaError as error:
                return error

        threads = threads_for(found_device())
        for start in range(0, len(fine), _CONVERSATIONS_AT_ONCE):
            names: list[str] = []
            requests: list[PoolingRequest] = []
            some = fine[start : start + _CONVERSATIONS_AT_ONCE]
            used = dict.fromkeys(index for _, prompt, _ in some for index in prompt.images)
            decoded = dict(read_ahead(used, decode, threads))  # the engine waits for all of them
            for name, prompt, ids in some:
                images = [decoded[index] for index in prompt.images]
                broken = next((p for p in images if isinstance(p, MediaError)), None)
                if broken is not None:
                    faults[name] = (broken.reason, str(broken))
                    continue
                token_ids = tuple(np.concatenate([_one_placeholder_each(prompt, registry), ids]).tolist())
                names.append(name)
                requests.append(PoolingRequest(token_ids, tuple(p for p in images if isinstance(p, Image.Image))))
            if requests:
                yield names, requests


def _one_placeholder_each(prompt: EncodedPrompt, registry: ImageRegistry) -> np.ndarray:
    """Tokens of a prompt with one placeholder per image, int32; our own encoding repeats it per image token."""
    keep = np.ones(len(prompt.tokens), dtype=bool)
    keep[prompt.image_token_positions] = False
    counts = [registry.images[index].tokens for index in prompt.images]
    keep[prompt.image_token_positions[np.cumsum([0, *counts])[:-1]]] = True
    return prompt.tokens[keep]
