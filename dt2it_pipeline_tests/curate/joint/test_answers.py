"""Answers of an audit: how they are counted, and what those that contradict each other say of all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit

from dt2it_pipeline.curate.joint.answers import counted
from dt2it_pipeline.curate.joint.evidence import gather_evidence
from dt2it_pipeline.curate.joint.model import Anchors, fit_joint_model
from dt2it_pipeline.curate.joint.model import _Problem as Problem
from dt2it_pipeline.curate.joint.priors import AUDITOR, Layout


def test_all_answers_count_alike() -> None:
    found = counted(np.array([0, 0, 1, 1, 1, 2, 3, 3]), np.array([1, 1, 1, -1, -1, 0, 1, -1]), 5)
    assert found.lead.tolist() == [2, -1, 0, 0, 0]
    assert found.contradictions == 2 and found.contradicted.tolist() == [False, True, False, True, False]
    nothing = counted(np.zeros(0, dtype=int), np.zeros(0), 2)
    assert nothing.lead.tolist() == [0, 0] and nothing.contradictions == 0


@pytest.mark.parametrize("auditor", [0.0, 2.0, 5.0])
def test_answers_have_the_probability_that_their_accuracy_gives_them(auditor: float) -> None:
    """Summed over both truths, whichever answers contradict each other."""
    rng = np.random.default_rng(0)
    count = 8
    evidence = gather_evidence(
        rng.standard_normal((count, 1)), ["v"], np.empty((count, 0)), [], np.zeros(count), np.full(count, "")
    )
    for_label, against = np.array([3, 0, 2, 1, 0, 2, 0, 1]), np.array([0, 2, 1, 1, 0, 3, 1, 0])
    lead, contradictions = for_label - against, int(np.minimum(for_label, against).sum())
    layout = Layout(evidence.features.shape[1], 1)
    at = rng.standard_normal(layout.size)
    at[layout.auditor] = auditor
    none = Anchors(np.zeros(count, dtype=int), np.empty((0, evidence.features.shape[1])))
    known = replace(none, checked=lead, contradictions=contradictions)
    problem = Problem(layout, evidence, known, np.arange(count))
    # The same weights and priors, and no answers: what is left is the answers' own part.
    silent = Problem(layout, evidence, known, np.arange(count))
    silent.checked, silent.anchors = np.zeros(count, dtype=int), none
    found = problem.value(at)[0] - silent.value(at)[0]
    u, right = evidence.features @ at[: layout.features], expit(auditor)
    a, c = at[-1] + at[layout.deviations][0], at[layout.kappa] * u + at[layout.length_bias] * evidence.length
    odds = u + np.log(expit(a + c)) - np.log(expit(-a + c))
    q = expit(odds)
    expected = np.log(
        q * right**for_label * (1 - right) ** against + (1 - q) * right**against * (1 - right) ** for_label
    ).sum()
    assert found == pytest.approx(expected)


def test_contradictions_lower_the_estimated_accuracy_and_agreement_raises_it() -> None:
    rng = np.random.default_rng(1)
    truth = np.where(rng.random(300) < 0.9, 1, -1)
    margins = (truth * (1.5 + rng.standard_normal(300)))[:, None]
    evidence = gather_evidence(margins, ["v"], np.empty((300, 0)), [], np.zeros(300), np.full(300, ""))
    layout = Layout(evidence.features.shape[1], 1)
    once = np.where(np.arange(300) < 40, truth, 0)
    anchors = Anchors(once, np.empty((0, evidence.features.shape[1])))

    def log_odds(known: Anchors) -> float:
        return float(fit_joint_model(evidence, known, np.arange(300)).mean[layout.auditor])

    twice = replace(anchors, checked=2 * once)
    several = np.where(np.arange(300) < 8, 0, twice.checked)  # eight of forty pairs had an answer for either side
    torn = replace(anchors, checked=several, contradictions=8)
    assert log_odds(torn) < log_odds(anchors) - 0.5 and expit(log_odds(torn)) == pytest.approx(0.9, abs=0.04)
    assert log_odds(twice) > log_odds(anchors) >= AUDITOR[0] - 0.5
