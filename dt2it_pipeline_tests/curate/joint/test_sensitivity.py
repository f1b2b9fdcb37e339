"""The table of assumptions: bounds against all ways in which annotators can err, and what the model expects."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from dt2it_pipeline.curate.joint import sensitivity as module
from dt2it_pipeline.curate.joint.decisions import DROPPED, KEPT, decide
from dt2it_pipeline.curate.joint.evidence import Evidence, gather_evidence
from dt2it_pipeline.curate.joint.model import Anchors, fit_joint_model
from dt2it_pipeline.curate.joint.sensitivity import ASSUMED, COLUMNS, _bounds, assumption, sensitivity


@pytest.mark.parametrize("seed", range(6))
def test_bounds_are_those_of_all_ways_to_err(seed: int) -> None:
    rng = np.random.default_rng(seed)
    u = rng.choice([-1.0, 1.0], 10, p=[0.35, 0.65])
    stays = rng.random(10) < np.where(u > 0, 0.9, 0.4)
    stays[0] = True
    found = []
    for errors in itertools.combinations(range(10), 3):
        right = np.ones(10, dtype=bool)
        right[list(errors)] = False  # of annotators
        label = np.where(u > 0, right, ~right)
        found.append(label[stays].mean())
    low, high = _bounds(u, np.ones(10, dtype=bool), stays, 0.7)
    assert (low, high) == pytest.approx((min(found), max(found)))


def test_labels_that_annotators_leave_open_are_right_in_a_half_to_all() -> None:
    u, stays = np.array([1.0, 1.0, 1.0, 1.0, 0.0, 0.0]), np.ones(6, dtype=bool)
    assert _bounds(u, u != 0, stays, 0.75) == pytest.approx((4 / 6, 5 / 6))


def made(count: int, label: float, annotators: float, shared: float, seed: int = 0) -> tuple[Evidence, np.ndarray]:
    """Evidence of one voter; in a share of pairs the label is wherever the voter is, right or wrong."""
    rng = np.random.default_rng(seed)
    annotator = rng.random(count) < annotators
    right = np.where(rng.random(count) < shared, annotator, rng.random(count) < label)
    direction = np.where(annotator == right, 1.0, -1.0)
    margins = direction * np.abs(1 + rng.standard_normal(count))
    none = np.empty((count, 0))
    return gather_evidence(margins[:, None], ["v"], none, [], np.zeros(count), np.full(count, "")), right


@pytest.mark.parametrize("shared", [0.0, 0.4, 0.9])
@pytest.mark.parametrize("annotators", ASSUMED)
def test_the_truth_lies_between_the_bounds_of_the_assumption_that_is_so(annotators: float, shared: float) -> None:
    evidence, right = made(3000, 0.8, annotators, shared)
    anchors = Anchors(np.zeros(len(evidence), dtype=int), np.empty((0, evidence.features.shape[1])))
    draw = np.arange(len(evidence))
    model = fit_joint_model(evidence, anchors, draw)
    decisions = decide(evidence, anchors, model, 0.8)
    table = sensitivity(evidence, anchors, model, decisions, draw)
    assert table.columns.tolist() == list(COLUMNS) and tuple(table["annotator_accuracy"]) == ASSUMED
    row = table[table["annotator_accuracy"] == annotators].iloc[0]
    true = right[decisions.outcome != DROPPED].mean()
    assert row["after_low"] - 0.02 <= true <= row["after_high"] + 0.02
    assert (table["after_low"] <= table["accuracy_after"]).all() and (
        table["accuracy_after"] <= table["after_high"]
    ).all()
    if decisions.informative:  # else labels agree with annotators by chance, and those that are right make them wrong
        assert table["accuracy_after"].is_monotonic_increasing
    if shared == 0 and annotators >= 0.7:  # what annotators near chance show of labels is mostly the prior
        assert row["accuracy_after"] == pytest.approx(true, abs=0.11)


def test_what_an_estimate_assumes_is_counted_from_its_probabilities() -> None:
    """Annotators are for the first two labels: they err on 0.1 and 0.3 wrong ones, and on 0.6 and 0.2 right ones."""
    none = np.empty((5, 0))
    margins = np.array([1.0, 2.0, -1.0, -2.0, 0.0])[:, None]
    evidence = gather_evidence(margins, ["v"], none, [], np.zeros(5), np.full(5, ""))
    anchors = Anchors(np.zeros(5, dtype=int), np.empty((0, evidence.features.shape[1])))
    found = assumption(evidence, fit_joint_model(evidence, anchors, np.arange(5)), np.array([0.9, 0.7, 0.6, 0.2, 0.4]))
    assert found is not None and found.sides.tolist() == [1, 1, -1, -1, 0]
    assert found.annotator_accuracy == pytest.approx(1 - 1.2 / 4)
    assert found.right_where_they_err == pytest.approx(0.8 / 1.2)


def test_without_evidence_there_is_no_line() -> None:
    evidence, _ = made(50, 0.8, 0.8, 0.0)
    evidence.features[:] = 0
    anchors = Anchors(np.zeros(50, dtype=int), np.empty((0, 2)))
    model = fit_joint_model(evidence, anchors, np.arange(50))
    decisions = decide(evidence, anchors, model, 0.8)
    assert (decisions.outcome == KEPT).all()
    assert sensitivity(evidence, anchors, model, decisions, np.arange(50)).empty


def test_the_order_of_many_pairs_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST", 100)
    evidence, _ = made(1_000, 0.8, 0.8, 0.0)
    draw = np.random.default_rng(1).permutation(1_000)
    anchors = Anchors(np.zeros(1_000, dtype=int), np.empty((0, 2)))
    model = fit_joint_model(evidence, anchors, draw)
    decisions = decide(evidence, anchors, model, 0.8)
    expected = sensitivity(evidence, anchors, model, decisions, draw)
    by_margin = np.argsort(evidence.features[:, 0])
    turned = replace(decisions, outcome=decisions.outcome[by_margin])
    found = sensitivity(evidence.rows(by_margin), anchors, model, turned, draw[by_margin])
    np.testing.assert_allclose(found.to_numpy(), expected.to_numpy(), atol=1e-4)
