"""From table rows to token ids: chat template, images, and a response after it.

The conversation is rendered once with a stand-in for the response. What stands before is the prompt; what stands after
closes the assistant turn, and its last token is where the score is read. A score here is that of the whole conversation
as the template writes it, which is also what vLLM's pooling endpoint is asked for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dt2it_pipeline.engines.torchvision_shim import ensure_torchvision
from dt2it_pipeline.errors import RowError
from dt2it_pipeline.media.errors import MediaError
from dt2it_pipeline.media.markers import split_at_markers, user_marker_kinds
from dt2it_pipeline.observe.logs import log_rows
from dt2it_pipeline.reward.checkpoints.checkpoint import CheckpointError, family_of, read_json
from dt2it_pipeline.reward.checkpoints.processor_files import default_template, reward_template
from dt2it_pipeline.reward.data.images import ImageRegistry
from dt2it_pipeline.reward.families import Family

_STAND_IN = "\ue000{}\ue001"
_STAND_INS = re.compile("\ue000(\\d+)\ue001")
_IMAGE_SETTINGS = ("processor_config.json", "preprocessor_config.json")  # one of them is enough
_ROLES = ("user", "assistant", "system")


class PromptError(RowError):
    """A prompt cannot be rendered."""


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt as tokens, the placeholder of each image (or step of a video) repeated once per image token."""

    tokens: np.ndarray  # int32 [length]
    positions: np.ndarray  # int32 [3, length], M-RoPE positions in time, height and width
    next_position: int  # where every response starts
    image_token_positions: np.ndarray  # int32 [image tokens], columns of image tokens
    images: tuple[int, ...]  # indices in the registry


@dataclass(frozen=True, slots=True)
class TokenisedPrompt:
    """A prompt as tokens with one placeholder per image, as the chat template wrote it."""

    ids: np.ndarray  # int32 [tokens]
    images: tuple[int, ...]  # indices in the registry


@dataclass(frozen=True, slots=True)
class PromptLayout:
    """How a model's prompts are laid out behind the tokenizer: image tokens repeated, M-RoPE positions counted.

    It needs neither tokenizer nor chat template, so that it travels to processes that only make batches.

    Attributes:
        image_token, video_token: ids of the placeholders.
        positions_per_second: time scale of videos in M-RoPE; None where times are written as text.
    """

    image_token: int
    video_token: int
    positions_per_second: float | None

    def lay_out(self, ids: np.ndarray, images: tuple[int, ...], registry: ImageRegistry | None) -> EncodedPrompt:
        """A prompt from its tokens with one placeholder per image (per step of a Qwen3-VL video).

        Args:
            ids: int32 [tokens].
            images: indices in the registry, in the order of the placeholders.
            registry: has the images; None where there are none.

        Raises:
            PromptError: placeholders and images do not match.
        """
        places, grids, intervals = self._placeholders(ids, images, registry)
        if not images:
            line = np.arange(len(ids), dtype=np.int32)
            return EncodedPrompt(ids, np.broadcast_to(line, (3, len(ids))), len(ids), np.zeros(0, np.int32), ())
        assert registry is not None
        counts = np.ones(len(ids), dtype=np.int64)
        counts[places] = [_tokens_of(grid, registry.merge) for grid in grids]
        shown = np.zeros(len(ids), dtype=bool)
        shown[places] = True
        image_tokens = np.flatnonzero(np.repeat(shown, counts)).astype(np.int32)
        positions, after = mrope_positions(len(ids), places, grids, registry.merge, intervals)
        return EncodedPrompt(np.repeat(ids, counts), positions, after, image_tokens, images)

    def length(self, ids: np.ndarray, images: tuple[int, ...], registry: ImageRegistry | None) -> int:
        """Tokens of the prompt that `lay_out` gives; arguments and errors are the same."""
        places, grids, _ = self._placeholders(ids, images, registry)
        repeated = sum(_tokens_of(grid, registry.merge) for grid in grids) if registry else 0
        return len(ids) - len(places) + repeated

    def _placeholders(
        self, ids: np.ndarray, images: tuple[int, ...], registry: ImageRegistry | None
    ) -> tuple[np.ndarray, list[tuple[int, int, int]], list[float]]:
        """Places of the placeholders, the grid of patches behind each, and the steps of its time axis."""
        places = np.flatnonzero((ids == self.image_token) | (ids == self.video_token))
        grids: list[tuple[int, int, int]] = []
        intervals: list[float] = []
        expected: list[int] = []
        for image in (registry.images[p] for p in images) if registry else ():
            clip, (steps, height, width) = image.clip, image.grid
            repeat, interval = 1, 1.0
            if clip is not None and self.positions_per_second is None:
                repeat, steps = steps, 1
            elif clip is not None and registry:
                seconds = registry.videos.temporal_patch_size / clip.metadata.sampled_fps
                interval = float(np.float32(self.positions_per_second) * np.float32(seconds))
            grids += [(steps, height, width)] * repeat
            intervals += [interval] * repeat
            expected += [self.image_token if clip is None else self.video_token] * repeat
        if ids[places].tolist() != expected:
            raise PromptError("chat template loses images", f"{len(places)} placeholders, {len(expected)} expected")
        return places, grids, intervals


