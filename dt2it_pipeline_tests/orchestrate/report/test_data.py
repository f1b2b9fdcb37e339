"""What the report says about pairs and responses that limits on length left out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from dt2it_pipeline.orchestrate.report.data import _left_out
from dt2it_pipeline.reward.too_long import too_long
from dt2it_pipeline.storage import records, schemas
from dt2it_pipeline.storage.artifacts import Artifact


def artifact(lost: int, **metadata: Any) -> Artifact:
    rows = [records.quarantine_row(f"r{n}", "x", *(too_long(900, 512) or ())) for n in range(lost)]
    return Artifact({"quarantine": schemas.table(rows, "quarantine")}, metadata)


def test_every_round_says_what_it_left_out_and_nothing_where_it_left_nothing_out() -> None:
    fine = {
        "reward_model": artifact(0, pairs=9),
        "response_scores": artifact(0, rows_in=20),
        "benchmark_scores": artifact(0, rows_in=8),
    }
    cut = fine | {"reward_model": artifact(123, pairs=248), "benchmark_scores": artifact(2, rows_in=8)}
    assert _left_out(cast(Any, SimpleNamespace(rounds=[fine, cut]))) == [
        "Round 1 trained without 123 of 371 pairs, which are too long (training.max_length, 512 tokens).",
        "In round 1, 2 of 8 responses of the benchmark are too long to be scored (scoring.max_length, 512 tokens).",
    ]
