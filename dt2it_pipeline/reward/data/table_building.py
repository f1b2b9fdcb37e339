"""Writing the prepared table of a training (token_table.py): each text once, in parallel, with bounded memory.

The tables are read piece by piece, several times: once for ids, once for media, once for texts. What is kept meanwhile
is a few numbers per row. The table lies in a folder named by everything that it depends on, and appears whole or not at
all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dt2it_pipeline.engines.launch.fork_server import available_processes
from dt2it_pipeline.observe.memory import give_back
from dt2it_pipeline.reward.data import token_table
from dt2it_pipeline.reward.data.encoding import PromptEncoder
from dt2it_pipeline.reward.data.encoding_workers import (
    EncodedRows,
    EncoderSource,
    Encoding,
    PromptChunk,
    RowEncoder,
    encoding,
)
from dt2it_pipeline.reward.data.table_numbers import ROWS, PairNumbers, PromptNumbers, texts_of
from dt2it_pipeline.reward.too_long import too_long
from dt2it_pipeline.storage import atomic, content_ids, records, schemas

_FORMAT = 2  # raise it when the files or their making change
_LEAST_PAIRS = 4000  # fewer are encoded sooner than processes start
_PROMPTS, _RESPONSES = 512, 2048  # of a chunk
_PROCESSOR_FILES = {".json", ".jinja", ".txt", ".model", ".tiktoken"}
_OK, _NO_PROMPT, _BAD_PROMPT, _LONG, _INFINITE = range(5)


@dataclass(frozen=True)
class TableSource:
    """What a table is made from.

    Attributes:
        pairs: Parquet of kind `pairs`.
        prompts: Parquet of kind `prompts`.
        encoder: how texts and images are encoded.
        max_length: tokens of a prompt with one response.
        use_strength: quarantine pairs of infinite strength too; null and NaN mean that the strength is unknown.
    """

    pairs: Path
    prompts: Path
    encoder: EncoderSource
    max_length: int
    use_strength: bool

    def key(self) -> str:
        """Digest of everything that the table depends on; images count by their hashes in the prompts table.

        Raises:
            OSError: a table cannot be read.
        """
        encoder = self.encoder
        files = [encoder.model / "config.json"]
        files += [file for file in encoder.processor.iterdir() if file.suffix in _PROCESSOR_FILES and file.is_file()]
        return content_ids.content_hash(
            _FORMAT,
            [token_table.file_digest(file) for file in (self.pairs, self.prompts)],
            sorted([file.name, token_table.file_digest(file)] for file in files),
            [version(package) for package in ("transformers", "tokenizers")],
            [str(encoder.media_root.resolve()), encoder.family.model_type, encoder.system_prompt, encoder.max_pixels],
            [self.max_length, self.use_strength],
        )


def build(folder: Path, source: TableSource, here: PromptEncoder, processes: int | None = None) -> None:
    """Write the table of `source` into `folder`; it appears whole or not at all.

    Nothing is truncated: a pair whose prompt and longer response exceed the limit is quarantined, as are pairs whose
    prompt is missing or cannot be encoded.

    Args:
        folder: of the table.
        source: what it is made from.
        here: encodes in this process; its registry is left with whatever was needed last.
        processes: that encode; by default one for every core, and this one alone for a small table.

    Raises:
        RecordError: a table is not of its kind.
        OSError: it cannot be written.
        WorkerError: an encoding process died.
    """
    pairs = PairNumbers(source.pairs)
    give_back()
    if processes is None:
        processes = available_processes() if len(pairs) >= _LEAST_PAIRS else 1
    with atomic.atomic_directory(folder) as place, encoding(source.encoder, here, processes) as workers:
        prompts = _write_prompts(place, source, pairs, workers)
        responses, lengths = _write_responses(place, pairs, source, workers)
        _write_pairs(place, source, pairs, prompts, responses, lengths)
        files = {file.name: token_table.file_digest(file) for file in sorted(place.iterdir())}
        meta = {"files": files, "content": pairs.content}
        (place / token_table.META).write_text(json.dumps(meta), encoding="utf-8")
    del pairs, prompts, responses, lengths
    give_back()


def images_have_changed(table: token_table.TokenTable, here: PromptEncoder) -> bool:
    """Whether a medium that could not be used when the table was made can be used now."""
    now = RowEncoder(here).headers([medium for _, medium in table.images.unusable()])
    return any(row.get("reason") is None for row in now)


@dataclass
class _Prompts:
    """Prompts of the pairs: place of each pair's prompt, and what each prompt came to.

    Attributes:
        of_pair: number of each pair's prompt, in the order of the prompts table; -1 where it is not there.
        stored: its place in the table that is written, -1 where it could not be encoded; by prompt.
        lengths: tokens; by prompt.
        faults: reason and message by prompt.
    """

    of_pair: np.ndarray
    stored: np.ndarray
    lengths: np.ndarray
    faults: dict[int, tuple[str, str]] = field(default_factory=dict)


class _Flat:
    """A flat file that grows."""

    def __init__(self, place: Path, name: str) -> None:
        self._kind = np.dtype(token_table.ARRAYS[name])
        self._file = token_table.array_file(place, name).open("wb")

    def add(self, values: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(values, dtype=self._kind).data)

    def close(self) -> None:
        self._file.close()


def _write(place: Path, name: str, values: np.ndarray) -> None:
    flat = _Flat(place, name)
    flat.add(values)
    flat.close()


def _starts(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def _write_prompts(place: Path, source: TableSource, pairs: PairNumbers, workers: Encoding) -> _Prompts:
    """Encode the prompts that pairs have, in the order of the prompts table, behind their images."""
    found = PromptNumbers(source.prompts, pairs)
    give_back()
    images_file = place / token_table.IMAGES
    with pa.OSFile(str(images_file), "wb") as sink, pa.ipc.new_file(sink, token_table.IMAGE_SCHEMA) as writer:
        for rows in workers.map("headers", found.media()):
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=token_table.IMAGE_SCHEMA))
    per_prompt, slots = found.media_counts, found.slots

    counts, lengths = [], []
    faults: dict[int, tuple[str, str]] = {}
    tokens = _Flat(place, "prompt_tokens")
    first = 0
    for made in workers.map("prompts", _prompt_chunks(found, images_file)):
        assert isinstance(made, EncodedRows)
        tokens.add(made.tokens)
        counts.append(made.counts)
        lengths.append(made.lengths)
        faults |= {first + at: fault for at, fault in made.faults.items()}
        first += len(made.counts)
    tokens.close()
    count = np.concatenate(counts) if counts else np.zeros(0, dtype=np.int64)
    length = np.concatenate(lengths) if lengths else np.zeros(0, dtype=np.int32)
    good = count >= 0
    _write(place, "prompt_starts", _starts(count[good]))
    _write(place, "prompt_lengths", length[good])
    _write(place, "prompt_ranks", found.ranks()[good])
    _write(place, "prompt_images", slots[np.repeat(good, per_prompt)])
    _write(place, "prompt_image_starts", _starts(per_prompt[good]))
    return _Prompts(found.of_pair, np.where(good, np.cumsum(good) - 1, -1), length, faults)


def _prompt_chunks(found: PromptNumbers, images_file: Path) -> Iterator[PromptChunk]:
    starts = _starts(found.media_counts)
    first = 0
    for chosen in found.pieces(["turns", "system", "media"]):
        for at in range(0, len(chosen), _PROMPTS):
            part = chosen.slice(at, _PROMPTS)
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, part.schema) as writer:
                writer.write_table(part)
            shown = found.slots[starts[first] : starts[first + len(part)]]
            yield PromptChunk(sink.getvalue().to_pybytes(), images_file, shown)
            first += len(part)


def _write_responses(
    place: Path, pairs: PairNumbers, source: TableSource, workers: Encoding
) -> tuple[np.ndarray, np.ndarray]:
    """Encode every text once; responses of each pair [pairs, 2], and tokens of each response."""
    tokens = _Flat(place, "response_tokens")
    counts = []
    for made in workers.map("responses", _response_chunks(source.pairs, pairs.new)):
        assert isinstance(made, EncodedRows)
        tokens.add(made.tokens)
        counts.append(made.counts)
    tokens.close()
    count = np.concatenate(counts) if counts else np.zeros(0, dtype=np.int64)
    _write(place, "response_starts", _starts(count))
    return pairs.response_of.reshape(-1, 2), count


def _response_chunks(path: Path, new: np.ndarray) -> Iterator[list[str]]:
    waiting: list[str] = []
    first = 0
    for piece in atomic.iter_parquet(path, "pairs", ROWS):
        texts = texts_of(piece)
        waiting += [texts[at] for at in np.flatnonzero(new[first : first + len(texts)]).tolist()]
        first += len(texts)
        while len(waiting) >= _RESPONSES:
            yield waiting[:_RESPONSES]
            del waiting[:_RESPONSES]
    if waiting:
        yield waiting


def _write_pairs(
    place: Path, source: TableSource, pairs: PairNumbers, prompts: _Prompts, responses: np.ndarray, lengths: np.ndarray
) -> None:
    """Write the pairs that can be used, and quarantine the others."""
    found = prompts.of_pair >= 0
    number = np.where(found, prompts.of_pair, 0)
    encoded = found & (_at(prompts.stored, number) >= 0)
    total = _at(prompts.lengths, number).astype(np.int64) + lengths[responses].max(axis=1, initial=0)
    fault = np.full(len(found), _OK, dtype=np.int8)
    if source.use_strength:
        fault[np.isinf(pairs.strengths)] = _INFINITE
    fault[encoded & (total > source.max_length)] = _LONG
    fault[found & ~encoded] = _BAD_PROMPT
    fault[~found] = _NO_PROMPT

    def why(at: int, row: dict[str, Any]) -> tuple[str, str]:
        if fault[at] == _NO_PROMPT:
            return "prompt not in the table", row["prompt_id"]
        if fault[at] == _BAD_PROMPT:
            return prompts.faults[int(number[at])]
        if fault[at] == _INFINITE:
            return "strength is infinite", str(row["strength"])
        long = too_long(int(total[at]), source.max_length)
        assert long is not None
        return long

    _write_names(place, source.pairs, fault, why)
    good = np.flatnonzero(fault == _OK)
    _write(place, "pair_prompts", _at(prompts.stored, number)[good])
    _write(place, "pair_responses", responses[good])
    _write(place, "pair_strengths", pairs.strengths[good])
    _write(place, "pair_lists", pairs.lists[good])
    _write(place, "pair_ranks", pairs.ranks[good])


def _write_names(
    place: Path, path: Path, fault: np.ndarray, why: Callable[[int, dict[str, Any]], tuple[str, str]]
) -> None:
    """Write ids and sources of the pairs that can be used, and the quarantine of the others."""
    quarantined = [schemas.table([], "quarantine")]
    first = 0
    with (
        pa.OSFile(str(place / token_table.PAIRS), "wb") as sink,
        pa.ipc.new_file(sink, token_table.PAIR_SCHEMA) as writer,
    ):
        for piece in atomic.iter_parquet(path, "pairs", ROWS):
            good = fault[first : first + len(piece)] == _OK
            named = piece.select(token_table.PAIR_SCHEMA.names).filter(pa.array(good))
            writer.write_table(named.cast(token_table.PAIR_SCHEMA))
            columns = ["pair_id", "prompt_id", "source", "row_id", "strength"]
            rows = piece.select(columns).filter(pa.array(~good)).to_pylist()
            places = (np.flatnonzero(~good) + first).tolist()
            aside = (
                records.quarantine_pair(row, "training", *why(at, row)) for at, row in zip(places, rows, strict=True)
            )
            quarantined.append(schemas.table(aside, "quarantine"))
            first += len(piece)
    atomic.write_parquet(pa.concat_tables(quarantined).combine_chunks(), place / token_table.QUARANTINE)


def _at(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """`values[places]`, zeros where there are no values at all."""
    return values[places] if len(values) else np.zeros(len(places), dtype=values.dtype)
