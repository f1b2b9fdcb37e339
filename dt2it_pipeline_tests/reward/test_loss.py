from __future__ import annotations

import math

import pytest
import torch

from dt2it_pipeline.reward.loss import bradley_terry


@pytest.mark.parametrize(("chosen", "rejected"), [(1.5, -0.25), (-3.0, 2.0), (0.0, 0.0), (7.125, 7.0)])
def test_is_the_formula_in_float64(chosen: float, rejected: float) -> None:
    expected = -math.log(1 / (1 + math.exp(-(chosen - rejected))))
    loss = bradley_terry(torch.tensor([chosen], dtype=torch.float64), torch.tensor([rejected], dtype=torch.float64))
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(expected, abs=1e-15)


def test_gradient_is_the_formula() -> None:
    chosen = torch.tensor([0.3, -2.0], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([1.0, 4.0], dtype=torch.float64)
    bradley_terry(chosen, rejected).sum().backward()
    assert torch.allclose(chosen.grad, -torch.sigmoid(rejected - chosen.detach()), atol=1e-15)


def test_large_margins_stay_finite() -> None:
    loss = bradley_terry(torch.tensor([-1e4, 1e4]), torch.tensor([1e4, -1e4]))
    assert loss.tolist() == [2e4, 0.0]
