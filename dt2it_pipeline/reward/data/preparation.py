"""Preference pairs on their way into training: those of a prepared table that can be used, and why others cannot."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dt2it_pipeline.errors import RowError
from dt2it_pipeline.media.errors import MediaError
from dt2it_pipeline.reward.data import table_building, token_table
from dt2it_pipeline.reward.data.encoding import EncodedPrompt, PromptEncoder
from dt2it_pipeline.reward.data.table_building import TableSource
from dt2it_pipeline.reward.data.token_table import TokenTable
from dt2it_pipeline.reward.data.vision_features import Ranks
from dt2it_pipeline.reward.errors import TrainingError
from dt2it_pipeline.reward.too_long import too_long
from dt2it_pipeline.storage import atomic, content_ids, records, schemas

FOLDER = "prepared"  # below the work folder
_SPLIT_STREAM = 7_919  # keeps the draw of the held-out prompts apart from those of the epochs


def prompt_rows(table: pa.Table, wanted: set[str]) -> dict[str, dict[str, Any]]:
    """Rows of a prompts table by id, only the wanted ones (text becomes Python objects, so ask for few)."""
    found = table.filter(pc.is_in(table.column("prompt_id"), value_set=pa.array(sorted(wanted), type=pa.string())))
    return {row["prompt_id"]: row for row in found.to_pylist()}


def encode_prompts(
    prompt_encoder: PromptEncoder, rows: Mapping[str, Mapping[str, Any]]
) -> dict[str, EncodedPrompt | RowError]:
    """Encode rows of a prompts table by id; an error stands in the place of a prompt that cannot be encoded."""
    return dict(zip(rows, prompt_encoder.prompts(list(rows.values())), strict=True))


def fault_of(
    prompt: EncodedPrompt | RowError | None, prompt_id: str, response_tokens: int, max_length: int
) -> tuple[str, str] | None:
    """Reason and detail why a response to this prompt cannot be used, or None."""
    if prompt is None:
        return "prompt not in the table", prompt_id
    if isinstance(prompt, RowError):
        return prompt.reason, str(prompt)
    return too_long(len(prompt.tokens) + response_tokens, max_length)


class PreparedPairs:
    """Pairs that training can use, numbered from 0 in table order, and those that it cannot.

    Args:
        table: the prepared table.

    Attributes:
        rows: of the table, one for each pair, int64 [pairs].
        usable: which of them still count; a pair that is left out on the way keeps its number. bool [pairs].
    """

    def __init__(self, table: TokenTable) -> None:
        self.table = table
        self.rows = np.arange(table.pairs)
        self.usable = np.ones(table.pairs, dtype=bool)
        self._left_out: dict[int, tuple[str, str]] = {}  # row of the table -> reason and message

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def content(self) -> str:
        """Digest of the pairs that can be used, their labels, strengths and lists."""
        return content_ids.content_hash(self.table.content, sorted(self._left_out.items()))

    def pair_id(self, pair: int) -> str:
        """Id of a pair."""
        return str(self.table.named(int(self.rows[pair]))["pair_id"])

    def prompt_ranks(self) -> np.ndarray:
        """A number per pair, equal for pairs of one prompt, in the order of prompt ids; int32 [pairs]."""
        return self.table.prompt_ranks[self.rows]

    def strengths(self) -> np.ndarray:
        """Strength of every pair, float64 [pairs], NaN where it is unknown."""
        return self.table.strengths[self.rows]

    def lists(self) -> np.ndarray:
        """Number of every pair's list of answers, -1 for none; int32 [pairs]."""
        return self.table.lists[self.rows]

    def ranks(self) -> np.ndarray:
        """Places of chosen and rejected in that list by the source, float64 [pairs, 2], NaN where unknown."""
        return self.table.ranks[self.rows]

    def responses(self) -> np.ndarray:
        """Responses chosen and rejected by number, equal for equal texts; int32 [pairs, 2]."""
        return self.table.pair_responses[self.rows]

    def prompt_lengths(self) -> np.ndarray:
        """Tokens of every pair's prompt, int32 [pairs]."""
        return self.table.prompt_lengths[self.rows]

    def images(self) -> list[int]:
        """Images that the pairs show, each once, rising."""
        shown: list[int] = self.table.images_shown(self.rows).tolist()
        return shown

    def drop_images(self, faults: Mapping[int, MediaError]) -> None:
        """Quarantine the pairs that show an image which turned out to be unreadable; the others are numbered anew."""
        if not faults:
            return
        showing = self.table.pairs_showing(list(faults), self.rows)
        for row in showing.tolist():
            broken = next(faults[image] for image in self.table.images_of(row) if image in faults)
            self._left_out[row] = broken.reason, str(broken)
        self.rows = self.rows[~np.isin(self.rows, showing)]
        self.usable = np.ones(len(self.rows), dtype=bool)

    def leave_out(self, faults: Mapping[int, tuple[str, str]]) -> None:
        """Quarantine pairs, by number, for a reason and message; the others keep their numbers."""
        for pair, why in faults.items():
            self._left_out.setdefault(int(self.rows[pair]), why)
            self.usable[pair] = False

    def left_out(self) -> dict[int, tuple[str, str]]:
        """What `leave_out` was given so far."""
        return {pair: self._left_out[int(self.rows[pair])] for pair in np.flatnonzero(~self.usable).tolist()}

    def quarantine(self) -> pa.Table:
        """What cannot be used, with the reasons: first what the table quarantined, then images."""
        found = atomic.read_parquet(self.table.folder / token_table.QUARANTINE, "quarantine")
        named = ((self.table.named(row), why) for row, why in sorted(self._left_out.items()))
        rows = [records.quarantine_pair(pair, "training", *why) for pair, why in named]
        return pa.concat_tables([found, schemas.table(rows, "quarantine")])


