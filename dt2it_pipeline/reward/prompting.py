"""From table rows to token ids: chat template, the evaluator's system prompt, pictures, and a response after it.

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
from dt2it_pipeline.reward.pictures import PictureError, PictureShelf

_STAND_IN = "\ue000{}\ue001"
_STAND_INS = re.compile("\ue000(\\d+)\ue001")
_MARKER = re.compile("<image>")


class PromptError(ValueError):
    """A prompt cannot be rendered; `reason` is a short fixed phrase."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)  # both, so that it can travel between processes
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt as tokens, each picture's placeholder repeated once per picture token."""

    tokens: np.ndarray  # int32 [length]
    positions: np.ndarray  # int32 [3, length]: M-RoPE positions in time, height and width
    next_position: int  # where every response starts
    picture_slots: np.ndarray  # int32 [picture tokens], columns of picture tokens
    pictures: tuple[int, ...]  # indices on the shelf


class Prompter:
    """Tokens of prompts and responses for one model and one system prompt."""

    def __init__(self, folder: str | Path, shelf: PictureShelf | None, system_prompt: str, processor: Any) -> None:
        self.folder = Path(folder)
        self.shelf = shelf
        self.system_prompt = system_prompt
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.backend = self.tokenizer.backend_tokenizer
        self.image_token = int(processor.image_token_id)
        special = [token.content for token in self.backend.get_added_tokens_decoder().values() if token.special]
        self._special = re.compile("|".join(re.escape(t) for t in sorted(special, key=len, reverse=True)) or "(?!)")
        self._suffix: np.ndarray | None = None

    def prompts(self, rows: Sequence[Mapping[str, Any]]) -> list[EncodedPrompt | PromptError | PictureError]:
        """Encode rows of a prompts table; where that fails, the error stands in the row's place."""
        results: list[EncodedPrompt | PromptError | PictureError | None] = [None] * len(rows)
        texts: list[str] = []
        where: list[tuple[int, tuple[int, ...]]] = []
        for number, row in enumerate(rows):
            try:
                pictures = self._pictures(row)
                text, inserted = self._render(row)
                if inserted is None:
                    texts.append(text)
                    where.append((number, pictures))
                else:
                    results[number] = self._finish(self._encode_parts(text, inserted), pictures)
            except (PromptError, PictureError) as error:
                results[number] = error
        for (number, pictures), encoding in zip(
            where, self.backend.encode_batch_fast(texts, add_special_tokens=False), strict=True
        ):
            try:
                results[number] = self._finish(np.asarray(encoding.ids, dtype=np.int32), pictures)
            except PromptError as error:
                results[number] = error
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

    def _pictures(self, row: Mapping[str, Any]) -> tuple[int, ...]:
        media = row["media"] or ()
        if not media:
            return ()
        if self.shelf is None:
            raise PromptError("prompt has pictures", "this scorer was made without a media root")
        return tuple(self.shelf.add(medium) for medium in media)

    def _render(self, row: Mapping[str, Any]) -> tuple[str, list[str] | None]:
        """Text before the response; and the inserted texts by number where stand-ins had to be used for them."""
        turns = row["turns"]
        if not turns or turns[-1]["role"] != "user":
            raise PromptError("prompt does not end with a user turn", f"{[turn['role'] for turn in turns or ()]}")
        markers = sum(len(_MARKER.findall(turn["text"])) for turn in turns if turn["role"] == "user")
        if markers != len(row["media"] or ()):
            raise PromptError("picture markers do not match media", f"{markers} markers, {len(row['media'])} media")
        system = "\n\n".join(part for part in (self.system_prompt, row["system"]) if part)
        everything = [system, *(turn["text"] for turn in turns)]
        hostile = any(self._special.search(text) or "\ue000" in text for text in everything)
        inserted: list[str] = []

        def put(text: str) -> str:
            if not hostile:
                return text
            inserted.append(text)
            return _STAND_IN.format(len(inserted) - 1)

        messages: list[dict[str, Any]] = [{"role": "system", "content": put(system)}] if system else []
        for turn in turns:
            if turn["role"] != "user":
                messages.append({"role": turn["role"], "content": put(turn["text"])})
                continue
            content: list[dict[str, str]] = []
            for number, piece in enumerate(_MARKER.split(turn["text"])):
                if number:
                    content.append({"type": "image"})
                if piece:
                    content.append({"type": "text", "text": put(piece)})
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

    def _finish(self, ids: np.ndarray, pictures: tuple[int, ...]) -> EncodedPrompt:
        """Repeat placeholders and lay out positions."""
        places = np.flatnonzero(ids == self.image_token)
        if len(places) != len(pictures):
            raise PromptError("chat template loses pictures", f"{len(places)} placeholders, {len(pictures)} media")
        if not pictures:
            line = np.arange(len(ids), dtype=np.int32)
            return EncodedPrompt(ids, np.broadcast_to(line, (3, len(ids))), len(ids), np.zeros(0, np.int32), ())
        assert self.shelf is not None
        counts = np.ones(len(ids), dtype=np.int64)
        counts[places] = [self.shelf.pictures[p].tokens for p in pictures]
        tokens = np.repeat(ids, counts)
        grids = [self.shelf.pictures[p].grid for p in pictures]
        positions, after = mrope_positions(len(ids), places, grids, self.shelf.merge)
        slots = np.flatnonzero(tokens == self.image_token).astype(np.int32)
        return EncodedPrompt(tokens, positions, after, slots, pictures)


def mrope_positions(
    length: int, places: np.ndarray, grids: Sequence[tuple[int, int, int]], merge: int
) -> tuple[np.ndarray, int]:
    """M-RoPE positions of a prompt with still pictures (Qwen2-VL, arXiv 2409.12191, section 2.1).

    Text advances all three axes together; a picture spans its merged grid from where the text stopped, and text goes on
    after the larger side of that grid.

    Args:
        length: tokens before placeholders are repeated.
        places: indices of the placeholders, rising.
        grids: patches in time, height and width of each picture.
        merge: patches merged into one token, per side.

    Returns:
        Positions int32 [3, tokens after repeating], and the position of the token that comes next.
    """
    parts: list[np.ndarray] = []
    at = start = 0
    for place, (time, height, width) in zip(places, grids, strict=True):
        parts.append(np.broadcast_to(np.arange(at, at + place - start), (3, place - start)))
        at += place - start
        shape = (time, height // merge, width // merge)
        parts.append(np.indices(shape).reshape(3, -1) + at)
        at += max(shape[1], shape[2])
        start = place + 1
    parts.append(np.broadcast_to(np.arange(at, at + length - start), (3, length - start)))
    return np.concatenate(parts, axis=1).astype(np.int32), int(at + length - start)


def load_processor(folder: str | Path) -> Any:
    """Processor (tokenizer, picture processor, chat template) of a model folder."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    ensure_torchvision()
    from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
    from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

    from dt2it_pipeline.reward.model import CheckpointError, _read_json

    kind = _read_json(Path(folder) / "config.json").get("model_type")
    made = (Qwen3VLProcessor if kind == "qwen3_vl" else Qwen2_5_VLProcessor).from_pretrained(folder)
    if not getattr(made, "chat_template", None):
        raise CheckpointError(f"{folder} has no chat template")
    return made
