"""What became of every row of the preference sources in a round: kept, flipped, dropped or quarantined, and why.

Rows that ingestion cannot use are quarantined; pairs that curation takes out are dropped.

    dt2it outcomes --round 1 --output outcomes.parquet [--home DT2IT_HOME]

The file joins a source's own rows to the cleaned set: `source` and `row_id` say which row (its own id as text, else its
place, such as `line 17`), `pair_id` is that of the exports. A row that makes several pairs stands there once for each.
What belongs here: the account. What does not: any decision about a pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from dt2it_pipeline.errors import UserError
from dt2it_pipeline.storage.artifacts import Store

KEPT, FLIPPED, DROPPED, QUARANTINED = "kept", "flipped", "dropped", "quarantined"
_CURATED = "curated_pairs"
_STAGES = ("voted_pairs", "verified_pairs", "annotated_pairs")
_CONTESTED = "contested"  # reason of verified_pairs for pairs that the next step decides
SCHEMA = pa.schema([
    ("source", pa.string()), ("row_id", pa.string()), ("pair_id", pa.string()),
    ("outcome", pa.string()),  # kept, flipped (the source's rejected side is the better one), dropped or quarantined
    ("stage", pa.string()),  # where that was decided
    ("reason", pa.string()),  # of a pair that is kept or flipped: its label
    ("detail", pa.string()),
])  # fmt: skip


class OutcomesError(UserError, ValueError):
    """A round does not account for every pair; the message says why and what to do."""

    help_page: ClassVar[str] = "troubleshooting#outcomes"


def row_outcomes(raw: pa.Table, curated: pa.Table, ingested: pa.Table, curation: Sequence[pa.Table]) -> pa.Table:
    """The outcome of every row (table of SCHEMA): curated pairs, quarantined rows, then dropped pairs, stage by stage.

    Args:
        raw: table kind `pairs`, as the round found it.
        curated: table kind `pairs`, as the round left it.
        ingested: table kind `quarantine`, of rows that never became one of `raw`.
        curation: tables kind `quarantine` of the round's stages, of dropped pairs; contested ones do not count.

    Raises:
        OutcomesError: a pair of `raw` is neither curated nor dropped, or it is both, or a pair is not of `raw`.
    """
    dropped = pa.concat_tables([table for table in curation])
    dropped = dropped.filter(pc.not_equal(dropped["reason"], _CONTESTED))
    ended = [*curated["pair_id"].to_pylist(), *pc.coalesce(dropped["pair_id"], dropped["row_id"]).to_pylist()]
    before = dict(zip(raw["pair_id"].to_pylist(), raw["chosen_id"].to_pylist(), strict=True))
    if len(ended) != len(before) or before.keys() != set(ended):
        lost = len(before.keys() - set(ended))
        raise OutcomesError(
            f"the round ended with {len(ended)} pairs, and raw_preferences has {len(before)}, of which {lost} are not "
            "among them: the round was made of other rows; run it again"
        )
    stood = [before[key] == chosen for key, chosen in zip(*_columns(curated, "pair_id", "chosen_id"), strict=True)]
    count = curated.num_rows
    kept = {
        "source": curated["source"],
        "row_id": pc.coalesce(curated["row_id"], curated["pair_id"]),
        "pair_id": curated["pair_id"],
        "outcome": pa.array([KEPT if same else FLIPPED for same in stood], pa.string()),
        "stage": pa.array([_CURATED] * count, pa.string()),
        "reason": curated["label"],
        "detail": pa.array([""] * count, pa.string()),
    }
    parts = [pa.table(kept, schema=SCHEMA)]
    for table, outcome in ((ingested, QUARANTINED), (dropped, DROPPED)):
        column = pa.array([outcome] * table.num_rows, pa.string())
        parts.append(table.append_column("outcome", column).select(SCHEMA.names).cast(SCHEMA))
    return pa.concat_tables(parts).combine_chunks()


def outcomes_of_round(store: Store, number: str) -> pa.Table:
    """The outcomes of a finished round in an artifact home.

    Raises:
        StoreError: the round, or raw_preferences, is not there.
        OutcomesError: see `row_outcomes`.
    """
    raw = store.read("raw_preferences")
    curated = store.read(_CURATED, number)
    return row_outcomes(
        raw["pairs"], curated["pairs"], raw["quarantine"], [store.read(name, number)["quarantine"] for name in _STAGES]
    )


def _columns(table: pa.Table, *names: str) -> list[list[str]]:
    return [table[name].to_pylist() for name in names]
