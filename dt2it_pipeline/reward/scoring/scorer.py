"""Scores of responses from one loaded checkpoint: all responses of a prompt in one row, token-budget batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dt2it_pipeline.media.errors import MediaError
from dt2it_pipeline.reward.data.collation import PackedExample, collate, unpack
from dt2it_pipeline.reward.data.encoding import EncodedPrompt, PromptEncoder, load_processor
from dt2it_pipeline.reward.data.images import ImageRegistry
from dt2it_pipeline.reward.data.preparation import encode_prompts, fault_of
from dt2it_pipeline.reward.data.vision_features import FeatureTable, encode_images, feature_bytes
from dt2it_pipeline.reward.modeling.checkpoint import CheckpointError
from dt2it_pipeline.reward.modeling.model import RewardNetwork
from dt2it_pipeline.reward.too_long import length_limit

_FEATURE_BYTES = 2 * 2**30  # vision encoder output kept at once; beyond it every batch encodes its own images
# A batch with this many tokens uses a processor well enough that a larger one is not worth more than this much padding.
_ENOUGH_TOKENS, _PADDING = 2048, 0.03


_Named = tuple[PackedExample, list[str]]  # an example and the response ids of its responses


class Scorer:
    """A reward model with the system prompt it was trained with.

    Args:
        checkpoint: folder or Hub id of a reward model, or a model that has been loaded from one; the latter stays
            where it is.
        media_root: folder that no media path may leave.
        max_length: a prompt and response that exceed it are quarantined; None: what the model's positions allow.
        max_pixels: larger images and frames are scaled down to this many pixels; None: as in training.
        tokens_per_batch: token budget of one forward pass, padding included.
        device: where to load a checkpoint; the CPU by default.

    Raises:
        CheckpointError: the checkpoint is no reward model that can be loaded; see `RewardNetwork.from_pretrained`.
    """

    def __init__(
        self,
        checkpoint: str | Path | RewardNetwork,
        media_root: str | Path,
        *,
        max_length: int | None,
        max_pixels: int | None,
        tokens_per_batch: int,
        device: torch.device | None = None,
    ) -> None:
        if isinstance(checkpoint, RewardNetwork):
            self.model, self.device = checkpoint, checkpoint.head.weight.device
        else:
            self.device = device or torch.device("cpu")
            self.model = RewardNetwork.from_pretrained(checkpoint).to(self.device).eval().requires_grad_(False)
        folder = self.model.source
        if folder is None:
            raise CheckpointError("a model without a source folder has no tokenizer; make it with from_pretrained")
        processor = load_processor(self.model.processor_source or folder, family=self.model.family)
        self.media_root, self.max_pixels = media_root, max_pixels
        self.max_length = length_limit(max_length, self.model.config.text_config)
        self.tokens_per_batch = tokens_per_batch
        self.processor = processor
        self.prompt_encoder = PromptEncoder(folder, None, processor)

    def score(
        self, prompts: Mapping[str, Mapping[str, Any]], responses: Sequence[tuple[str, str, str]]
    ) -> tuple[dict[str, float], dict[str, tuple[str, str]]]:
        """Score responses.

        Args:
            prompts: rows of a prompts table by prompt_id.
            responses: (response_id, prompt_id, text), ids unique.

        Returns:
            Scores by response_id, as float32 computed them; and reason and detail of every response without one.
        """
        registry = ImageRegistry(
            self.processor.image_processor, self.media_root, self.max_pixels, self.processor.video_processor
        )
        self.prompt_encoder.registry = registry
        encoded = encode_prompts(self.prompt_encoder, prompts)
        tokens = self.prompt_encoder.responses([text for _, _, text in responses])
        faults: dict[str, tuple[str, str]] = {}
        by_prompt: dict[str, list[tuple[str, np.ndarray]]] = {}
        for (response_id, prompt_id, _), ids in zip(responses, tokens, strict=True):
            fault = fault_of(encoded.get(prompt_id), prompt_id, len(ids), self.max_length)
            if fault:
                faults[response_id] = fault
            else:
                by_prompt.setdefault(prompt_id, []).append((response_id, ids))
        rows: list[_Named] = []
        for prompt_id, members in by_prompt.items():
            prompt = encoded[prompt_id]
            assert isinstance(prompt, EncodedPrompt)
            rows += self._rows(prompt, members)
        used = sorted({p for row, _ in rows for p in row.prompt.images})
        table: FeatureTable | None = None
        if used and feature_bytes(self.model, registry, used) <= _FEATURE_BYTES:
            table, broken = encode_images(self.model, registry, used, self.device)
            rows = self._without(rows, broken, faults)
        scores: dict[str, float] = {}
        with torch.inference_mode():
            for part in self._batches(rows):
                self._score_batch(part, registry, table, scores, faults)
        return scores, faults

    def _rows(self, prompt: EncodedPrompt, members: list[tuple[str, np.ndarray]]) -> list[_Named]:
        """All responses of a prompt in one row, or in several where they would exceed the token budget.

        Where the backbone cannot share a prefix, every response gets a row of its own.
        """
        out: list[_Named] = []
        members = sorted(members, key=lambda member: (len(member[1]), member[0]))
        if not self.model.shares_prefix():
            rows = unpack([PackedExample(prompt, tuple(ids for _, ids in members))])
            return [(row, [name]) for row, (name, _) in zip(rows, members, strict=True)]
        part: list[tuple[str, np.ndarray]] = []
        length = len(prompt.tokens)
        for member in members:
            if part and length + len(member[1]) > self.tokens_per_batch:
                out.append((PackedExample(prompt, tuple(ids for _, ids in part)), [name for name, _ in part]))
                part, length = [], len(prompt.tokens)
            part.append(member)
            length += len(member[1])
        out.append((PackedExample(prompt, tuple(ids for _, ids in part)), [name for name, _ in part]))
        return out

    def _batches(self, rows: list[_Named]) -> Iterator[list[_Named]]:
        """Rows of similar length, as many as the token budget holds, padding included.

        Lengths differ by the sum of the responses, so a batch that is large enough ends where padding would grow.
        """
        batch: list[_Named] = []
        tokens = 0
        for row in sorted(rows, key=lambda r: (len(r[0]), r[1][0])):
            cells = len(row[0]) * (len(batch) + 1)  # the row is the longest so far
            padded = cells - (tokens + len(row[0])) > _PADDING * cells
            if batch and (cells > self.tokens_per_batch or (padded and tokens >= _ENOUGH_TOKENS)):
                yield batch
                batch, tokens = [], 0
            batch.append(row)
            tokens += len(row[0])
        if batch:
            yield batch

    def _score_batch(
        self,
        members: list[_Named],
        registry: ImageRegistry,
        table: FeatureTable | None,
        scores: dict[str, float],
        faults: dict[str, tuple[str, str]],
    ) -> None:
        if table is None:
            used = list(dict.fromkeys(p for row, _ in members for p in row.prompt.images))
            if used:
                table, broken = encode_images(self.model, registry, used, self.device)
                members = self._without(members, broken, faults)
        if not members:
            return
        batch = collate([row for row, _ in members]).to(self.device)
        features = table.gather(registry, batch.images) if table is not None and batch.images else None
        values = self.model(batch, features).cpu()
        names = [name for _, part in members for name in part]
        for name, value in zip(names, values.tolist(), strict=True):
            if np.isfinite(value):
                scores[name] = value
            else:
                faults[name] = ("score is not a number", str(value))

    @staticmethod
    def _without(
        rows: list[_Named],
        broken: Mapping[int, MediaError],
        faults: dict[str, tuple[str, str]],
    ) -> list[_Named]:
        """Rows whose images can all be read; the rest goes to `faults`."""
        kept = []
        for row, names in rows:
            fault = next((broken[p] for p in row.prompt.images if p in broken), None)
            if fault is None:
                kept.append((row, names))
            else:
                faults.update(dict.fromkeys(names, (fault.reason, str(fault))))
        return kept
