"""Pairs and prompts of a training as numbers, by which its table is written (table_building.py).

The tables are read piece by piece, as often as it takes, so that a few numbers per row are all that lies in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dt2it_pipeline.reward.data.images import media_key
from dt2it_pipeline.storage import atomic, content_ids, schemas

ROWS = 4096  # of a table that are read at a time
_MEDIA = 1024  # of a chunk
_LABELS = ("pair_id", "chosen_id", "strength", *schemas.LIST_COLUMNS)


class PairNumbers:
    """Numbers of the pairs table. Its texts and ids are read again when they are needed; they would fill the memory.

    Attributes:
        content: digest of ids, labels, strengths and lists, in their order.
        strengths: NaN where unknown, float64 [pairs].
        lists: number of the list of each pair, -1 for none, int32 [pairs].
        ranks: places of chosen and rejected there, NaN where unknown, float64 [pairs, 2].
        prompts: digest of each pair's prompt_id (`content_ids.digests`).
        new: whether a text is the first of its kind, in the order chosen, rejected, chosen, ...; bool [2 * pairs].
        response_of: number of each text among the new ones, int32 [2 * pairs].
    """

    def __init__(self, path: Path) -> None:
        texts, lists, self.prompts = bytearray(), bytearray(), bytearray()
        contents: list[str] = []
        strengths: list[np.ndarray] = []
        ranks: list[np.ndarray] = []
        in_list: list[np.ndarray] = []
        for piece in atomic.iter_parquet(path, "pairs", ROWS):
            contents.append(content_ids.content_hash(*(piece.column(name).to_pylist() for name in _LABELS)))
            texts += content_ids.digests(texts_of(piece))
            self.prompts += content_ids.digests(piece.column("prompt_id").to_pylist())
            lists += content_ids.digests(piece.column("list_id").drop_null().to_pylist())
            in_list.append(piece.column("list_id").is_valid().to_numpy())
            numbers = (piece.column(name).fill_null(np.nan) for name in ("strength", *schemas.LIST_COLUMNS[1:]))
            strength, *places = (column.to_numpy() for column in numbers)
            strengths.append(strength)
            ranks.append(np.stack(places, axis=1))
        self.content = content_ids.content_hash(*contents)
        self.strengths, self.ranks = np.concatenate(strengths), np.concatenate(ranks)
        self.lists = np.full(len(self), -1, dtype=np.int32)
        self.lists[np.concatenate(in_list)] = content_ids.numbered(lists)[1]
        self.new, self.response_of = content_ids.numbered(texts)

    def __len__(self) -> int:
        return len(self.strengths)


class PromptNumbers:
    """Which rows of the prompts table are encoded: those that pairs have, the first of each id.

    Args:
        prompts: the table's file.
        pairs: whose prompts are wanted.

    Attributes:
        of_pair: number of each pair's prompt among those that are encoded, -1 where it is not there; int32 [pairs].
        media_counts: media of each, int64 [prompts].
        slots: index of each medium of each, one after the other, in the order in which they are met; int32.
    """

    def __init__(self, prompts: Path, pairs: PairNumbers) -> None:
        self._prompts = prompts
        counts: list[np.ndarray] = []
        ids, media = bytearray(pairs.prompts), bytearray()
        for piece in atomic.iter_parquet(prompts, "prompts", ROWS):
            ids += content_ids.digests(piece.column("prompt_id").to_pylist())
            shown = piece.column("media").to_pylist()
            counts.append(np.array([len(each or ()) for each in shown], dtype=np.int64))
            media += content_ids.digests(media_key(medium) for each in shown for medium in each or ())
        number = content_ids.numbered(ids)[1]
        asked, own = number[: len(pairs)], number[len(pairs) :]
        wanted = np.flatnonzero(own <= asked.max(initial=-1))  # pairs come first, and so have the lowest numbers
        kept = wanted[np.sort(np.unique(own[wanted], return_index=True)[1])]
        place = np.full(asked.max(initial=-1) + 1, -1, dtype=np.int32)
        place[own[kept]] = np.arange(len(kept))
        self.of_pair = place[asked]
        self._kept = np.zeros(len(own), dtype=bool)
        self._kept[kept] = True
        per_row = np.concatenate([*counts, np.zeros(0, dtype=np.int64)])
        self.media_counts = per_row[kept]
        chosen = np.repeat(self._kept, per_row)
        self._new, self.slots = content_ids.numbered(np.frombuffer(media, dtype="V16")[chosen].tobytes())

    def ranks(self) -> np.ndarray:
        """Place of each prompt's id in the order of all ids, int32 [prompts]."""
        ids = [chunk for piece in self.pieces(["prompt_id"]) for chunk in piece.column("prompt_id").chunks]
        order = pc.sort_indices(pa.chunked_array(ids, pa.string())).to_numpy()
        ranks = np.empty(len(order), dtype=np.int32)
        ranks[order] = np.arange(len(order))
        return ranks

    def pieces(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Go through the rows that are encoded."""
        first = 0
        for piece in atomic.iter_parquet(self._prompts, "prompts", ROWS):
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


def texts_of(piece: pa.Table) -> list[str]:
    """Texts of a piece of the pairs table: chosen, rejected, chosen, ..."""
    sides = (piece.column(name).to_pylist() for name in ("chosen", "rejected"))
    return [text for pair in zip(*sides, strict=True) for text in pair]
