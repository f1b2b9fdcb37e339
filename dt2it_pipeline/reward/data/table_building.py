"""Writing the prepared table of a training (token_table.py): each text once, in parallel, with bounded memory.

The tables are read piece by piece, several times: once for ids, once for media, once for texts. What is kept meanwhile
is a few numbers per row. The table lies in a folder named by everything that it depends on, and appears whole or not at
all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dt2it_pipeline.engines.launch.fork_server import available_processes
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
from dt2it_pipeline.reward.data.images import media_key
from dt2it_pipeline.reward.too_long import too_long
from dt2it_pipeline.storage import atomic, content_ids, records, schemas

_FORMAT = 2  # raise it when the files or their making change
_LEAST_PAIRS = 4000  # fewer are encoded sooner than processes start
_ROWS = 4096  # of a table that are read at a time
_PROMPTS, _RESPONSES, _MEDIA = 512, 2048, 1024  # of a chunk
_PROCESSOR_FILES = {".json", ".jinja", ".txt", ".model", ".tiktoken"}
_LIGHT = ["pair_id", "prompt_id", "strength", "source", "row_id", *schemas.LIST_COLUMNS]
_LABELS = ("pair_id", "chosen_id", "strength", *schemas.LIST_COLUMNS)
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
    pairs = _Pairs(source.pairs)
    if processes is None:
        processes = available_processes() if len(pairs.table) >= _LEAST_PAIRS else 1
    with atomic.atomic_directory(folder) as place, encoding(source.encoder, here, processes) as workers:
        prompts = _write_prompts(place, source, pairs, workers)
        responses, lengths = _write_responses(place, pairs, source, workers)
        _write_pairs(place, source, pairs, prompts, responses, lengths)
        files = {file.name: token_table.file_digest(file) for file in sorted(place.iterdir())}
        meta = {"files": files, "content": pairs.content}
        (place / token_table.META).write_text(json.dumps(meta), encoding="utf-8")


def images_have_changed(table: token_table.TokenTable, here: PromptEncoder) -> bool:
    """Whether a medium that could not be used when the table was made can be used now."""
    now = RowEncoder(here).headers([medium for _, medium in table.images.unusable()])
    return any(row.get("reason") is None for row in now)


class _Pairs:
    """The pairs table but for its texts: light columns, and which texts are new.

    Attributes:
        table: the columns _LIGHT.
        content: digest of ids, labels, strengths and lists, in their order.
        new: whether a text is the first of its kind, in the order chosen, rejected, chosen, ...; bool [2 * pairs].
        response_of: number of each text among the new ones, int32 [2 * pairs].
    """

    def __init__(self, path: Path) -> None:
        pieces, digests, contents = [], [], []
        for piece in atomic.iter_parquet(path, "pairs", _ROWS):
            pieces.append(piece.select(_LIGHT))
            labels = (piece.column(name).to_pylist() for name in _LABELS)
            contents.append(content_ids.content_hash(*labels))
            digests.append(b"".join(map(content_ids.digest, _texts(piece))))
        self.content = content_ids.content_hash(*contents)
        self.table = pa.concat_tables(pieces)
        self.new, self.response_of = content_ids.numbered(digests)


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


def _texts(piece: pa.Table) -> list[str]:
    """Texts of a piece of the pairs table: chosen, rejected, chosen, ..."""
    sides = (piece.column(name).to_pylist() for name in ("chosen", "rejected"))
    return [text for pair in zip(*sides, strict=True) for text in pair]


def _write_prompts(place: Path, source: TableSource, pairs: _Pairs, workers: Encoding) -> _Prompts:
    """Encode the prompts that pairs have, in the order of the prompts table, behind their images."""
    asked = pairs.table.column("prompt_id")
    found = _PromptRows(source.prompts, pc.unique(asked))
    images_file = place / token_table.IMAGES
    with pa.OSFile(str(images_file), "wb") as sink, pa.ipc.new_file(sink, token_table.IMAGE_SCHEMA) as writer:
        for rows in workers.map("headers", found.media()):
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=token_table.IMAGE_SCHEMA))
    names, per_prompt, slots = found.names, found.media_counts, found.slots

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
    ranks = np.empty(len(names), dtype=np.int32)
    ranks[pc.sort_indices(names).to_numpy()] = np.arange(len(names))
    _write(place, "prompt_ranks", ranks[good])
    _write(place, "prompt_images", slots[np.repeat(good, per_prompt)])
    _write(place, "prompt_image_starts", _starts(per_prompt[good]))
    of_pair = pc.index_in(asked, value_set=names).fill_null(-1).to_numpy()
    return _Prompts(of_pair, np.where(good, np.cumsum(good) - 1, -1), length, faults)


class _PromptRows:
    """Which rows of the prompts table are encoded: those that pairs have, the first of each id.

    Args:
        prompts: the table's file.
        wanted: ids of prompts, each once.

    Attributes:
        names: ids of the prompts that are encoded.
        media_counts: media of each, int64 [prompts].
        slots: index of each medium of each, one after the other, in the order in which they are met; int32.
    """

    def __init__(self, prompts: Path, wanted: pa.Array) -> None:
        self._prompts = prompts
        ids: list[pa.Array] = []
        counts: list[np.ndarray] = []
        digests: list[bytes] = []
        for piece in atomic.iter_parquet(prompts, "prompts", _ROWS):
            ids += piece.column("prompt_id").chunks
            shown = piece.column("media").to_pylist()
            counts.append(np.array([len(media or ()) for media in shown], dtype=np.int64))
            keys = (media_key(medium) for media in shown for medium in media or ())  # may be long paths
            digests.append(b"".join(map(content_ids.digest, keys)))
        names = pa.chunked_array(ids, pa.string())
        # All at once: the ids that are looked for become a table of hashes at every call.
        number = pc.index_in(names, value_set=wanted).fill_null(-1).to_numpy()
        _, first = np.unique(number, return_index=True)
        kept = np.sort(first[number[first] >= 0])
        self._kept = np.zeros(len(names), dtype=bool)
        self._kept[kept] = True
        per_row = np.concatenate([*counts, np.zeros(0, dtype=np.int64)])
        self.names = names.filter(pa.array(self._kept)).combine_chunks()
        self.media_counts = per_row[kept]
        self._new, self.slots = content_ids.numbered(digests, np.repeat(self._kept, per_row))

    def pieces(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Go through the rows that are encoded."""
        first = 0
        for piece in atomic.iter_parquet(self._prompts, "prompts", _ROWS):
            yield piece.select(columns).filter(pa.array(self._kept[first : first + len(piece)]))
            first += len(piece)

    def media(self) -> Iterator[list[dict[str, Any]]]:
        """Chunks of media, each once, in the order of their numbers."""
        waiting: list[dict[str, Any]] = []
        first = 0
        for piece in self.pieces(["media"]):
            shown = [medium for media in piece.column("media").to_pylist() for medium in media or ()]
            waiting += [shown[at] for at in np.flatnonzero(self._new[first : first + len(shown)]).tolist()]
            first += len(shown)
            while len(waiting) >= _MEDIA:
                yield waiting[:_MEDIA]
                del waiting[:_MEDIA]
        if waiting:
            yield waiting