def prepare(source: TableSource, work: Path, here: PromptEncoder, ranks: Ranks) -> TokenTable:
    """The prepared table of a training; every rank must call this.

    The first rank of each machine opens the one that lies below `work`, or makes it where there is none, where it is
    damaged, or where an image that was missing is there now. What was prepared from anything else is removed.

    Args:
        source: what the table is made from.
        work: the training's private folder.
        here: encoder of this process; its registry has the table's images afterwards.
        ranks: the process group.

    Raises:
        Dt2itError: as `table_building.build`; TrainingError where another rank failed.
        OSError: the same.
    """
    root = work / FOLDER
    place = root / f"rank-{ranks.leader}"  # machines may share `work`
    error: Exception | None = None
    key = ""
    if ranks.rank == ranks.leader:
        try:
            key = source.key()
            _make(place / key, source, here)
        except Exception as caught:  # others wait: they must hear of it
            error = caught
    # An error may have no words: a bare MemoryError has none.
    outcomes = ranks.gather((ranks.leader, key, "" if error is None else str(error) or type(error).__name__))
    if error is not None:
        raise error
    if failed := next((message for *_, message in outcomes if message), None):
        raise TrainingError(f"pairs could not be prepared on another rank: {failed}")
    key = next(name for leader, name, _ in outcomes if leader == ranks.leader and name)
    if ranks.rank == 0:
        _remove_all_but({root / f"rank-{leader}" for leader, *_ in outcomes}, root)
    if ranks.rank == ranks.leader:
        _remove_all_but({place / key}, place)
    table = TokenTable(place / key)
    assert here.registry is not None
    here.registry.adopt(table.images)
    return table


def _make(folder: Path, source: TableSource, here: PromptEncoder) -> None:
    if not token_table.is_whole(folder) or table_building.images_have_changed(TokenTable(folder), here):
        table_building.build(folder, source, here)


def _remove_all_but(kept: Collection[Path], root: Path) -> None:
    for folder in root.iterdir():
        if folder not in kept:
            shutil.rmtree(folder, ignore_errors=True)


def split_by_prompt(prompt_ids: Sequence[str] | np.ndarray, pairs: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw pairs to hold out, all pairs of a prompt together, so that no prompt is on both sides.

    Prompts are taken in an order drawn from `seed` until they bring at least `pairs` pairs.

    Args:
        prompt_ids: prompt of every pair, as a text, or as a number in the order of the texts.
        pairs: how many to hold out; the last prompt may bring more.
        seed: of the recipe.

    Returns:
        Pairs to train on and pairs to hold out, int64, each in ascending order; the first is empty where the prompts do
        not suffice.
    """
    prompts, prompt_of, counts = np.unique(np.asarray(prompt_ids), return_inverse=True, return_counts=True)
    order = np.random.default_rng([seed, _SPLIT_STREAM]).permutation(len(prompts))
    taken = int(np.searchsorted(np.cumsum(counts[order]), pairs)) + 1 if pairs else 0
    held_out = np.isin(prompt_of, order[:taken])
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def stopwatch() -> Callable[[], float]:
    """A function that gives the seconds since it was made."""
    start = time.perf_counter()
    return lambda: time.perf_counter() - start
