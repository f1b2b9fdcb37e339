"""What a range allows for beside trusted pairs: judges that hardly ever err, and pairs that are easier or harder."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit, log_expit

from dt2it_pipeline.curate.joint import decisions
from dt2it_pipeline.curate.joint.decisions import DROPPED, FLIPPED, accuracies, decide
from dt2it_pipeline.curate.joint.evidence import NET_VERDICT, Evidence, gather_evidence
from dt2it_pipeline.curate.joint.model import Anchors, fit_joint_model
from dt2it_pipeline.curate.joint.model import _Problem as Problem
from dt2it_pipeline.curate.joint.priors import Layout, surer_verdicts
from dt2it_pipeline.curate.joint.solution import Observed, Prices, Trusted, solve
from dt2it_pipeline.curate.joint.sums import Estimate


def right_judge(count: int, known: int, seed: int = 0) -> tuple[Observed, np.ndarray]:
    """Pairs where voters are unsure are those that a judge is asked about; it never errs, here as on trusted pairs."""
    rng = np.random.default_rng(seed)
    truth = np.where(rng.random(count) < 0.7, 1.0, -1.0)
    length = 0.1 * np.sign(rng.standard_normal(count))
    none = np.zeros(count, dtype=bool)
    trusted = Trusted(np.abs(1.0 + rng.standard_normal((known, 1))), np.ones((known, 1)), np.zeros(known), None)
    margins = truth + rng.standard_normal(count)
    verdicts = truth * (np.abs(margins) < 1)
    made = Observed(
        margins[:, None], ("v",), verdicts[:, None], ("j",), length, np.full(count, ""), np.zeros(count, dtype=int),
        rng.permutation(count).astype(np.uint64), none, trusted,
    )  # fmt: skip
    return made, truth > 0


def evidence_of(observed: Observed) -> Evidence:
    return gather_evidence(
        observed.margins, observed.voters, observed.verdicts, observed.judges, observed.length, observed.sources
    )


def test_the_prior_of_surer_verdicts_has_the_mode_of_the_normal_one_and_a_longer_tail() -> None:
    evidence = evidence_of(right_judge(80, 0)[0])
    layout = Layout(evidence.features.shape[1], 1)
    anchors = Anchors(np.zeros(80, dtype=int), np.ones((60, layout.features)))
    usual, surer = (Problem(layout, evidence, anchors, np.arange(80), surer=each) for each in (False, True))
    places, right, wrong = surer_verdicts(evidence, usual.mean)
    assert places.tolist() == np.flatnonzero(evidence.of(NET_VERDICT)).tolist() == [1]
    at = usual.mean.copy()

    def gap(w: float) -> float:
        at[1] = w
        return surer.value(at)[0] - usual.value(at)[0]

    w = usual.mean[1]
    assert right * expit(-w) == pytest.approx(wrong * expit(w))
    by_hand = float(right @ log_expit([4.0]) + wrong * log_expit(-4.0)) + 0.5 * usual.precision[1, 1] * (4.0 - w) ** 2
    assert gap(4.0) == pytest.approx(by_hand)
    assert gap(8.0) - gap(w) > 5.0
    step = 1e-6 * np.eye(layout.size)[1]
    slope = (surer.value(at + step)[0] - surer.value(at - step)[0]) / 2e-6
    assert surer.value(at)[1][1] == pytest.approx(slope, rel=1e-4)


def test_beside_trusted_pairs_the_range_reaches_judges_that_never_err_and_decides_nothing() -> None:
    observed, right = right_judge(600, 100)
    found = solve(observed, Prices.of_wrong_label(4.0, 0.05))
    first = decide(found.evidence, found.anchors, found.model, 0.8)
    assert (found.decisions.outcome == first.outcome).all()
    assert found.decisions.after.estimate == first.after.estimate
    true = (right ^ (first.outcome == FLIPPED))[first.outcome != DROPPED].mean()
    assert first.after.high < found.decisions.after.high and found.decisions.after.low < first.after.low
    assert found.decisions.after.low <= true <= found.decisions.after.high


def test_a_model_s_own_accuracies_are_those_that_it_decides_with(monkeypatch: pytest.MonkeyPatch) -> None:
    observed, _ = right_judge(600, 0, seed=1)
    evidence = evidence_of(observed)
    seen = evidence.seen.copy()
    seen[::10] = False
    evidence = replace(evidence, seen=seen)
    checked = np.where(np.arange(600) % 7 == 0, observed.verdicts[:, 0], 0).astype(int)
    anchors = Anchors(checked, np.empty((0, evidence.features.shape[1])))
    model = fit_joint_model(evidence, anchors, observed.draw)
    made = decide(evidence, anchors, model, 0.8)
    monkeypatch.setattr(decisions, "TRANSFER", 1e-9)
    before, after = accuracies(evidence, anchors, model, made.outcome, observed.draw)
    for found, expected in ((before, made.before), (after, made.after)):
        assert vars(found) == pytest.approx(vars(expected), abs=0.04)  # 128 draws say less of their ends
    monkeypatch.setattr(decisions, "_RANGE_PAIRS", 300)
    part, _ = accuracies(evidence, anchors, model, made.outcome, observed.draw)
    assert part.estimate == pytest.approx(before.estimate, abs=0.05) and part.estimate != before.estimate
    monkeypatch.setattr(decisions, "TRANSFER", 1.0)
    wider, _ = accuracies(evidence, anchors, model, made.outcome, observed.draw)
    assert wider.high - wider.low > part.high - part.low


def test_a_widened_range_keeps_its_number() -> None:
    assert Estimate(0.9, 0.8, 0.95).widened(Estimate(0.7, 0.85, 0.99)) == Estimate(0.9, 0.8, 0.99)
