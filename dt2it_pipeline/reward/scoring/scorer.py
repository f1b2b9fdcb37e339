"""Scores of responses from one loaded checkpoint: all responses of a prompt in one row, token-budget batches."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from dt2it_pipeline.engines.device import read_ahead, threads_for, weight_type
from dt2it_pipeline.media.errors import MediaError
from dt2it_pipeline.observe.memory import ran_out
from dt2it_pipeline.reward.checkpoints.checkpoint import CheckpointError
from dt2it_pipeline.reward.checkpoints.processor_files import follow_card
from dt2it_pipeline.reward.data.collation import PackedExample, collate, unpack
from dt2it_pipeline.reward.data.encoding import EncodedPrompt, PromptEncoder, load_processor
from dt2it_pipeline.reward.data.images import ImageRegistry
from dt2it_pipeline.reward.data.kept_features import FeatureStore, KeptFeatures
from dt2it_pipeline.reward.data.patches import Patches, read_patches
from dt2it_pipeline.reward.data.preparation import encode_prompts, fault_of
from dt2it_pipeline.reward.data.vision_features import (
    FeatureTable,
    chunks,
    encode_images,
    feature_bytes,
    feature_table,
)
from dt2it_pipeline.reward.errors import ScoringError
from dt2it_pipeline.reward.modeling.compile_cache import write_fault
from dt2it_pipeline.reward.modeling.device import kernel_error, kernel_fault
from dt2it_pipeline.reward.modeling.model import RewardNetwork
from dt2it_pipeline.reward.too_long import length_limit
from dt2it_pipeline.reward.training.distributed import Alone

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
        precision: number format of a checkpoint that is loaded: float32, bfloat16, or auto for what suits the device.
        attention: implementation for a checkpoint that is loaded; see `ComputeSettings`.
        compile: whether its layers go through torch.compile; see `ComputeSettings`.
        vision_disk_gib: limit of the vision encoder's output that is kept on disk; see `ComputeSettings`.

    Raises:
        DeviceError: the device cannot do what a setting asks for.
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
        precision: str = "auto",
        attention: str = "auto",
        compile: Literal["auto"] | bool = "auto",
        vision_disk_gib: float = 0.0,
    ) -> None:
        if isinstance(checkpoint, RewardNetwork):
            self.model, self.device = checkpoint, checkpoint.head.weight.device
        else:
            self.device = device or torch.device("cpu")
            made = RewardNetwork.from_pretrained(
                checkpoint,
                dtype=weight_type(precision, self.device),
                attention=attention,
                device=self.device,
                compile=compile,
            )
            self.model = made.eval().requires_grad_(False)
        folder = self.model.source
        if folder is None:
            raise CheckpointError("a model without a source folder has no tokenizer; make it with from_pretrained")
        processor = load_processor(self.model.processor_source or folder, family=self.model.family)
        if self.model.follows_card:
            follow_card(processor, self.model.card)
        self.media_root, self.max_pixels = media_root, max_pixels
        self.max_length = length_limit(max_length, self.model.config.text_config)
        self.tokens_per_batch = tokens_per_batch
        self._store = FeatureStore(self.model, self.device, vision_disk_gib * 2**30) if vision_disk_gib else None
        self._halved, self._ahead = False, True
        self.processor = processor
        self.prompt_encoder = PromptEncoder(folder, None, processor)

    def score(
        self, prompts: Mapping[str, Mapping[str, Any]], responses: Sequence[tuple[str, str, str]]
    ) -> tuple[dict[str, float], dict[str, tuple[str, str]]]:
        """Score responses.

        Where a compiled kernel does not fit the GPU, they are scored with what asks less of it, as a log line says.

        Args:
            prompts: rows of a prompts table by prompt_id.
            responses: (response_id, prompt_id, text), ids unique.

        Returns:
            Scores by response_id, as float32 computed them; and reason and detail of every response without one.

        Raises:
            DeviceError: a kernel does not fit the GPU, and the settings leave nothing else.
            ScoringError: memory does not suffice for one sequence, or for the images of a batch; or what is compiled
                cannot be written.
        """
        while True:
            try:
                return self._score(prompts, responses)
            except Exception as error:
                reason = kernel_fault(error)
                if fault := write_fault(error):
                    raise ScoringError(fault) from error
                if reason is None:
                    raise
                less = self.model.fall_back()
                if less is None:
                    raise kernel_error(reason, "scoring") from error
            logging.getLogger(__name__).warning("%s; scoring goes on with %s", reason, less.in_words())

    def _score(
        self, prompts: Mapping[str, Mapping[str, Any]], responses: Sequence[tuple[str, str, str]]
    ) -> tuple[dict[str, float], dict[str, tuple[str, str]]]:
        """Score all responses with the kernels that the model computes with now."""
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
        kept: KeptFeatures | None = None
        broken: Mapping[int, MediaError] = {}
        if used and self._store is not None:
            kept, broken = self._keep(self._store, registry, used)
        if kept is None and used and self._ahead and feature_bytes(self.model, registry, used) <= _FEATURE_BYTES:
            table, broken = self._encode_ahead(registry, used)
        rows = self._without(rows, broken, faults)
        scores: dict[str, float] = {}
        threads = 0 if table is not None else threads_for(self.device)
        read = functools.partial(self._read, registry, kept, ahead=table is not None)
        with torch.inference_mode():
            for batch, found in read_ahead(self._batches(rows), read, threads):
                features, whole = table, batch
                if isinstance(found, FeatureTable):
                    features = found
                elif found:
                    features, broken = self._encode(registry, found)
                    whole = self._without(batch, broken, faults)
                if whole:
                    self._score_batch(whole, registry, features, scores, faults)
        return scores, faults

    def _read(
        self, registry: ImageRegistry, kept: KeptFeatures | None, members: list[_Named], *, ahead: bool
    ) -> list[Patches] | FeatureTable:
        """Images of a batch, in runs that the vision encoder encodes together; none where all were read `ahead`.

        Their features where these are `kept`.
        """
        used = [] if ahead else list(dict.fromkeys(p for row, _ in members for p in row.prompt.images))
        with self._fitting_images():
            if kept is not None:
                return kept.table(used, self.device)
            return [read_patches(registry, chunk, self.device) for chunk in chunks(registry, used)]

    def _keep(
        self, store: FeatureStore, registry: ImageRegistry, images: list[int]
    ) -> tuple[KeptFeatures | None, Mapping[int, MediaError]]:
        """Features of all images on the disk, and those that cannot be read; no features where memory does not suffice.

        The store encodes one image at a time, so that all at once would not fit either.
        """
        try:
            return store.keep(registry, images, Alone())
        except Exception as error:
            if not ran_out(error):
                raise
        torch.cuda.empty_cache()  # outside the handler, which keeps what the failed pass has allocated
        self._store, self._ahead = None, False
        logging.getLogger(__name__).warning(
            "%s does not suffice for the vision encoder and one image; features are not kept, and each batch encodes "
            "its own", self._memory(),
        )  # fmt: skip
        return None, {}

    def _encode_ahead(
        self, registry: ImageRegistry, images: list[int]
    ) -> tuple[FeatureTable | None, Mapping[int, MediaError]]:
        """Features of all images, and those that cannot be read; no features where memory does not suffice."""
        try:
            return encode_images(self.model, registry, images, self.device)
        except Exception as error:
            if not ran_out(error):
                raise
        torch.cuda.empty_cache()  # outside the handler, which keeps what the failed pass has allocated
        self._ahead = False
        logging.getLogger(__name__).warning(
            "%s does not suffice for the features of %d images at once; each batch encodes its own", self._memory(),
            len(images),
        )  # fmt: skip
        return None, {}

    def _encode(self, registry: ImageRegistry, read: list[Patches]) -> tuple[FeatureTable, Mapping[int, MediaError]]:
        """Features of a batch's images that have been read, and those that cannot be."""
        with self._fitting_images():
            return feature_table(self.model, registry, read, self.device)

    @contextlib.contextmanager
    def _fitting_images(self) -> Iterator[None]:
        """Turn memory that runs out into the error that names the settings to lower."""
        try:
            yield
        except Exception as error:
            if not ran_out(error):
                raise
            raise ScoringError(
                f"{self._memory()} does not suffice for the vision encoder and the images of one batch; lower "
                "scoring.max_pixels or scoring.tokens_per_batch (options of `dt2it score`, too)"
            ) from error

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
        """Examples of similar length, as many as the token budget holds, padding included.

        Lengths differ by the sum of the responses, so a batch that is large enough ends where padding would grow.
        """
        batch: list[_Named] = []
        tokens = 0
        for row in sorted(rows, key=lambda r: (len(r[0]), r[1][0])):
            # Side by side, all are as long as this one, the longest so far.
            cells = tokens + len(row[0]) if self.model.takes_one_row else len(row[0]) * (len(batch) + 1)
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
        """Score a batch; where memory does not suffice, in halves."""
        try:
            self._score_at_once(members, registry, table, scores, faults)
            return
        except Exception as error:
            if kernel_fault(error) or not ran_out(error):
                raise
            if len(members) == 1:
                tokens = len(members[0][0])
                raise ScoringError(
                    f"{self._memory()} does not suffice for one sequence of {tokens:,} tokens (a prompt with its "
                    "responses); lower scoring.tokens_per_batch, scoring.max_length or scoring.max_pixels (options of "
                    "`dt2it score`, too)"
                ) from error
        torch.cuda.empty_cache()  # outside the handler, which keeps what the failed pass has allocated
        if not self._halved:
            self._halved = True
            logging.getLogger(__name__).warning(
                "%s does not suffice for a batch of %s tokens, which is split in halves; a smaller "
                "scoring.tokens_per_batch (--tokens-per-batch) saves the attempts",
                self._memory(),
                f"{sum(len(row) for row, _ in members):,}",
            )
        middle = len(members) // 2
        for half in (members[:middle], members[middle:]):
            self._score_batch(half, registry, table, scores, faults)

    def _memory(self) -> str:
        return "the GPU's memory" if self.device.type == "cuda" else "this machine's memory"

    def _score_at_once(
        self,
        members: list[_Named],
        registry: ImageRegistry,
        table: FeatureTable | None,
        scores: dict[str, float],
        faults: dict[str, tuple[str, str]],
    ) -> None:
        batch = collate([row for row, _ in members], one_row=self.model.takes_one_row).to(self.device)
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
