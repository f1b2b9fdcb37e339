"""Row encoding in parallel processes: what a worker process does, and the pool that hands it chunks.

Results come back in the order of the chunks, whoever made them, so that they do not depend on the number of processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dt2it_pipeline.engines.launch.fork_server import Pool
from dt2it_pipeline.media.errors import MediaError
from dt2it_pipeline.reward.data import fork_server
from dt2it_pipeline.reward.data.encoding import PromptEncoder, PromptError, TokenisedPrompt, load_processor
from dt2it_pipeline.reward.data.images import ImageRegistry, media_key
from dt2it_pipeline.reward.data.token_table import StoredImages, image_row
from dt2it_pipeline.reward.families import Family

_HERE: dict[str, RowEncoder] = {}  # this worker process's own


@dataclass(frozen=True)
class EncoderSource:
    """What a process needs to encode as all others do.

    Attributes:
        model: folder of the model, for its family and configuration.
        processor: folder with the processor's files.
        system_prompt: of the training.
        family: of the model.
        media_root: folder that no path may leave.
        max_pixels: of an image; the model's own limit counts where that is smaller.
    """

    model: Path
    processor: Path
    system_prompt: str
    family: Family
    media_root: Path
    max_pixels: int

    def encoder(self) -> PromptEncoder:
        """A new encoder with an empty registry."""
        processor = load_processor(self.processor, self.system_prompt, self.family)
        max_pixels = min(self.max_pixels, int(processor.image_processor.size["longest_edge"]))
        registry = ImageRegistry(processor.image_processor, self.media_root, max_pixels, processor.video_processor)
        return PromptEncoder(self.model, registry, processor)


@dataclass(frozen=True)
class PromptChunk:
    """Prompts to encode.

    Attributes:
        rows: `turns`, `system` and `media` as an Arrow stream.
        images_file: IMAGES of the table that is being made.
        slots: index there of every medium of the rows, one after the other, int32.
    """

    rows: bytes
    images_file: Path
    slots: np.ndarray


@dataclass(frozen=True)
class EncodedRows:
    """Rows as flat arrays, and what failed.

    Attributes:
        tokens: of all rows that could be encoded, int32.
        counts: how many of each row, int64; -1 where it failed.
        lengths: tokens of each row with placeholders repeated, int32.
        faults: by place in the chunk: reason, and the whole message.
    """

    tokens: np.ndarray
    counts: np.ndarray
    lengths: np.ndarray
    faults: dict[int, tuple[str, str]]


class RowEncoder:
    """What one process does with chunks."""

    def __init__(self, prompt_encoder: PromptEncoder) -> None:
        self.prompt_encoder = prompt_encoder
        assert prompt_encoder.registry is not None
        self.registry = prompt_encoder.registry
        self.images: StoredImages | None = None

    def headers(self, media: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows of token_table.IMAGES of rows of `media`."""
        rows = []
        for medium in media:
            try:
                rows.append(image_row(self.registry.read(medium), medium))
            except MediaError as error:
                rows.append(image_row(error, medium))
        return rows

    def prompts(self, chunk: PromptChunk) -> EncodedRows:
        """Encode prompts whose images have been read."""
        rows = pa.ipc.open_stream(chunk.rows).read_all().to_pylist()
        if self.images is None or self.images.file != chunk.images_file:
            self.images = StoredImages(chunk.images_file)
        known: dict[str, int | MediaError] = {}
        shown = (medium for row in rows for medium in row["media"] or ())
        for medium, index in zip(shown, chunk.slots.tolist(), strict=True):
            fault = self.images.fault(index)
            known[media_key(medium)] = index if fault is None else fault
        self.registry.adopt(self.images, known)
        faults: dict[int, tuple[str, str]] = {}
        counts, lengths, tokens = np.full(len(rows), -1), np.zeros(len(rows), dtype=np.int32), []
        for place, made in enumerate(self.prompt_encoder.tokenised(rows)):
            try:
                if not isinstance(made, TokenisedPrompt):
                    raise made
                lengths[place] = self.prompt_encoder.layout.length(made.ids, made.images, self.registry)
            except (PromptError, MediaError) as error:
                faults[place] = error.reason, str(error)
                continue
            counts[place] = len(made.ids)
            tokens.append(made.ids)
        return EncodedRows(_joined(tokens), counts, lengths, faults)

    def responses(self, texts: Sequence[str]) -> EncodedRows:
        """Encode responses, each with the end of its turn."""
        tokens = self.prompt_encoder.responses(texts)
        counts = np.array([len(ids) for ids in tokens], dtype=np.int64)
        return EncodedRows(_joined(tokens), counts, counts.astype(np.int32), {})


class Encoding:
    """Maps chunks over processes, or in this one where there is no pool."""

    def __init__(self, here: RowEncoder, pool: Pool | None) -> None:
        self._here, self._pool = here, pool

    def map(self, method: str, chunks: Iterable[Any]) -> Iterator[Any]:
        """What `RowEncoder.method` makes of every chunk, in order; few chunks lie in memory at a time.

        Raises:
            WorkerError: a process died.
        """
        if self._pool is None:
            return map(getattr(self._here, method), chunks)
        return self._pool.map(partial(_work, method), chunks)


@contextmanager
def encoding(source: EncoderSource, here: PromptEncoder, processes: int) -> Iterator[Encoding]:
    """Processes that encode as `source` says; with one process, this one does it with `here`."""
    if processes < 2:
        yield Encoding(RowEncoder(here), None)
        return
    lost = (
        f"one of {processes} processes that encode prompts and responses ended before its work was done, "
        "often because memory ran out; free memory on this machine and start again: nothing is lost"
    )
    with Pool(processes, fork_server.context, lost, _start, (source,)) as pool:
        yield Encoding(RowEncoder(here), pool)


def _start(source: EncoderSource) -> None:
    fork_server.end_with_parent()
    _HERE["encoder"] = RowEncoder(source.encoder())


def _work(method: str, chunk: Any) -> Any:
    return getattr(_HERE["encoder"], method)(chunk)


def _joined(tokens: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(tokens) if tokens else np.zeros(0, dtype=np.int32)
