"""The reason of every pair follows from its outcome and probability."""

from __future__ import annotations

import pytest

from dt2it_pipeline import clean_preferences
from dt2it_pipeline_tests.support.noisy_world import noisy_world


@pytest.mark.parametrize("audited", [0, 150])
def test_reasons_follow_from_outcome_and_probability(audited: int) -> None:
    world = noisy_world(600, 0.65, 0.8, judges=1, judge=0.85, seed=2)
    found = clean_preferences(
        world.pairs,
        world.scores,
        world.votes,
        audit=world.audit(audited) if audited else None,
        keep_probability=0.75,
    )
    answered = set(world.audit(audited)["pair_id"]) if audited else set()
    seen = set()
    for row in found.pairs.itertuples():
        if row.pair_id in answered:
            assert row.reason in ("checked", "what was answered and the other evidence are against each other")
        elif row.outcome == "flipped":
            assert row.reason == "the other side is more probably better" and row.probability >= 0.75
        elif row.outcome == "dropped":
            expected = "the evidence is against the label" if row.probability < 0.5 else "not sure enough"
            # With an audit a pair may end as without it, and be estimated otherwise.
            assert row.reason == expected and (row.probability < 0.75 or audited)
        else:
            expected = "likely right" if row.probability >= 0.75 else "too little speaks against it"
            assert row.reason == expected
        seen.add(row.reason)
    assert {"the evidence is against the label", "not sure enough", "likely right"} <= seen
    assert ("the other side is more probably better" in seen) is bool(audited)