def _prompt_chunks(found: _PromptRows, images_file: Path) -> Iterator[PromptChunk]:
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
    place: Path, pairs: _Pairs, source: TableSource, workers: Encoding
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
    for piece in atomic.iter_parquet(path, "pairs", _ROWS):
        texts = _texts(piece)
        waiting += [texts[at] for at in np.flatnonzero(new[first : first + len(texts)]).tolist()]
        first += len(texts)
        while len(waiting) >= _RESPONSES:
            yield waiting[:_RESPONSES]
            del waiting[:_RESPONSES]
    if waiting:
        yield waiting


def _write_pairs(
    place: Path, source: TableSource, pairs: _Pairs, prompts: _Prompts, responses: np.ndarray, lengths: np.ndarray
) -> None:
    """Write the pairs that can be used, and quarantine the others."""
    strengths = pairs.table.column("strength").fill_null(np.nan).to_numpy()
    found = prompts.of_pair >= 0
    number = np.where(found, prompts.of_pair, 0)
    encoded = found & (_at(prompts.stored, number) >= 0)
    total = _at(prompts.lengths, number).astype(np.int64) + lengths[responses].max(axis=1, initial=0)
    fault = np.full(len(found), _OK)
    if source.use_strength:
        fault[np.isinf(strengths)] = _INFINITE
    fault[encoded & (total > source.max_length)] = _LONG
    fault[found & ~encoded] = _BAD_PROMPT
    fault[~found] = _NO_PROMPT
    quarantined = []
    for at in np.flatnonzero(fault != _OK).tolist():
        row = pairs.table.slice(at, 1).to_pylist()[0]
        why: tuple[str, str] | None
        if fault[at] == _NO_PROMPT:
            why = "prompt not in the table", row["prompt_id"]
        elif fault[at] == _BAD_PROMPT:
            why = prompts.faults[int(number[at])]
        elif fault[at] == _LONG:
            why = too_long(int(total[at]), source.max_length)
        else:
            why = "strength is infinite", str(row["strength"])
        assert why is not None
        quarantined.append(records.quarantine_pair(row, "training", *why))
    atomic.write_parquet(schemas.table(quarantined, "quarantine"), place / token_table.QUARANTINE)
    good = np.flatnonzero(fault == _OK)
    _write(place, "pair_prompts", _at(prompts.stored, number)[good])
    _write(place, "pair_responses", responses[good])
    _write(place, "pair_strengths", strengths[good])
    lists = pairs.table.column("list_id").combine_chunks().dictionary_encode().indices.fill_null(-1).to_numpy()
    ranks = [pairs.table.column(name).fill_null(np.nan).to_numpy() for name in schemas.LIST_COLUMNS[1:]]
    _write(place, "pair_lists", lists[good])
    _write(place, "pair_ranks", np.stack(ranks, axis=1)[good])
    named = pairs.table.select(token_table.PAIR_SCHEMA.names).cast(token_table.PAIR_SCHEMA)
    first = 0
    with (
        pa.OSFile(str(place / token_table.PAIRS), "wb") as sink,
        pa.ipc.new_file(sink, token_table.PAIR_SCHEMA) as writer,
    ):
        for batch in named.to_batches():  # without another copy of the whole
            writer.write_batch(batch.filter(pa.array(fault[first : first + len(batch)] == _OK)))
            first += len(batch)


def _at(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """`values[places]`, zeros where there are no values at all."""
    return values[places] if len(values) else np.zeros(len(places), dtype=values.dtype)