def _tokens_of(grid: tuple[int, int, int], merge: int) -> int:
    time, height, width = grid
    return time * height * width // merge**2


class PromptEncoder:
    """Tokens of prompts and responses for one model. Its chat template has the system prompt of its training.

    Args:
        folder: of the model, for its family and its messages.
        registry: where images of prompts go; None where none is expected yet, so that a prompt with one is refused.
        processor: of the model, as `load_processor` gives it.
    """

    def __init__(self, folder: str | Path, registry: ImageRegistry | None, processor: Any) -> None:
        self.folder = Path(folder)
        self.registry = registry
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.backend = self.tokenizer.backend_tokenizer
        self.image_token, self.video_token = int(processor.image_token_id), int(processor.video_token_id)
        per_second = family_of(self.folder).positions_per_second(read_json(self.folder / "config.json"))
        self.layout = PromptLayout(self.image_token, self.video_token, per_second)
        special = [token.content for token in self.backend.get_added_tokens_decoder().values() if token.special]
        self._special = re.compile("|".join(re.escape(t) for t in sorted(special, key=len, reverse=True)) or "(?!)")
        self._suffix: np.ndarray | None = None

    def prompts(self, rows: Sequence[Mapping[str, Any]]) -> list[EncodedPrompt | PromptError | MediaError]:
        """Encode rows of a prompts table; where that fails, the error stands in the row's place."""
        results: list[EncodedPrompt | PromptError | MediaError] = []
        for made in self.tokenised(rows):
            if isinstance(made, TokenisedPrompt):
                try:
                    results.append(self.layout.lay_out(made.ids, made.images, self.registry))
                except PromptError as error:
                    results.append(error)
            else:
                results.append(made)
        return results

    def tokenised(self, rows: Sequence[Mapping[str, Any]]) -> list[TokenisedPrompt | PromptError | MediaError]:
        """Tokens of rows of a prompts table before they are laid out; errors as in `prompts`, but for layout's own."""
        results: list[TokenisedPrompt | PromptError | MediaError | None] = [None] * len(rows)
        texts: list[str] = []
        where: list[tuple[int, tuple[int, ...]]] = []
        for number, row in enumerate(rows):
            try:
                images = self._images(row)
                text, inserted = self._render(row)
                text = self._spell_videos(text, images)
                if inserted is None:
                    texts.append(text)
                    where.append((number, images))
                else:
                    results[number] = TokenisedPrompt(self._encode_parts(text, inserted), images)
            except (PromptError, MediaError) as error:
                results[number] = error
        encodings = self.backend.encode_batch_fast(texts, add_special_tokens=False)
        for (number, images), encoding in zip(where, encodings, strict=True):
            results[number] = TokenisedPrompt(np.asarray(encoding.ids, dtype=np.int32), images)
        return results  # type: ignore[return-value]  # every place has been filled

    def responses(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Tokens of responses with the end of their turn, int32. Special tokens spelled out in a text stay text."""
        if self._suffix is None:
            self._render({"turns": [{"role": "user", "text": "?"}], "system": "", "media": []})
        self.backend.encode_special_tokens = True
        try:
            encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        finally:
            self.backend.encode_special_tokens = False
        assert self._suffix is not None
        return [np.concatenate([np.asarray(e.ids, dtype=np.int32), self._suffix]) for e in encodings]

    def _images(self, row: Mapping[str, Any]) -> tuple[int, ...]:
        media = row["media"] or ()
        if not media:
            return ()
        if self.registry is None:
            raise PromptError("prompt has images", "this scorer was made without a media root")
        with log_rows([row["prompt_id"]] if "prompt_id" in row else ()):
            return tuple(self.registry.add(medium) for medium in media)

    def _render(self, row: Mapping[str, Any]) -> tuple[str, list[str] | None]:
        """Text before the response; and the inserted texts by number where stand-ins had to be used for them."""
        turns = row["turns"]
        if not turns or turns[-1]["role"] != "user":
            raise PromptError("prompt does not end with a user turn", f"{[turn['role'] for turn in turns or ()]}")
        if unknown := [turn["role"] for turn in turns if turn["role"] not in _ROLES]:
            raise PromptError("unknown role", f"{unknown[0]!r}; known: {', '.join(_ROLES)}")
        markers = user_marker_kinds(turns)
        kinds = [medium["kind"] for medium in row["media"] or ()]
        if len(markers) != len(kinds):
            raise PromptError("image markers do not match media", f"{len(markers)} markers, {len(kinds)} media")
        if markers != kinds:
            raise PromptError("image markers do not match media", f"markers for {markers}, media are {kinds}")
        system = row["system"]
        everything = [system, *(turn["text"] for turn in turns)]
        hostile = any(self._special.search(text) or "\ue000" in text for text in everything)
        inserted: list[str] = []

        def put(text: str) -> str:
            if not hostile:
                return text
            words = text.lstrip("\n")  # the template looks for newlines behind images
            inserted.append(words)
            return text[: len(text) - len(words)] + _STAND_IN.format(len(inserted) - 1)

        messages: list[dict[str, Any]] = [{"role": "system", "content": put(system)}] if system else []
        for turn in turns:
            if turn["role"] != "user":
                messages.append({"role": turn["role"], "content": put(turn["text"])})
                continue
            content = [
                {"type": "text", "text": put(piece)} if kind == "text" else {"type": kind}
                for kind, piece in split_at_markers(turn["text"])
            ]
            messages.append({"role": "user", "content": content})
        messages.append({"role": "assistant", "content": _STAND_IN.format(999_999)})
        text = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
        before, found, after = text.rpartition(_STAND_IN.format(999_999))
        if not found:
            raise PromptError("chat template drops the response", self.folder.name)
        if self._suffix is None:
            ids = self.backend.encode(after, add_special_tokens=False).ids
            self._suffix = np.asarray(ids, dtype=np.int32)
            if not len(ids):
                raise PromptError("chat template does not close the assistant turn", self.folder.name)
        return before, inserted if hostile else None

    def _encode_parts(self, text: str, inserted: Sequence[str]) -> np.ndarray:
        """Tokens of a rendering whose inserted texts spell out special tokens: those are encoded as plain text."""
        ids: list[int] = []
        for number, piece in enumerate(_STAND_INS.split(text)):
            self.backend.encode_special_tokens = bool(number % 2)
            try:
                ids += self.backend.encode(inserted[int(piece)] if number % 2 else piece, add_special_tokens=False).ids
            finally:
                self.backend.encode_special_tokens = False
        return np.asarray(ids, dtype=np.int32)

    def _spell_videos(self, text: str, images: tuple[int, ...]) -> str:
        """Write out what the processor puts in the place of each video: for Qwen3-VL, the time of every step."""
        shown = (self.registry.images[p] for p in images) if self.registry else ()
        clips = [(image.clip, image.grid[0]) for image in shown if image.clip is not None]
        if not clips or self.registry is None:
            return text
        merge = self.registry.merge
        before, *after = text.split(self.processor.video_token)
        if len(after) != len(clips):
            raise PromptError("chat template loses videos", f"{len(after)} placeholders, {len(clips)} videos")
        for (clip, steps), rest in zip(clips, after, strict=True):
            shape = [[steps if self.layout.positions_per_second is None else 1, merge, merge]]
            # A grid of one token per step: `_finish` repeats each placeholder, as it does for images.
            given = {"video_grid_thw": np.array(shape), "video_metadata": [clip.metadata]}
            before += self.processor.replace_video_token(given, 0) + rest
        return before


def mrope_positions(
    length: int,
    places: np.ndarray,
    grids: Sequence[tuple[int, int, int]],
    merge: int,
    intervals: Sequence[float] | None = None,
) -> tuple[np.ndarray, int]:
    """M-RoPE positions of a prompt with images and videos (Qwen2-VL, arXiv 2409.12191, section 2.1).

    Text advances all three axes together; an image spans its merged grid from where the text stopped, and text goes on
    after the larger side of that grid. The steps of a Qwen2.5-VL video (arXiv 2502.13923, section 2.1.2) lie `interval`
    apart in time, rounded down; text goes on after the larger side here too, as `get_rope_index` of transformers 5.19
    has it. A Qwen3-VL video is a row of images with their times written between them.

    Args:
        length: tokens before placeholders are repeated.
        places: indices of the placeholders, rising.
        grids: patches in time, height and width of each image.
        merge: patches merged into one token, per side.
        intervals: positions in time between the steps of each grid; 1 where it is not given.

    Returns:
        Positions int32 [3, tokens after repeating], and the position of the token that comes next.
    """
    parts: list[np.ndarray] = []
    at = start = 0
    steps = intervals or [1.0] * len(grids)
    for place, (time, height, width), interval in zip(places, grids, steps, strict=True):
        parts.append(np.broadcast_to(np.arange(at, at + place - start), (3, place - start)))
        at += place - start
        shape = (time, height // merge, width // merge)
        cells = np.indices(shape).reshape(3, -1)
        if interval != 1:
            cells[0] = cells[0].astype(np.float32) * np.float32(interval)
        parts.append(cells + at)
        at += max(shape[1], shape[2])
        start = place + 1
    parts.append(np.broadcast_to(np.arange(at, at + length - start), (3, length - start)))
    return np.concatenate(parts, axis=1).astype(np.int32), int(at + length - start)


def load_processor(folder: str | Path, system_prompt: str | None = None, family: Family | None = None) -> Any:
    """Processor (tokenizer, image and video processor, chat template) of a model folder.

    Args:
        folder: with the processor's files.
        system_prompt: of a training that begins; its chat template is then that of the checkpoint to be. None: the
            template is what the folder's files say.
        family: of the model; by default the one that config.json in `folder` says.

    Raises:
        CheckpointError: the folder is no model of a supported family, or lacks usable processor files.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    ensure_torchvision()
    kind = (family or family_of(Path(folder))).processor_class()
    try:
        made = kind.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if not any((Path(folder) / name).is_file() for name in _IMAGE_SETTINGS):
            raise CheckpointError(
                f"{folder} has neither {' nor '.join(_IMAGE_SETTINGS)}, which say how images are read (a trainer of "
                "texts, such as TRL's RewardTrainer, writes the tokenizer alone): copy the one that the base model has "
                "into it"
            ) from error
        raise CheckpointError(
            f"{folder} has no usable processor files (tokenizer, image and video processor): {error}; copy them from "
            "the base model"
        ) from error
    # Transformers leaves a template in tokenizer_config.json to the tokenizer.
    found = getattr(made, "chat_template", None) or getattr(made.tokenizer, "chat_template", None)
    made.chat_template = default_template(found, folder)
    if not made.chat_template:
        raise CheckpointError(f"{folder} has no chat template")
    if system_prompt is not None:
        made.chat_template = reward_template(made.chat_template, system_prompt)
    return made
