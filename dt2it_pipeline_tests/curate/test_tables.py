"""Tables of pairs as frames, and back."""

from __future__ import annotations

import pandas as pd
import pytest

from dt2it_pipeline.curate.pair_frames import swap_sides
from dt2it_pipeline.curate.tables import lean_frame, to_frame, to_table, whole_table
from dt2it_pipeline.storage import schemas
from dt2it_pipeline_tests.support.list_worlds import answers, flipped, ranked_pairs


@pytest.mark.parametrize("lean", [True, False])
def test_a_flip_takes_places_in_a_list_along(lean: bool) -> None:
    rows = [*ranked_pairs("p", answers(3, 0), "lists/0"), *ranked_pairs("p", answers(2, 5), None)]
    pairs = schemas.table(rows, "pairs")
    frame = (lean_frame if lean else to_frame)(pairs)
    where = pd.Series([True, False, False, True]).to_numpy()
    turned = swap_sides(frame, where)
    back = whole_table(turned, pairs) if lean else to_table(turned, "pairs")
    wanted = [flipped(row) if there else row for row, there in zip(rows, where, strict=True)]
    names = [name for name in schemas.SCHEMAS["pairs"].names if name not in ("label", "strength", "votes")]
    assert back.select(names).to_pylist() == schemas.table(wanted, "pairs").select(names).to_pylist()
    assert back["chosen_rank"].to_pylist() == [2.0, 1.0, 2.0, None]
