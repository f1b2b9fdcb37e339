"""What else an artifact home has to look at: quarantined rows by reason, and benchmark pairs that a model fails on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dt2it_pipeline.human_review.review_page.catalogue import Medium, media_of
from dt2it_pipeline.human_review.review_page.round_pairs import prompt_rows
from dt2it_pipeline.human_review.review_page.word_diff import word_diff
from dt2it_pipeline.media.markers import without_markers
from dt2it_pipeline.storage.artifacts import Store
from dt2it_pipeline.storage.atomic import StoreError, read_parquet

_ONCE = (
    "raw_prompts",
    "raw_preferences",
    "raw_t2i_preferences",
    "raw_benchmarks",
    "candidate_responses",
    "judged_responses",
    "debiased_pairs",
    "t2i_pairs",
)
_OF_ROUND = (
    "training_pairs",
    "ensemble_scores",
    "response_scores",
    "voted_pairs",
    "verified_pairs",
    "annotated_pairs",
    "benchmark_scores",
)
_CONTESTED = "contested"  # such pairs are not lost: the next step decides them
_RESULTS = "benchmark_results"


@dataclass(frozen=True)
class Quarantine:
    """Quarantined and dropped rows of all stages up to a round (table kind `quarantine`), by stage and reason."""

    table: pa.Table

    @classmethod
    def of(cls, store: Store, number: str) -> Quarantine:
        """Those of an artifact home. Raises StoreError where a table is damaged."""
        parts = []
        for name, partition in [*((name, None) for name in _ONCE), *((name, number) for name in _OF_ROUND)]:
            if store.current(name, partition) is None:
                continue
            table = _table(store, name, "quarantine", partition)
            parts.append(table.filter(pc.not_equal(table["reason"], _CONTESTED)))
        return cls(pa.concat_tables(parts).combine_chunks() if parts else pa.table({}))

    def reasons(self) -> list[dict[str, Any]]:
        """Stage, reason and rows, the most rows first."""
        if not self.table.num_rows:
            return []
        counts = self.table.group_by(["stage", "reason"]).aggregate([([], "count_all")]).to_pylist()
        rows = [{"stage": row["stage"], "reason": row["reason"], "rows": row["count_all"]} for row in counts]
        return sorted(rows, key=lambda row: (-row["rows"], row["stage"], row["reason"]))

    def rows(self, stage: str, reason: str, offset: int, limit: int) -> tuple[int, list[dict[str, Any]]]:
        """How many rows have a stage and a reason (all where empty), and some of them."""
        table = self.table
        for name, value in (("stage", stage), ("reason", reason)):
            if value and table.num_rows:
                table = table.filter(pc.equal(table[name], value))
        return table.num_rows, table.slice(offset, limit).to_pylist()


class BenchmarkErrors:
    """Pairs of benchmarks that a round's model gets wrong, cannot tell apart or could not score.

    Args:
        store: the artifact home.
        number: of the round.

    Raises:
        StoreError: the benchmark has not been run in this round, or a table is damaged.
    """

    def __init__(self, store: Store, number: str) -> None:
        results = _table(store, "benchmark_scores", _RESULTS, number)
        self.total = results.num_rows
        self._wrong = results.filter(pc.not_equal(results["outcome"], "correct")).to_pylist()
        wanted = pa.array([row["pair_id"] for row in self._wrong], pa.string())
        items = _table(store, "raw_benchmarks", "benchmark_items")
        items = items.filter(pc.is_in(items["pair_id"], wanted))
        self._items: dict[tuple[str, str], Mapping[str, Any]] = {
            (row["benchmark"], row["item_id"]): row for row in items.to_pylist()
        }
        prompts = _table(store, "raw_benchmarks", "prompts")
        prompts = prompts.filter(pc.is_in(prompts["prompt_id"], items["prompt_id"].combine_chunks()))
        ids = prompts["prompt_id"].to_pylist()
        self._prompts = dict(zip(ids, prompt_rows(prompts).to_pylist(), strict=True))
        self._wrong.sort(key=_margin)

    def __len__(self) -> int:
        return len(self._wrong)

    def rows(self, offset: int, limit: int) -> list[dict[str, Any]]:
        """Some of the pairs, the most wrong first."""
        return [self._row(place) for place in range(offset, min(offset + limit, len(self._wrong)))]

    def media(self, place: int) -> list[Medium]:
        """The images and videos of a pair."""
        if not 0 <= place < len(self._wrong):
            return []
        return media_of(self._prompts.get(self._wrong[place]["prompt_id"], {"media": []}))

    def _row(self, place: int) -> dict[str, Any]:
        result = self._wrong[place]
        item = self._items.get((result["benchmark"], result["item_id"]), {})
        prompt = self._prompts.get(result["prompt_id"], {"text": "", "media": []})
        better, worse = word_diff(item.get("chosen", ""), item.get("rejected", ""))
        keys = ("model", "benchmark", "group", "item_id", "outcome", "chosen_score", "rejected_score")
        return {name: result[name] for name in keys} | {
            "place": place,
            "prompt": without_markers(prompt["text"]).strip(),
            "media": [kind for kind, _ in media_of(prompt)],
            "better": better,
            "worse": worse,
        }


def _table(store: Store, name: str, kind: str, number: str | None = None) -> pa.Table:
    """A table of an artifact in force. Raises StoreError where there is none, or it is damaged."""
    file = store.table_file(name, kind, number)
    try:
        return read_parquet(file, kind)
    except (OSError, pa.ArrowException) as error:
        raise StoreError(
            f"{file} cannot be read: {error}; if the round is being run, try again when that has ended, else "
            "`dt2it doctor` says what is damaged"
        ) from error


def _margin(row: Mapping[str, Any]) -> float:
    scores = row["chosen_score"], row["rejected_score"]
    return 0.0 if None in scores else float(scores[0] - scores[1])
