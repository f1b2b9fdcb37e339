"""The checks that several assets share."""

from __future__ import annotations

import pytest

from dt2it_pipeline.orchestrate.stage.checks import reconcile
from dt2it_pipeline.storage.artifacts import Artifact


@pytest.mark.parametrize(
    "counts",
    [
        {"rows_in": 5, "rows_out": 3, "rows_quarantined": 2},
        {"rows_in": 9, "rows_out": 5, "rows_contested": 3, "rows_dropped": 1},
        {"rows_in": 4, "rows_out": 1, "rows_quarantined": 1, "rows_dropped": 1, "rows_contested": 1},
    ],
)
def test_every_row_is_out_quarantined_dropped_or_contested(counts: dict[str, int]) -> None:
    found = reconcile(Artifact({}, {**counts, "seconds": 0.1}))
    assert found.passed
    assert {name: value.value for name, value in found.metadata.items()} == counts
    lost = reconcile(Artifact({}, counts | {"rows_in": counts["rows_in"] + 1}))
    assert not lost.passed and "does not add up" in str(lost.description)
