"""Scaling of evidence: outliers, missing values, verdicts of several judges, many sources."""

from __future__ import annotations

import numpy as np

from dt2it_pipeline.curate.joint.evidence import (
    JUDGE,
    LENGTH,
    NET_VERDICT,
    POSITION,
    VOTER,
    balanced_positions,
    gather_evidence,
)

NONE = np.empty((4, 0))
SOURCE = np.full(4, "s")


def test_margins_get_the_size_one_whatever_their_unit() -> None:
    margins = np.array([[1.0], [-2.0], [3.0], [-1.0]])
    found = [gather_evidence(margins * unit, ["v"], NONE, [], np.zeros(4), SOURCE).features for unit in (1, 1e-6, 1e9)]
    np.testing.assert_allclose(found[0], found[1])
    np.testing.assert_allclose(found[0], found[2])
    assert np.mean(found[0][:, 0] ** 2) == np.float64(1.0)


def test_one_broken_score_sets_no_scale_and_missing_ones_say_nothing() -> None:
    margins = np.array([[1.0], [-1.0], [1e12], [np.nan]])
    x = gather_evidence(margins, ["v"], NONE, [], np.zeros(4), SOURCE).features[:, 0]
    assert x[2] == 4 * x[0]
    assert x[3] == 0


def test_constant_and_infinite_margins_say_nothing() -> None:
    margins = np.column_stack([np.zeros(4), np.full(4, np.inf), np.full(4, np.nan)])
    found = gather_evidence(margins, ["a", "b", "c"], NONE, [], np.zeros(4), SOURCE)
    assert not found.features.any()


def test_verdicts_count_by_the_lead_of_one_side() -> None:
    verdicts = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 0.0], [-2.0, -1.0]])
    found = gather_evidence(NONE, [], verdicts, ["j", "k"], np.zeros(4), SOURCE)
    assert found.kinds == (NET_VERDICT, NET_VERDICT, JUDGE, JUDGE, LENGTH)
    assert found.levels[:2].tolist() == [1, 2]
    assert found.features[:, 0].tolist() == [0, 0, -1, 0]
    assert found.features[:, 1].tolist() == [1, 0, 0, -1]
    assert found.features[:, 2].tolist() == [1, 1, -1, -1]


def test_the_side_that_a_judge_saw_first_is_evidence_about_its_verdict() -> None:
    verdicts = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 0.0], [2.0, -1.0]])
    first = np.array(
        [[1.0, 0.0], [-1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]
    )  # k is known for a tie alone, the last both ways
    found = gather_evidence(NONE, [], verdicts, ["j", "k"], np.zeros(4), SOURCE, first)
    (place,) = np.flatnonzero(found.of(POSITION))
    assert found.names[place] == "first of j" and found.features[:, place].tolist() == [1, -1, 1, 0]
    swapped = gather_evidence(NONE, [], -verdicts, ["j", "k"], np.zeros(4), SOURCE, -first)
    np.testing.assert_array_equal(found.features, -swapped.features)


def test_a_judge_that_nearly_always_saw_the_chosen_side_first_has_no_position() -> None:
    first = np.ones((10, 3))
    first[:1, 0], first[:3, 1], first[:5, 2] = -1, -2, 0
    found = balanced_positions(first)
    assert not found[:, 0].any() and not found[:, 2].any()
    assert found[:, 1].tolist() == [-1, -1, -1, 1, 1, 1, 1, 1, 1, 1]
    assert balanced_positions(np.zeros((0, 2))).shape == (0, 2)


def test_leads_beyond_three_share_one_weight() -> None:
    found = gather_evidence(NONE, [], np.ones((4, 6)), list("abcdef"), np.zeros(4), SOURCE)
    assert found.levels[found.of(NET_VERDICT)].tolist() == [3]


def test_swapped_sides_have_opposite_evidence() -> None:
    rng = np.random.default_rng(0)
    margins, verdicts, length = rng.standard_normal((9, 2)), rng.integers(-1, 2, (9, 2)), rng.standard_normal(9)
    sources = np.full(9, "s")
    one = gather_evidence(margins, ["a", "b"], verdicts, ["j", "k"], length, sources)
    other = gather_evidence(-margins, ["a", "b"], -verdicts, ["j", "k"], -length, sources)
    np.testing.assert_allclose(one.features, -other.features)
    assert one.of(VOTER).sum() == 2


def test_the_smallest_of_many_sources_share_a_group() -> None:
    sources = np.array([f"s{k:02d}" for k in range(40) for _ in range(40 - k)])
    count = len(sources)
    found = gather_evidence(np.ones((count, 1)), ["v"], np.empty((count, 0)), [], np.zeros(count), sources)
    assert len(found.source_names) == 25
    assert found.source_names[24] == tuple(f"s{k:02d}" for k in range(24, 40))
    assert set(found.sources[sources == "s00"]) == {0}


def test_the_length_is_the_last_feature_and_a_single_source_is_a_single_group() -> None:
    margins, length = np.array([[1.0], [-2.0], [3.0]]), np.array([0.5, -1.0, 2.0])
    found = gather_evidence(margins, ["v"], np.zeros((3, 0)), [], length, np.array(["s", "s", "s"]))
    assert np.array_equal(found.length, found.features[:, list(found.names).index("length")])
    assert not np.array_equal(found.length, found.features[:, 0])
    assert found.source_names == (("s",),)
    nobody = gather_evidence(margins[:0], ["v"], np.zeros((0, 0)), [], length[:0], np.array([], dtype=str))
    assert len(nobody) == 0 and nobody.source_names == ()
