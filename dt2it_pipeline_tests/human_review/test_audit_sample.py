"""The sample of an audit: weights, sizes and sources of what is drawn."""

from __future__ import annotations

import doctest
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dt2it_pipeline.human_review.audit import (
    AuditError,
    draw_audit,
)
from dt2it_pipeline_tests.support.audits import population


def test_weighted_estimates_are_unbiased_over_seeds() -> None:
    pairs = population()
    truth = pairs["right"].sum()
    for count in (2, 7, 50):  # fewer than sources, fewer than parts, many
        estimates, unweighted = [], []
        for seed in range(150):
            drawn = draw_audit(pairs, count, seed)
            assert len(drawn) == count
            assert drawn["weight"].sum() == pytest.approx(len(pairs))
            estimates.append((drawn["weight"] * drawn["right"]).sum())
            unweighted.append(drawn["right"].mean() * len(pairs))
        error = np.std(estimates) / np.sqrt(len(estimates))
        assert abs(np.mean(estimates) - truth) < 4 * error, count
        if count == 7:  # the small source is drawn too often: weights are needed
            assert abs(np.mean(unweighted) - truth) > 4 * np.std(unweighted) / np.sqrt(len(unweighted))


def test_the_example_is_right() -> None:
    module = sys.modules[draw_audit.__module__]
    result = doctest.DocTestRunner().run(doctest.DocTestFinder().find(draw_audit, module=module)[0])
    assert (result.failed, result.attempted > 0) == (0, True)


def test_every_pair_is_drawn_as_often_as_its_weight_says() -> None:
    pairs = pd.DataFrame({"pair_id": [f"p{n}" for n in range(40)], "probability": [0.2] * 25 + [0.9] * 15})
    drawn = pd.concat([draw_audit(pairs, 9, seed) for seed in range(400)])
    often = drawn["pair_id"].value_counts().reindex(pairs["pair_id"], fill_value=0) / 400
    for name, weight in zip(drawn["pair_id"], drawn["weight"], strict=True):
        assert abs(often[name] - 1 / weight) < 0.09  # ties at the edge of a part favour nobody


@settings(deadline=None, max_examples=50)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=8), count=st.integers(1, 60), seed=st.integers(0, 10**6),
    known=st.booleans(),
)  # fmt: skip
def test_a_sample_has_its_size_and_every_source_whatever_the_order_of_the_rows(
    sizes: list[int], count: int, seed: int, known: bool
) -> None:
    source = [f"s{n}" for n, size in enumerate(sizes) for _ in range(size)]
    pairs = pd.DataFrame({"pair_id": [f"{seed}-{n}" for n in range(len(source))], "source": source})
    if known:
        pairs["probability"] = np.random.default_rng(seed).choice([0.1, 0.5, 0.9, np.nan], len(pairs))
    drawn = draw_audit(pairs, count, seed)
    assert len(drawn) == min(count, len(pairs)) == drawn["pair_id"].nunique()
    assert drawn["weight"].sum() == pytest.approx(len(pairs))
    assert (drawn["weight"] >= 1).all()
    if count >= len(sizes):
        assert set(drawn["source"]) == set(source)
    again = draw_audit(pairs.sample(frac=1, random_state=seed), count, seed)
    pd.testing.assert_frame_equal(drawn, again)


def test_sure_and_unsure_pairs_are_among_the_drawn_ones() -> None:
    pairs = population()
    drawn = draw_audit(pairs.drop(columns="probability"), 20, 3, probability=pairs["probability"])
    kept = drawn[drawn["source"] == "large"]["probability"]
    assert kept.isna().any() and kept.min() < 0.75 < 0.95 < kept.max()
    assert {"large, part 4 of 4 by probability", "small"} <= set(drawn["stratum"]) | {"small"}
    assert set(draw_audit(pairs, 20, 4)["pair_id"]) != set(draw_audit(pairs, 20, 3)["pair_id"])
    drawn = draw_audit(pairs[["pair_id"]], 5)
    assert drawn["probability"].isna().all()
    assert set(drawn["stratum"]) == {"all pairs"}


def test_an_empty_table_has_an_empty_sample_and_a_wrong_one_is_refused() -> None:
    pairs = population()
    empty = draw_audit(pairs.iloc[:0])
    assert len(empty) == 0 and {"pair_id", "stratum", "weight"} <= set(empty)
    for given_pairs, more, message in (
        (pairs.drop(columns="pair_id"), {}, "no column pair_id"),
        (pd.concat([pairs, pairs.iloc[:2]]), {}, "2 pair ids are there twice, the first 'p0'"),
        (pairs.assign(pair_id=1), {}, "pair_id of row 0 is 1; ids must be text"),
        (pairs.assign(pair_id=None), {}, "ids must be text"),
        (pairs, {"count": 0}, "count must be at least 1"),
        (pairs, {"probability": [0.5]}, "1 probabilities for 800 pairs"),
        (pairs, {"probability": np.full(800, 1.5)}, r"row 0 is 1\.5; it must lie between 0 and 1"),
        (pairs, {"probability": ["x"] * 800}, "give numbers from 0 to 1"),
    ):
        with pytest.raises(AuditError, match=message):
            draw_audit(given_pairs, **more)
