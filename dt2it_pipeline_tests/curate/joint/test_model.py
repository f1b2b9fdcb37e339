"""The joint model against its formulas written out, in float64 and by brute force."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit, logit
from scipy.stats import norm

from dt2it_pipeline.curate.joint import priors
from dt2it_pipeline.curate.joint.evidence import NET_VERDICT, VOTER, Evidence, gather_evidence
from dt2it_pipeline.curate.joint.model import (
    WEIGHT_OF_UNCHECKED,
    Anchors,
    fit_joint_model,
    label_log_odds,
    label_probabilities,
)
from dt2it_pipeline.curate.joint.model import _grid as grid
from dt2it_pipeline.curate.joint.model import _Problem as Problem
from dt2it_pipeline.curate.joint.priors import Layout, prior


def one_voter(count: int, seed: int = 0, right: float = 0.8) -> tuple[Evidence, np.ndarray]:
    """Evidence of one voter without texts, and whether each label is right."""
    rng = np.random.default_rng(seed)
    truth = np.where(rng.random(count) < right, 1, -1)
    margins = truth * (1.0 + rng.standard_normal(count))
    none = np.empty((count, 0))
    return gather_evidence(margins[:, None], ["v"], none, [], np.zeros(count), np.full(count, "")), truth


def no_anchor(evidence: Evidence) -> Anchors:
    """Nothing is known."""
    return Anchors(np.zeros(len(evidence), dtype=int), np.empty((0, evidence.features.shape[1])))


@pytest.mark.parametrize(("known", "a"), [(0.9, 0.7), (0.9, 30.0), (1 - 1e-9, 0.7), (1 - 1e-9, 30.0)])
def test_the_gradient_is_that_of_the_value(known: float, a: float) -> None:
    rng = np.random.default_rng(3)
    n = 60
    evidence = gather_evidence(
        rng.standard_normal((n, 2)),
        ["a", "b"],
        rng.integers(-1, 2, (n, 2)).astype(float),
        ["j", "k"],
        rng.standard_normal(n),
        rng.choice(["s", "t"], n),
    )
    checked = rng.integers(-2, 4, n)
    layout = Layout(evidence.features.shape[1], 2)
    trusted = rng.standard_normal((7, evidence.features.shape[1]))
    at = rng.standard_normal(layout.size)
    at[-1] = a
    problem = Problem(layout, evidence, Anchors(checked, trusted, known, contradictions=3), np.arange(n))
    numeric = [
        (problem.value(at + step)[0] - problem.value(at - step)[0]) / 2e-6 for step in 1e-6 * np.eye(layout.size)
    ]
    scale = np.abs(numeric).max()
    np.testing.assert_allclose(problem.value(at)[1], numeric, rtol=1e-5, atol=max(1e-5, 1e-7 * scale))


def test_probabilities_in_blocks_are_those_of_the_formula() -> None:
    rng = np.random.default_rng(4)
    n = 50
    evidence = gather_evidence(
        rng.standard_normal((n, 1)), ["a"], np.empty((n, 0)), [], rng.standard_normal(n), rng.choice(["s", "t"], n)
    )
    layout = Layout(2, 2)
    draws = rng.standard_normal((6, layout.size))
    found = np.concatenate([p for _, p in label_probabilities(evidence, draws, rows=16)])
    for column, t in enumerate(draws):
        u = evidence.features @ t[:2]
        c = t[layout.kappa] * u + t[layout.length_bias] * evidence.length
        a = t[-1] + t[layout.deviations][evidence.sources]
        right, wrong = expit(u) * expit(a + c), expit(-u) * expit(-a + c)
        np.testing.assert_allclose(found[:, column], right / (right + wrong), atol=1e-5)
        np.testing.assert_allclose(label_log_odds(evidence, t), np.log(right / wrong), atol=1e-8)


@pytest.mark.parametrize("answers", [0, 12])
def test_probabilities_are_those_of_brute_force(answers: int) -> None:
    """Sums over a grid of w, kappa and a, with the priors written out; length and sources say nothing here."""
    evidence, truth = one_voter(40)
    checked = np.where(np.arange(40) < answers, truth, 0)
    anchors = replace(no_anchor(evidence), checked=checked)
    x = evidence.features[:, 0]
    weight = min(1.0, WEIGHT_OF_UNCHECKED / (40 - answers))
    spread_of_a = np.hypot(1.3, 0.4)  # of a and of the deviation of the only source
    axes = np.linspace(-3, 8, 56), np.linspace(-1.3, 2.9, 15), np.linspace(-0.9, 6.0, 47)
    w, kappa, a = (axis.ravel() for axis in np.meshgrid(*axes, indexing="ij"))
    u = w[:, None] * x  # float64 [points of the grid, pairs]
    beside = kappa[:, None] * u
    right, wrong = expit(u) * expit(a[:, None] + beside), expit(-u) * expit(-a[:, None] + beside)
    q = right / (right + wrong)
    answered = 0.02 + 0.96 * np.where(checked > 0, q, 1 - q)
    log = weight * np.log(right + wrong).sum(axis=1) + np.log(answered[:, checked != 0]).sum(axis=1)
    prior = norm.logpdf(w, 1.6, 1.5) + norm.logpdf(kappa, 0.8, 0.6) + norm.logpdf(a, 1.0, spread_of_a)
    mass = np.exp(log + prior + 20)
    draws = fit_joint_model(evidence, anchors, np.arange(40)).draws(4000)
    found = np.concatenate([p.mean(axis=1) for _, p in label_probabilities(evidence, draws)])
    np.testing.assert_allclose(found, mass @ q / mass.sum(), atol=0.05)  # Laplace's error, with 40 pairs


@pytest.mark.parametrize("voters", [1, 3])
def test_however_many_voters_there_are_their_sum_is_believed_as_far(voters: int) -> None:
    """Mean and variance of the sum of weights, and variance of the difference of two, of the prior that is inverted."""
    none = np.empty((9, 0))
    margins = np.random.default_rng(0).standard_normal((9, voters))
    evidence = gather_evidence(margins, list("abc")[:voters], none, [], np.zeros(9), np.full(9, ""))
    layout = Layout(evidence.features.shape[1], 1)
    mean, precision = prior(layout, evidence, anchored=False, trusted=False)
    places = np.flatnonzero(evidence.of(VOTER))
    covariance = np.linalg.inv(precision)[np.ix_(places, places)]
    assert len(places) == voters
    assert mean[places].sum() == pytest.approx(priors._VOTERS[0])
    assert covariance.sum() == pytest.approx(priors._VOTERS[1] ** 2)
    for one, other in itertools.combinations(range(voters), 2):
        apart = covariance[one, one] + covariance[other, other] - 2 * covariance[one, other]
        assert apart == pytest.approx(2 * priors._VOTER_SPREAD**2)


def test_label_accuracies_beyond_a_known_one_are_tried_in_equal_steps() -> None:
    usual, beyond = grid(None), grid(0.9999)
    assert np.allclose(np.diff(beyond), np.diff(usual)[0])
    assert usual[-1] < logit(0.9999) < beyond[-1] < logit(0.9999) + 2
    assert beyond[: len(usual)] == pytest.approx(usual)


@pytest.mark.parametrize("m", [60, 160])
def test_trusted_pairs_make_unchecked_ones_count_by_their_margins_and_never_by_their_verdicts(m: int) -> None:
    """The log posterior written out: whole likelihood at weight 5, that of margins alone at the rest of the weight.

    The weight is that of the trusted pairs, and no pair counts more than once.
    """
    rng = np.random.default_rng(6)
    n = 80
    judged = rng.integers(-1, 2, (n, 1)).astype(float)
    evidence = gather_evidence(rng.standard_normal((n, 1)), ["a"], judged, ["j"], rng.standard_normal(n), ["s"] * n)
    trusted = rng.standard_normal((m, evidence.features.shape[1]))
    layout = Layout(evidence.features.shape[1], 1)
    problem = Problem(layout, evidence, Anchors(np.zeros(n, dtype=int), trusted), np.arange(n))
    t = rng.standard_normal(layout.size)
    margins_alone = evidence.features.copy()
    margins_alone[:, list(evidence.kinds).index(NET_VERDICT)] = 0.0
    expected = np.log(expit(trusted @ t[: layout.features])).sum()
    for x, weight in ((evidence.features, 5 / n), (margins_alone, (min(m, n) - 5) / n)):
        u = x @ t[: layout.features]
        c, a = t[layout.kappa] * u + t[layout.length_bias] * evidence.length, t[-1] + t[layout.deviations][0]
        expected += weight * np.log(expit(u) * expit(a + c) + expit(-u) * expit(-a + c)).sum()
    off = t - problem.mean
    assert problem.value(t)[0] == pytest.approx(expected - 0.5 * off @ problem.precision @ off, rel=1e-9)


def test_judges_are_not_blamed_for_being_asked_about_doubtful_labels() -> None:
    """Asked only where voters are against the label, a good judge disagrees with most labels that it sees."""
    rng = np.random.default_rng(7)
    n, m = 1000, 100
    truth = np.where(rng.random(n) < 0.7, 1, -1)
    margins = truth * (1.5 + rng.standard_normal(n))
    verdicts = np.where(margins < 0, truth * np.where(rng.random(n) < 0.95, 1, -1), 0).astype(float)
    known = np.where(rng.random(m) < 0.95, 1.0, -1.0)
    both = gather_evidence(
        np.concatenate([margins, 1.5 + rng.standard_normal(m)])[:, None],
        ["v"],
        np.concatenate([verdicts, known])[:, None],
        ["j"],
        np.zeros(n + m),
        np.full(n + m, ""),
    )
    evidence = replace(both, features=both.features[:n], sources=both.sources[:n])
    model = fit_joint_model(evidence, Anchors(np.zeros(n, dtype=int), both.features[n:]), np.arange(n))
    assert model.mean[list(both.kinds).index(NET_VERDICT)] > 1.5
    p = np.concatenate([p.mean(axis=1) for _, p in label_probabilities(evidence, model.draws(128))])
    assert ((p > 0.5) == (truth > 0)).mean() > 0.95


def test_draws_mirror_each_other_and_follow_the_weights() -> None:
    evidence, _ = one_voter(40)
    model = fit_joint_model(evidence, no_anchor(evidence), np.arange(40))
    draws = model.draws(400)
    assert draws.shape == (400, len(model.components[0].mode))
    np.testing.assert_allclose(draws[::2, -1], draws[1::2, -1])
    top = max(model.components, key=lambda each: each.weight)
    share = np.isclose(draws[:, -1], top.mode[-1]).mean()
    assert share == pytest.approx(top.weight / sum(each.weight for each in model.components), abs=0.02)


def test_checked_pairs_say_how_right_labels_are() -> None:
    evidence, truth = one_voter(400, right=0.6)
    checked = np.where(np.arange(400) < 100, truth, 0)
    model = fit_joint_model(evidence, replace(no_anchor(evidence), checked=checked), np.arange(400))
    p = np.concatenate([p.mean(axis=1) for _, p in label_probabilities(evidence, model.draws(128))])
    assert p.mean() == pytest.approx((truth > 0).mean(), abs=0.05)


def test_answers_at_random_fit_worse_than_a_coin() -> None:
    evidence, truth = one_voter(400, right=0.9)
    guessed = np.random.default_rng(5).choice([-1, 1], 60)
    for answers, better in ((truth[:60], True), (guessed, False)):
        checked = np.concatenate([answers, np.zeros(340, dtype=int)])
        anchors = replace(no_anchor(evidence), checked=checked)
        draw = np.arange(400)
        fitted = fit_joint_model(evidence, anchors, draw).log_evidence
        coin = fit_joint_model(evidence, replace(anchors, auditor_accuracy=0.5), draw).log_evidence
        assert (fitted > coin) is better


def test_a_fit_to_a_part_of_many_pairs_is_that_of_all() -> None:
    evidence, truth = one_voter(30_000)
    checked = np.where(np.arange(30_000) < 50, truth, 0)
    anchors = replace(no_anchor(evidence), checked=checked)
    rng = np.random.default_rng(0)
    found = []
    for _ in range(2):
        model = fit_joint_model(evidence, anchors, rng.permutation(30_000))
        found.append(np.concatenate([p.mean(axis=1) for _, p in label_probabilities(evidence, model.draws(64))]))
    np.testing.assert_allclose(found[0], found[1], atol=0.05)
