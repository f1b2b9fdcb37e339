"""Draws of an audit that are kept: which pairs were drawn, and how many pairs each of them stands for.

What belongs here: the table of kind `audit_pairs` and the id of a draw. What does not: drawing (audit_sample.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from dt2it_pipeline.human_review.spreadsheet import AuditError
from dt2it_pipeline.human_review.tasks import shown_sides
from dt2it_pipeline.storage import schemas
from dt2it_pipeline.storage.atomic import arrow_bytes, read_parquet, write_parquet
from dt2it_pipeline.storage.content_ids import content_hash
from dt2it_pipeline.storage.locks import exclusive
from dt2it_pipeline.storage.schemas import RecordError

AUDIT_PAIRS = "audit_pairs"


def audit_file(home: Path) -> Path:
    """Where an artifact home keeps which pairs were drawn."""
    return home / f"{AUDIT_PAIRS}.parquet"


def draw_id(drawn: pd.DataFrame, number: int, seed: int, population: int) -> str:
    """Id of a draw: the same for the same pairs, however they are handed out.

    Args:
        drawn: of `draw_audit`.
        number: of the round, -1 for a table of one's own.
        seed: of the draw.
        population: number of pairs that were drawn from.
    """
    return content_hash(AUDIT_PAIRS, number, seed, population, drawn["pair_id"].tolist(), drawn["weight"].tolist())[:10]


def sample_row(
    pair: Mapping[str, Any], draw: str, stratum: str, weight: float, seed: int, number: int
) -> dict[str, Any]:
    """A drawn pair as a row of the table `audit_pairs`; `pair` has its ids, its texts and its source."""
    (first, _), (second, _) = shown_sides(pair)
    ids = {"audit": draw, "pair_id": pair["pair_id"], "first_id": first, "second_id": second}
    return ids | {"source": pair["source"], "stratum": stratum, "weight": weight, "seed": seed, "round": number}


def keep_sample(file: Path, sample: pa.Table) -> None:
    """Add a draw to those that a file keeps; the same draw is there once."""
    with exclusive(file.with_name(f".{file.stem}.lock"), on_wait=print):
        kept = kept_sample(file)
        others = kept.filter(pc.invert(pc.is_in(kept["audit"], sample["audit"].combine_chunks())))
        write_parquet(pa.concat_tables([others, sample]).combine_chunks(), file)


def kept_sample(file: Path) -> pa.Table:
    """The draws that a file keeps; none where there is no file.

    Raises:
        AuditError: it cannot be read.
    """
    if not file.exists():
        return schemas.table([], AUDIT_PAIRS)
    try:
        return read_parquet(arrow_bytes(file.read_bytes()), AUDIT_PAIRS)
    except (OSError, pa.ArrowException, RecordError) as error:
        raise AuditError(
            f"the file of drawn pairs {file} cannot be read: {error}; bring a copy of it back, or remove it and draw "
            "again"
        ) from error
