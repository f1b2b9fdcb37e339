"""Losses over pairs of reward scores, as small functions of scores and strengths; `pair_losses` is what training uses.

Strength says by how much the chosen response is better, in the unit of whoever judged the pair. It is NaN where that is
not known; such a pair gets the plain Bradley-Terry loss. A negative strength contradicts the label: it counts as 0.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from dt2it_pipeline.config.sections.training import LossSettings


def bradley_terry(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """Bradley-Terry negative log-likelihood of each pair, `-log sigmoid(r_chosen - r_rejected)`.

    The probability that the chosen response beats the rejected one is sigmoid(r_chosen - r_rejected): Bradley and Terry
    1952 (https://doi.org/10.2307/2334029); for reward models see Ouyang et al., https://arxiv.org/abs/2203.02155,
    section "Models", paragraph "Reward modeling".

    Args:
        chosen: scores of the chosen responses, shape [pairs], any float type.
        rejected: scores of the rejected responses, same shape and type.

    Returns:
        One loss per pair, shape [pairs], in the type of the scores; its value does not overflow for large margins.
    """
    import torch

    return -torch.nn.functional.logsigmoid(chosen - rejected)


def margin_loss(
    chosen: torch.Tensor, rejected: torch.Tensor, strength: torch.Tensor, strength_scale: float
) -> torch.Tensor:
    """Bradley-Terry with a strength margin, `-log sigmoid(r_chosen - r_rejected - m)`, m = scale * max(strength, 0).

    Scores of pairs of great strength must differ by more: Llama 2, https://arxiv.org/abs/2307.09288, section "Reward
    Modeling", paragraph "Training Objectives", with m linear in the strength instead of a step function of four
    ratings. m = 0 where the strength is NaN.

    Args:
        chosen: scores of the chosen responses, shape [pairs], any float type.
        rejected: scores of the rejected responses, same shape and type.
        strength: of each pair, shape [pairs], NaN where unknown.
        strength_scale: margin, in units of score, per unit of strength.

    Returns:
        One loss per pair, shape [pairs], in the type of the scores.
    """
    margin = strength.to(chosen.dtype).nan_to_num(nan=0.0).clamp_min(0) * strength_scale
    return bradley_terry(chosen - margin, rejected)


def soft_label_loss(
    chosen: torch.Tensor, rejected: torch.Tensor, strength: torch.Tensor, strength_scale: float
) -> torch.Tensor:
    """Cross-entropy against the probability that the strength stands for.

    `-(p log sigmoid(d) + (1 - p) log sigmoid(-d))` with d = r_chosen - r_rejected and
    p = sigmoid(scale * max(strength, 0)). Its least value is at d = scale * strength: a pair of strength 0 is a tie,
    and no pair asks for an endless margin. The form is that of label smoothing by preference strength
    (https://arxiv.org/abs/2401.06080), with p of each pair by the Bradley-Terry model instead of one constant.
    Where the strength is NaN, p = 1: the plain loss.

    Args:
        chosen: scores of the chosen responses, shape [pairs], any float type.
        rejected: scores of the rejected responses, same shape and type.
        strength: of each pair, shape [pairs], NaN where unknown.
        strength_scale: logit of p per unit of strength.

    Returns:
        One loss per pair, shape [pairs], in the type of the scores.
    """
    import torch

    logit = strength.to(chosen.dtype).clamp_min(0) * strength_scale
    probability = torch.where(strength.isnan(), torch.ones_like(chosen), torch.sigmoid(logit))
    return probability * bradley_terry(chosen, rejected) + (1 - probability) * bradley_terry(rejected, chosen)


def davidson_loss(
    chosen: torch.Tensor, rejected: torch.Tensor, strength: torch.Tensor, tie_probability: float
) -> torch.Tensor:
    """Negative log-likelihood of each pair in the Bradley-Terry model with ties; a pair of strength 0 is a tie.

    With d = r_chosen - r_rejected and nu = 2 t / (1 - t), where t is the probability that equally good answers tie:

        P(chosen is better) = exp(d / 2) / (exp(d / 2) + exp(-d / 2) + nu),   P(tie) = nu / (the same sum)

    Davidson 1970, "On Extending the Bradley-Terry Model to Accommodate Ties in Paired Comparison Experiments"
    (https://doi.org/10.1080/01621459.1970.10481082). For t near 0, the loss of a pair that is no tie is
    `bradley_terry`.

    Args:
        chosen: scores of the chosen responses, shape [pairs], any float type.
        rejected: scores of the rejected responses, same shape and type.
        strength: of each pair, shape [pairs]; 0 is a tie, anything else and NaN is none.
        tie_probability: t, between 0 and 1.

    Returns:
        One loss per pair, shape [pairs], in the type of the scores; its value does not overflow for large margins.
    """
    import torch

    half = (chosen - rejected) / 2
    tie = torch.full_like(half, math.log(2 * tie_probability / (1 - tie_probability)))
    total = torch.stack([half, -half, tie]).logsumexp(dim=0)
    return total - torch.where(strength == 0, tie, half)


def centring(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """Auxiliary loss `(r_chosen + r_rejected)^2` of each pair, shape [pairs], which draws the mean score to zero.

    Bradley-Terry leaves a constant free in the scores of every prompt; this fixes it. Eisenstein et al., "Helping or
    Herding?", https://arxiv.org/abs/2312.09244; the `center_rewards_coefficient` of TRL's RewardTrainer.
    """
    return (chosen + rejected) ** 2


def pair_losses(
    chosen: torch.Tensor, rejected: torch.Tensor, strength: torch.Tensor, settings: LossSettings
) -> torch.Tensor:
    """Loss of each pair, shape [pairs], as the recipe chose: its kind, plus centring times its coefficient."""
    if settings.kind == "margin":
        losses = margin_loss(chosen, rejected, strength, settings.strength_scale)
    elif settings.kind == "soft_label":
        losses = soft_label_loss(chosen, rejected, strength, settings.strength_scale)
    elif settings.kind == "davidson":
        losses = davidson_loss(chosen, rejected, strength, settings.tie_probability)
    else:
        losses = bradley_terry(chosen, rejected)
    if settings.center_rewards_coefficient:
        losses = losses + settings.center_rewards_coefficient * centring(chosen, rejected)
    return losses
