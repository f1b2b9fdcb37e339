"""Losses over lists: against plain loops in float64, against the losses of pairs, and by their gradients."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from dt2it_pipeline.config.sections.training import LossSettings
from dt2it_pipeline.reward.modeling.list_loss import Comparisons, comparison_losses, plackett_luce
from dt2it_pipeline.reward.modeling.loss import bradley_terry, davidson_loss, pair_losses
from dt2it_pipeline_tests.support.list_worlds import ranking_probability

LUCE = LossSettings(lists="plackett_luce")
Pair = tuple[int, int]


def of_one_list(answers: int, pairs: Sequence[Pair], *, ranked: bool, strengths: Sequence[float] = ()) -> Comparisons:
    """A batch of one list, by the better and the worse answer of each pair."""
    numbers = torch.arange(len(pairs))
    none = numbers[:0]
    return Comparisons(
        grid=torch.arange(answers).unsqueeze(0),
        places=torch.tensor([better * answers + worse for better, worse in pairs]),
        strengths=torch.tensor(strengths) if strengths else torch.full((len(pairs),), math.nan),
        alone=none if ranked else numbers,
        ranked=numbers if ranked else none,
        choices=torch.tensor(sorted({better for better, _ in pairs})) if ranked else none,
    )


def some_scores(count: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loss_and_gradient(
    scores: torch.Tensor, comparisons: Comparisons, settings: LossSettings
) -> tuple[torch.Tensor, torch.Tensor]:
    scores = scores.clone().requires_grad_()
    loss = comparison_losses(scores, comparisons, settings)[1].sum()
    loss.backward()
    assert scores.grad is not None
    return loss.detach(), scores.grad


@pytest.mark.parametrize("answers", [2, 3, 4, 6])
def test_a_ranking_has_the_likelihood_of_plackett_and_luce(answers: int) -> None:
    scores = some_scores(answers)
    order = np.random.default_rng(answers).permutation(answers).tolist()  # the best first
    pairs = list(itertools.combinations(order, 2))
    loss, _ = loss_and_gradient(scores, of_one_list(answers, pairs, ranked=True), LUCE)
    assert float(loss) == pytest.approx(-math.log(ranking_probability(scores[order].tolist())), rel=1e-12)


def test_the_probabilities_of_all_rankings_sum_to_one() -> None:
    scores, total = some_scores(4), 0.0
    for order in itertools.permutations(range(4)):
        pairs = list(itertools.combinations(order, 2))
        total += math.exp(-float(loss_and_gradient(scores, of_one_list(4, pairs, ranked=True), LUCE)[0]))
    assert total == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize(
    "pairs",
    [[(0, 1), (0, 2)], [(0, 2), (1, 2)], [(2, 0), (1, 3)], [(0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]],
    ids=["best of three", "worst of three", "two pairs", "dropped or tied at the top"],
)
def test_an_answer_is_chosen_over_those_that_it_beats_and_no_others(pairs: list[Pair]) -> None:
    scores = some_scores(4, seed=3)
    wanted = 0.0
    for better in {better for better, _ in pairs}:
        beaten = [worse for one, worse in pairs if one == better]
        worths = [math.exp(float(scores[each])) for each in [better, *beaten]]
        wanted -= math.log(worths[0] / sum(worths))
    loss, gradient = loss_and_gradient(scores, of_one_list(4, pairs, ranked=True), LUCE)
    assert float(loss) == pytest.approx(wanted, rel=1e-12)
    # No answer is drawn towards or from another that it has no pair with: moving both does not change the others.
    step = 1e-6
    for place in range(4):
        moved = [scores + sign * step * torch.eye(4, dtype=torch.float64)[place] for sign in (1, -1)]
        up, down = (float(loss_and_gradient(each, of_one_list(4, pairs, ranked=True), LUCE)[0]) for each in moved)
        assert float(gradient[place]) == pytest.approx((up - down) / (2 * step), abs=1e-8)


@pytest.mark.parametrize("kind", ["bradley_terry", "margin", "soft_label", "davidson"])
def test_a_list_by_pairs_is_the_sum_of_its_pairs(kind: str) -> None:
    settings = LossSettings(kind=kind, strength_scale=0.7, center_rewards_coefficient=0.02)
    pairs, strengths = list(itertools.combinations(range(4), 2)), [1.0, 0.0, math.nan, -2.0, 0.5, 3.0]
    scores = some_scores(4)
    margins, losses = comparison_losses(scores, of_one_list(4, pairs, ranked=False, strengths=strengths), settings)
    for number, (better, worse) in enumerate(pairs):
        sides = scores[[better]], scores[[worse]]
        assert float(margins[number]) == float(sides[0] - sides[1])
        wanted = pair_losses(*sides, torch.tensor(strengths[number : number + 1]), settings)
        assert float(losses[number]) == float(wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["bradley_terry", "margin"])
def test_a_list_of_two_has_the_loss_of_a_pair(kind: str, dtype: torch.dtype) -> None:
    shared = {"kind": kind, "strength_scale": 0.7, "center_rewards_coefficient": 0.02}
    for seed, strength in enumerate((math.nan, 0.0, 1.5, -1.0)):
        scores = some_scores(2, seed).to(dtype)
        results = [
            loss_and_gradient(
                scores, of_one_list(2, [(1, 0)], ranked=lists == "plackett_luce", strengths=[strength]),
                LossSettings(lists=lists, **shared),
            )
            for lists in ("pairwise", "plackett_luce")
        ]  # fmt: skip
        tolerance = 8 * torch.finfo(dtype).eps
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_margins_of_a_ranking_raise_what_must_be_beaten() -> None:
    pairs, strengths = [(0, 1), (0, 2), (1, 2)], [1.0, 2.0, 0.5]
    scores = some_scores(3)
    settings = LossSettings(kind="margin", lists="plackett_luce", strength_scale=0.5)
    worth = [math.exp(score) for score in scores.tolist()]
    wanted = -math.log(worth[0] / (worth[0] + worth[1] * math.exp(0.5) + worth[2] * math.exp(1.0)))
    wanted -= math.log(worth[1] / (worth[1] + worth[2] * math.exp(0.25)))
    loss, _ = loss_and_gradient(scores, of_one_list(3, pairs, ranked=True, strengths=strengths), settings)
    assert float(loss) == pytest.approx(wanted, rel=1e-12)


def test_pairs_in_a_batch_have_the_gradient_that_they_had_side_by_side() -> None:
    """To the bit: data without lists trains as it did when scores were looked at two by two."""
    count = 9
    scores = some_scores(2 * count).float()
    strengths = torch.linspace(-1, 3, count)
    strengths[4] = math.nan
    settings = LossSettings(kind="margin", center_rewards_coefficient=0.01)
    numbers = torch.arange(count)
    batch = Comparisons(
        torch.arange(2 * count).view(-1, 2), 4 * numbers + 1, strengths, numbers, numbers[:0], numbers[:0]
    )
    loss, gradient = loss_and_gradient(scores, batch, settings)
    plain = scores.clone().requires_grad_()
    wanted = pair_losses(*plain.view(-1, 2).unbind(1), strengths, settings).sum()
    wanted.backward()
    assert plain.grad is not None
    assert torch.equal(loss, wanted.detach()) and torch.equal(gradient, plain.grad)


def test_large_scores_do_not_overflow() -> None:
    far = torch.tensor([[400.0, -400.0]])
    beaten = torch.tensor([[False, True]])
    assert plackett_luce(torch.tensor([400.0]), far, beaten).tolist() == [0.0]
    assert plackett_luce(torch.tensor([-400.0]), far.flip(1), beaten).tolist() == [800.0]
    sides = torch.tensor([400.0, -400.0]), torch.tensor([-400.0, 400.0])
    found = davidson_loss(*sides, torch.tensor([1.0, 1.0]), 0.25)
    assert found.tolist() == [0.0, 800.0]


@pytest.mark.parametrize("tie", [0.05, 0.25, 0.6])
def test_ties_are_those_of_davidson(tie: float) -> None:
    """His own form, by worths: nu sqrt(a b) beside a and b; equals tie as often as the setting says."""
    better, worse = some_scores(5), some_scores(5, seed=1)
    nu = 2 * tie / (1 - tie)
    a, b = better.exp(), worse.exp()
    total = a + b + nu * (a * b).sqrt()
    for strength, probability in ((0.0, nu * (a * b).sqrt() / total), (1.0, a / total), (math.nan, a / total)):
        found = davidson_loss(better, worse, torch.full((5,), strength), tie)
        torch.testing.assert_close(found, -probability.log(), rtol=1e-12, atol=1e-12)
    zero = torch.zeros(1, dtype=torch.float64)
    assert float(davidson_loss(zero, zero, torch.zeros(1), tie).neg().exp()) == pytest.approx(tie)
    # A tie draws scores together, from either side alike.
    scores = torch.tensor([1.0, -0.5], requires_grad=True)
    davidson_loss(scores[:1], scores[1:], torch.zeros(1), tie).sum().backward()
    assert scores.grad is not None and float(scores.grad[0]) > 0 > float(scores.grad[1])


def test_without_ties_davidson_is_bradley_terry() -> None:
    better, worse = some_scores(5), some_scores(5, seed=1)
    found = davidson_loss(better, worse, torch.ones(5), 1e-12)
    torch.testing.assert_close(found, bradley_terry(better, worse), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["soft_label", "davidson"])
def test_kinds_of_pairs_alone_are_refused_for_rankings(kind: str) -> None:
    with pytest.raises(ValidationError, match=f"no form of kind: {kind}.*set lists: pairwise"):
        LossSettings(kind=kind, lists="plackett_luce")
