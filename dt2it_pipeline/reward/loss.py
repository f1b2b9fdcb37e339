"""Losses over pairs of reward scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def bradley_terry(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """Bradley-Terry negative log-likelihood of each pair, `-log sigmoid(r_chosen - r_rejected)`.

    The probability that the chosen response beats the rejected one is sigmoid(r_chosen - r_rejected): Bradley and Terry
    1952 (https://doi.org/10.2307/2334029); for reward models see https://arxiv.org/abs/2203.02155, equation 1.

    Args:
        chosen: scores of the chosen responses, shape [pairs], any float type.
        rejected: scores of the rejected responses, same shape and type.

    Returns:
        One loss per pair, shape [pairs], in the type of the scores; its value does not overflow for large margins.
    """
    import torch

    return -torch.nn.functional.logsigmoid(chosen - rejected)
