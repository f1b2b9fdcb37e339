"""Decisions and the worth of a verdict, against their formulas written out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies
from scipy.special import expit, logit
from scipy.stats import beta

from dt2it_pipeline.curate.joint import decisions
from dt2it_pipeline.curate.joint.decisions import DROPPED, FLIPPED, KEPT, as_given, decide, verdict_gain
from dt2it_pipeline.curate.joint.evidence import NET_VERDICT, Evidence, gather_evidence
from dt2it_pipeline.curate.joint.model import Anchors, fit_joint_model
from dt2it_pipeline.curate.joint.sums import Sum


def judged(count: int = 600, seed: int = 0) -> tuple[Evidence, np.ndarray]:
    """A voter on all pairs, a judge on a half; whether each label is right (+1, -1), 70% of them."""
    rng = np.random.default_rng(seed)
    truth = np.where(rng.random(count) < 0.7, 1, -1)
    margins = (truth * (1.2 + rng.standard_normal(count)))[:, None]
    verdicts = (truth * np.where(rng.random(count) < 0.9, 1, -1) * (rng.random(count) < 0.5)).astype(float)[:, None]
    return gather_evidence(margins, ["v"], verdicts, ["j"], np.zeros(count), np.full(count, "")), truth


def anchors(evidence: Evidence, checked: np.ndarray | None = None, label_accuracy: float | None = None) -> Anchors:
    """What is known; nothing by default."""
    none = np.zeros(len(evidence), dtype=int) if checked is None else checked
    return Anchors(none, np.empty((0, evidence.features.shape[1])), label_accuracy)


@pytest.mark.parametrize(("right", "wrong"), [(7, 3), (0, 12), (5, 0)])
def test_labels_as_given_are_as_right_as_those_that_were_checked(right: int, wrong: int) -> None:
    evidence, _ = judged(40)
    checked = np.array([1] * right + [-1] * wrong + [0] * (40 - right - wrong))
    found = as_given(evidence, anchors(evidence, checked))
    jeffreys = beta(right + 0.5, wrong + 0.5)
    three = (found.before.estimate, found.before.low, found.before.high)
    assert three == pytest.approx((jeffreys.mean(), jeffreys.ppf(0.025), jeffreys.ppf(0.975)))
    assert found.after == found.before and (found.outcome == KEPT).all()
    assert np.allclose(found.probability, jeffreys.mean()) and not found.informative


def test_a_flipped_label_is_as_probable_as_its_other_side_was_improbable() -> None:
    evidence, truth = judged()
    known = anchors(evidence, np.where(np.arange(600) < 80, truth, 0))
    found = decide(evidence, known, fit_joint_model(evidence, known, np.arange(600)), 0.8)
    flipped = found.outcome == FLIPPED
    assert flipped[80:].sum() > 30
    assert np.allclose(found.probability[flipped], 1 - found.label_right[flipped])
    assert (found.probability[flipped] >= 0.8).all() and (found.label_right[found.outcome == DROPPED] < 0.8).all()
    assert found.after.estimate == pytest.approx(found.probability[found.outcome != DROPPED].mean(), abs=1e-6)
    assert found.before.estimate == pytest.approx(found.label_right.mean(), abs=1e-6)


@pytest.mark.parametrize(("sure", "as_without"), [(0.0, False), (1.01, True)])
def test_pairs_nobody_checked_are_decided_by_an_audit_only_where_that_is_surely_no_worse(
    monkeypatch: pytest.MonkeyPatch, sure: float, as_without: bool
) -> None:
    evidence, truth = judged(300, seed=3)
    known = anchors(evidence, np.where(np.arange(300) < 30, truth, 0))
    before = decide(evidence, anchors(evidence), fit_joint_model(evidence, anchors(evidence), np.arange(300)), 0.8)
    model = fit_joint_model(evidence, known, np.arange(300))
    by_audit = decide(evidence, known, model, 0.8)
    monkeypatch.setattr(decisions, "SURE", sure)
    found = decide(evidence, known, model, 0.8, 0, before)
    assert (by_audit.outcome != before.outcome)[30:].any() and found.as_without_audit is as_without
    assert (found.outcome[30:] == (before if as_without else by_audit).outcome[30:]).all()
    assert (found.outcome[:30] == by_audit.outcome[:30]).all() and (found.label_right == by_audit.label_right).all()
    assert found.after.estimate == pytest.approx(found.probability[found.outcome != DROPPED].mean(), abs=1e-6)
    assert found.retained == (before if as_without else by_audit).retained


def test_how_sure_a_change_is_worth_it_is_counted_over_draws() -> None:
    """Of ten draws, p is 0.5 in one and 0.9 in nine: keeping is worth 1 - 5 (1 - p), so -1.5 and 0.5 per pair."""
    p = np.tile(np.where(np.arange(10) < 1, 0.5, 0.9), (4, 1))

    def summed(places: np.ndarray) -> Sum:
        total = Sum.of(10)
        total.add(p[places], p[places].mean(axis=1), np.ones(len(places), dtype=bool))
        return total

    dropped, kept = np.full(4, DROPPED), np.full(4, KEPT)
    everywhere = np.ones(4, dtype=bool)
    assert decisions._surely_no_worse(dropped, kept, everywhere, summed, 4.0)
    assert not decisions._surely_no_worse(kept, dropped, everywhere, summed, 4.0)
    assert not decisions._surely_no_worse(kept, np.full(4, FLIPPED), everywhere, summed, 4.0)
    p[:, 1] = 0.5
    assert not decisions._surely_no_worse(dropped, kept, everywhere, summed, 4.0)
    assert decisions._surely_no_worse(kept, dropped, ~everywhere, summed, 4.0)  # nothing changes
    p[:, :2] = 0.795  # then keeping is worth -0.025 per pair: no more than is tolerable
    assert decisions._surely_no_worse(dropped, kept, everywhere, summed, 4.0)
    p[:, :2] = 0.79  # -0.05 per pair; two checked pairs, which end as they were answered, do not make it less
    assert not decisions._surely_no_worse(dropped, kept, np.arange(4) < 2, summed, 4.0)


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_known_probabilities_leave_the_chance_of_each_label(share: float) -> None:
    """All draws agree, so that the interval is that of a sum of independent labels: 1.96 standard deviations."""
    p = np.repeat(np.random.default_rng(0).uniform(share - 0.1, share + 0.1, 400)[:, None], 8, axis=1)
    found = Sum.of(8)
    found.add(p, p.mean(axis=1), np.arange(400) % 4 > 0)
    kept = p[np.arange(400) % 4 > 0, 0]
    estimates = [found.estimate(seed) for seed in range(100)]
    assert estimates[0].estimate == pytest.approx(kept.mean())
    widths = [each.high - each.low for each in estimates]
    expected = 2 * 1.96 * np.sqrt((kept * (1 - kept)).sum()) / len(kept)
    assert np.mean(widths) == pytest.approx(expected, rel=0.1)  # 64 values say less of their ends


def test_where_nobody_was_heard_nobody_agrees_or_disagrees() -> None:
    evidence, _ = judged(30)
    silent = replace(evidence, features=np.zeros_like(evidence.features))
    model = fit_joint_model(silent, anchors(silent), np.arange(30))
    for found in (decide(silent, anchors(silent), model, 0.8), as_given(silent, anchors(silent))):
        assert (found.agreement, found.compared, found.informative) == (0.5, 0, False)


def test_many_pairs_are_decided_as_few_are(monkeypatch: pytest.MonkeyPatch) -> None:
    evidence, truth = judged(3000, seed=2)
    known = anchors(evidence, np.where(np.arange(3000) < 50, truth, 0))
    model = fit_joint_model(evidence, known, np.arange(3000))
    at_once = decide(evidence, known, model, 0.95)
    monkeypatch.setattr(decisions, "_AT_ONCE", 64)
    in_parts = decide(evidence, known, model, 0.95)
    assert (at_once.outcome == in_parts.outcome).all() and at_once.retained == in_parts.retained
    assert at_once.agreement == in_parts.agreement and at_once.compared == in_parts.compared
    assert in_parts.after.estimate == pytest.approx(at_once.after.estimate, abs=1e-9)


def test_pairs_that_stay_for_want_of_proof_are_counted_with_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    evidence, _ = judged(40, seed=4)
    known = anchors(evidence)
    model = fit_joint_model(evidence, known, np.arange(40))
    monkeypatch.setattr(decisions, "_BLOCK", 4)
    found = decide(evidence, known, model, 0.97)
    assert found.retained > 8
    assert found.after.estimate == pytest.approx(found.probability[found.outcome != DROPPED].mean(), abs=1e-6)


@pytest.mark.parametrize("may_flip", [False, True])
def test_the_worth_of_a_verdict_is_what_it_changes(monkeypatch: pytest.MonkeyPatch, may_flip: bool) -> None:
    evidence, _ = judged()
    model = fit_joint_model(evidence, anchors(evidence), np.arange(600))
    single = int(np.flatnonzero(evidence.of(NET_VERDICT))[0])
    accuracy = expit(model.draws(2 * len(model.components))[:, single].mean())
    p, asked, cost = np.array([0.99, 0.8, 0.55, 0.3, 0.02, 0.6]), np.array([False] * 5 + [True]), 4.0
    monkeypatch.setattr(decisions, "_AT_ONCE", 2)
    found = verdict_gain(evidence, model, p, asked, cost, may_flip=may_flip)

    def best(q: float) -> float:
        return max(q - cost * (1 - q), 0.0, (1 - q) - cost * q if may_flip else 0.0)

    for place in range(5):
        expected = -best(p[place])
        for right_given, wrong_given in ((accuracy, 1 - accuracy), (1 - accuracy, accuracy)):  # for the label, against
            chance = p[place] * right_given + (1 - p[place]) * wrong_given
            expected += chance * best(p[place] * right_given / chance)
        assert found[place] == pytest.approx(expected, abs=1e-9)
    assert found[5] == -np.inf


@pytest.mark.parametrize(("right", "informative"), [(26, True), (15, False)])
def test_checked_pairs_can_show_evidence_that_labels_do_not(right: int, informative: bool) -> None:
    """Labels that are right in a half say nothing of a voter; thirty checked pairs do."""
    count = 400
    margins = np.where(np.arange(count) % 2, 1.0, -1.0)[:, None] * np.linspace(1, 2, count)[:, None]
    evidence = gather_evidence(margins, ["v"], np.empty((count, 0)), [], np.zeros(count), np.full(count, ""))
    checked = np.zeros(count, dtype=int)
    checked[:30] = np.sign(margins[:30, 0]) * np.where(np.arange(30) < right, 1, -1)
    known = anchors(evidence, checked)
    found = decide(evidence, known, fit_joint_model(evidence, known, np.arange(count)), 0.8)
    assert found.informative is informative


def test_a_known_label_accuracy_is_kept_to() -> None:
    evidence, _ = judged()
    for accuracy in (0.6, 0.95):
        known = anchors(evidence, label_accuracy=accuracy)
        found = decide(evidence, known, fit_joint_model(evidence, known, np.arange(600)), 0.8)
        assert found.anchored and found.before.estimate == pytest.approx(accuracy, abs=0.02)


# 0.5 to 1 - 1e-9 evenly in log-odds, and numbers beyond, up to the last below 1. No denormal numbers: a training in the
# same process flushes them to zero, which hypothesis refuses otherwise.
@given(log_odds=strategies.floats(0, 36, allow_subnormal=False), seed=strategies.integers(0, 3))
@example(log_odds=logit(1 - 1e-9), seed=0)
@settings(max_examples=8, deadline=None, derandomize=True)
def test_labels_of_any_known_accuracy_are_believed_as_far(log_odds: float, seed: int) -> None:
    """And never turn upside down: what the voter says for a label makes it more probable, not less."""
    accuracy = min(float(expit(log_odds)), float(np.nextafter(1, 0)))
    evidence, _ = judged(80, seed)
    known = anchors(evidence, label_accuracy=accuracy)
    model = fit_joint_model(evidence, known, np.arange(80))
    found = decide(evidence, known, model, 0.8)
    assert np.isfinite(found.label_right).all()
    wrong, expected = 1 - found.before.estimate, 1 - accuracy
    assert wrong == pytest.approx(expected, rel=2.0, abs=1e-6) and (found.label_right >= accuracy - 0.5).all()
    voter = evidence.features[:, 0]
    assert model.mean[0] > 0 and found.label_right[np.argmax(voter)] >= found.label_right[np.argmin(voter)]
    assert accuracy < 0.9 or not (found.outcome == FLIPPED).any()
    deviation = model.mean[evidence.features.shape[1] + 2]
    assert abs(deviation) < 5 * 0.4  # the only source is like all: it is the accuracy of all that is high


def test_pairs_that_nothing_is_known_of_have_the_label_accuracy_of_their_source() -> None:
    rng = np.random.default_rng(5)
    sources = np.repeat(["good", "bad"], 300)
    truth = np.where(rng.random(600) < np.where(sources == "good", 0.95, 0.6), 1, -1)
    margins = (truth * (2 + rng.standard_normal(600)))[:, None]
    margins[::10] = np.nan
    evidence = gather_evidence(margins, ["v"], np.empty((600, 0)), [], np.zeros(600), sources)
    known = replace(anchors(evidence), checked=np.where(np.arange(600) % 5 == 1, truth, 0))
    found = decide(evidence, known, fit_joint_model(evidence, known, np.arange(600)), 0.5)
    silent = ~np.isfinite(margins[:, 0])
    good, bad = (found.label_right[silent & (sources == name)] for name in ("good", "bad"))
    assert np.ptp(good) < 1e-6 and good[0] > bad[0] + 0.1
