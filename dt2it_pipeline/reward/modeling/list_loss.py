"""Losses over lists of answers to one prompt: every pair by itself, or every answer against all that it beats.

What belongs here: losses of a batch of examples, where an example is a pair alone or a list. What does not: losses of
single pairs (loss.py), and which pairs make up a list (data/lists.py).

A batch's scores are laid out in a matrix [examples, most answers]. All sums run over its rows in a fixed order, so that
the same batch has the same gradient every time, on a GPU too.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from dt2it_pipeline.reward.modeling.loss import pair_losses

if TYPE_CHECKING:
    import torch

    from dt2it_pipeline.config.sections.training import LossSettings


@dataclass(frozen=True, slots=True)
class Comparisons:
    """What is known of the answers in a batch: E examples of at most K answers each, and P pairs.

    A pair's place is that of (example, better answer, worse answer) in a flat [E, K, K].

    Attributes:
        grid: int64 [E, K], number of each answer's score in the batch; the last one of an example is repeated.
        places: int64 [P], the pairs, example by example.
        strengths: float32 [P], NaN where unknown.
        alone: int64, which of the pairs have a loss of their own, by number.
        ranked: int64, which of the pairs belong to lists whose loss is Plackett-Luce, by number.
        choices: int64, answers of such lists that are better than some other, as places in a flat [E, K].
    """

    grid: torch.Tensor
    places: torch.Tensor
    strengths: torch.Tensor
    alone: torch.Tensor
    ranked: torch.Tensor
    choices: torch.Tensor

    def to(self, device: torch.device) -> Comparisons:
        """The same on a device."""
        from dt2it_pipeline.engines.device import copied

        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        return Comparisons(**{name: copied(value, device) for name, value in values.items()})


def comparison_losses(
    scores: torch.Tensor, comparisons: Comparisons, settings: LossSettings
) -> tuple[torch.Tensor, torch.Tensor]:
    """Margins of all pairs of a batch, and its losses: one for each pair alone and one for each choice of a list.

    >>> import torch
    >>> from dt2it_pipeline.config.sections.training import LossSettings
    >>> numbers = {"places": [1, 2, 5], "alone": [], "ranked": [0, 1, 2], "choices": [0, 1]}  # 0 > 1, 0 > 2, 1 > 2
    >>> given = {name: torch.tensor(value, dtype=torch.int64) for name, value in numbers.items()}
    >>> list_of_three = Comparisons(torch.tensor([[0, 1, 2]]), strengths=torch.full((3,), torch.nan), **given)
    >>> margins, losses = comparison_losses(torch.zeros(3), list_of_three, LossSettings(lists="plackett_luce"))
    >>> margins.tolist(), losses.exp().tolist()  # the best of three by chance, then of two
    ([0.0, 0.0, 0.0], [3.0, 2.0])

    Args:
        scores: of the batch's answers, shape [answers], any float type.
        comparisons: what is known of them.
        settings: the kind of a pair's loss, and centring.

    Returns:
        Margins r(better) - r(worse), shape [P]; and losses, shape [pairs alone + choices], in this order, both in the
        type of the scores.
    """
    import torch

    table = scores[comparisons.grid]  # [E, K]
    square = (*table.shape, table.shape[1])
    better, worse = (
        table.unsqueeze(axis).expand(square).reshape(-1)[comparisons.places] for axis in (2, 1)
    )  # [P] each
    alone = comparisons.alone
    losses = pair_losses(better[alone], worse[alone], comparisons.strengths[alone], settings)
    if len(comparisons.choices):
        losses = torch.cat([losses, _choice_losses(table, comparisons, settings)])
    return better - worse, losses


def _choice_losses(table: torch.Tensor, comparisons: Comparisons, settings: LossSettings) -> torch.Tensor:
    """Loss of every choice of a batch, shape [choices], with margins and centring as the recipe chose."""
    import torch

    square = (*table.shape, table.shape[1])
    places = comparisons.places[comparisons.ranked]
    beats = torch.zeros(square, dtype=torch.bool, device=table.device).view(-1)
    beats[places] = True
    margins = torch.zeros(square, dtype=table.dtype, device=table.device).view(-1)
    if settings.kind == "margin":
        strengths = comparisons.strengths[comparisons.ranked].to(table.dtype).nan_to_num(nan=0.0).clamp_min(0)
        margins[places] = strengths * settings.strength_scale
    rows = comparisons.choices
    beaten, own = beats.view(-1, square[-1])[rows], table.reshape(-1)[rows]  # [choices, K], [choices]
    others = table.unsqueeze(1).expand(square).reshape(-1, square[-1])[rows]
    losses = plackett_luce(own, others + margins.view(-1, square[-1])[rows], beaten)
    if settings.center_rewards_coefficient:
        centre = ((own.unsqueeze(1) + others) ** 2 * beaten).sum(1) / beaten.sum(1)
        losses = losses + settings.center_rewards_coefficient * centre
    return losses


def plackett_luce(chosen: torch.Tensor, others: torch.Tensor, beaten: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of choices, `log(exp r_i + sum over j of exp r_j) - r_i` with j that i is better than.

    By Luce's choice axiom (Individual Choice Behavior, 1959), i is the best of any set of answers that holds it with
    probability exp r_i / sum of exp r. A ranking is a row of choices: the best of all, the best of those that are left,
    and so on (Plackett 1975, https://doi.org/10.2307/2346567). The losses of a whole ranking therefore sum to its
    negative log-likelihood; that of a list of two is `bradley_terry`.

    Where a list is not ranked as a whole, an answer is compared with those that it is known to be better than, and
    with no others: two answers that are equal, or whose pair was dropped, are never in one sum for the sake of each
    other, and nothing draws their scores together or apart. The losses then are a composite likelihood: each one
    alone is that of a choice, and they are multiplied as if they were independent. An exact likelihood of ties would
    sum over all orders of the equal answers.

    Args:
        chosen: scores r_i, shape [choices], any float type.
        others: scores r_j of all answers of the same list, shape [choices, answers], same type; a margin that they
            must be beaten by is added to them.
        beaten: which of these are worse than the chosen one, bool [choices, answers].

    Returns:
        One loss per choice, shape [choices]; its value does not overflow for large scores.
    """
    import torch

    against = others.masked_fill(~beaten, float("-inf"))
    return torch.cat([chosen.unsqueeze(1), against], dim=1).logsumexp(dim=1) - chosen
