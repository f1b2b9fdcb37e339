"""Why pairs have no score, where scoring knows it."""

from __future__ import annotations

import pandas as pd

from dt2it_pipeline.curate.voters.margins import MISSING, NOT_FINITE, name_causes


def test_a_missing_score_is_named_by_what_scoring_says_of_the_response() -> None:
    rows = [
        ("p0", "a", "b", MISSING),
        ("p1", "c", "d", MISSING),
        ("p2", "a", "d", NOT_FINITE),
        ("p3", "d", "a", MISSING),
    ]
    unscored = pd.DataFrame(rows, columns=["pair_id", "chosen_id", "rejected_id", "reason"]).astype("str")
    found = name_causes(unscored, {"a": "longer than max_length"})
    assert found["reason"].tolist() == [
        "not scored: longer than max_length", MISSING, NOT_FINITE, "not scored: longer than max_length"
    ]  # fmt: skip
    assert name_causes(unscored, {})["reason"].tolist() == unscored["reason"].tolist()
    assert name_causes(unscored.iloc[:0], {"a": "x"}).empty
