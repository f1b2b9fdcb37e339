from __future__ import annotations

import math

import pytest
import torch

from dt2it_pipeline.config.sections.training import LossSettings
from dt2it_pipeline.reward.modeling.loss import bradley_terry, centring, margin_loss, pair_losses, soft_label_loss
from dt2it_pipeline_tests.support.tolerance import float64_tolerance

pytestmark = pytest.mark.numerics

PAIRS = [(1.5, -0.25), (-3.0, 2.0), (0.0, 0.0), (7.125, 7.0)]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def within(expected: float = 1.0) -> float:
    """Of a formula of ten operations, whose terms are about one or as large as its result."""
    return float64_tolerance(10) * max(1.0, abs(expected))


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(("chosen", "rejected"), PAIRS)
def test_is_the_formula_in_float64(chosen: float, rejected: float) -> None:
    expected = -math.log(1 / (1 + math.exp(-(chosen - rejected))))
    loss = bradley_terry(torch.tensor([chosen], dtype=torch.float64), torch.tensor([rejected], dtype=torch.float64))
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(expected, abs=within(expected), rel=0)


def test_gradient_is_the_formula() -> None:
    chosen = torch.tensor([0.3, -2.0], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([1.0, 4.0], dtype=torch.float64)
    bradley_terry(chosen, rejected).sum().backward()
    assert torch.allclose(chosen.grad, -torch.sigmoid(rejected - chosen.detach()), atol=within(), rtol=0)


def test_large_margins_stay_finite() -> None:
    loss = bradley_terry(torch.tensor([-1e4, 1e4]), torch.tensor([1e4, -1e4]))
    assert loss.tolist() == [2e4, 0.0]


@pytest.mark.parametrize(("chosen", "rejected"), PAIRS)
@pytest.mark.parametrize("strength", [0.0, 0.7, 5.0])
def test_margin_is_the_formula_in_float64(chosen: float, rejected: float, strength: float) -> None:
    expected = -math.log(sigmoid(chosen - rejected - 0.4 * strength))
    loss = margin_loss(doubles(chosen), doubles(rejected), doubles(strength), 0.4)
    assert loss.item() == pytest.approx(expected, abs=within(expected), rel=0)


@pytest.mark.parametrize(("chosen", "rejected"), PAIRS)
@pytest.mark.parametrize("strength", [0.0, 0.7, 5.0])
def test_soft_label_is_the_formula_in_float64(chosen: float, rejected: float, strength: float) -> None:
    p, q = sigmoid(0.4 * strength), sigmoid(chosen - rejected)
    expected = -(p * math.log(q) + (1 - p) * math.log(1 - q))
    loss = soft_label_loss(doubles(chosen), doubles(rejected), doubles(strength), 0.4)
    assert loss.item() == pytest.approx(expected, abs=within(expected), rel=0)


def test_soft_label_is_least_where_the_margin_says_the_strength() -> None:
    chosen = doubles(0.4 * 3.0).requires_grad_()
    soft_label_loss(chosen, doubles(0.0), doubles(3.0), 0.4).sum().backward()
    assert chosen.grad.item() == pytest.approx(0, abs=within())


@pytest.mark.parametrize(("chosen", "rejected"), PAIRS)
def test_centring_is_the_formula(chosen: float, rejected: float) -> None:
    assert centring(doubles(chosen), doubles(rejected)).item() == (chosen + rejected) ** 2


@pytest.mark.parametrize("loss", [margin_loss, soft_label_loss])
def test_an_unknown_strength_gives_the_plain_loss_and_gradient(loss) -> None:
    scores = [doubles(1.0, -2.0).requires_grad_() for _ in range(2)]
    plain, unknown = (
        bradley_terry(scores[0], doubles(0.5, 0.5)),
        loss(scores[1], doubles(0.5, 0.5), doubles(math.nan, math.nan), 2.0),
    )
    assert unknown.tolist() == plain.tolist()
    plain.sum().backward()
    unknown.sum().backward()
    assert scores[1].grad.tolist() == scores[0].grad.tolist()


@pytest.mark.parametrize("loss", [margin_loss, soft_label_loss])
def test_a_negative_strength_counts_as_zero(loss) -> None:
    scores = doubles(1.0), doubles(0.5)
    assert loss(*scores, doubles(-3.0), 2.0).tolist() == loss(*scores, doubles(0.0), 2.0).tolist()


def test_the_recipe_chooses() -> None:
    scores = doubles(1.0, -2.0), doubles(0.5, 0.5), doubles(2.0, math.nan)
    plain = bradley_terry(*scores[:2])
    assert pair_losses(*scores, LossSettings()).tolist() == plain.tolist()
    centred = pair_losses(*scores, LossSettings(center_rewards_coefficient=0.01))
    assert centred.tolist() == (plain + 0.01 * centring(*scores[:2])).tolist()
    margin = LossSettings(kind="margin", strength_scale=0.5)
    assert pair_losses(*scores, margin).tolist() == margin_loss(*scores, 0.5).tolist()
    soft = LossSettings(kind="soft_label", strength_scale=0.5)
    assert pair_losses(*scores, soft).tolist() == soft_label_loss(*scores, 0.5).tolist()
