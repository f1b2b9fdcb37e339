"""What a perfect method would still be measured as: lost comparisons and errors of claims that are chance alone.

A target such as "nowhere significantly worse than the best of seven, each known by the truth" or "the mean claim within
two points" is missed by chance, too. How often, this module says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom


def lost_by_chance(
    ours: tuple[np.ndarray, np.ndarray],
    others: Mapping[str, tuple[np.ndarray, np.ndarray]],
    counts: np.ndarray,
    *,
    alike: bool,
) -> np.ndarray:
    """In which resamples a method that is just as good as the best of the others counts as significantly worse.

    The method's share of right labels is moved to that of the best other one, and pairs are drawn anew. In each
    resample the best of the others is chosen again, by what is right there, and the difference to it has the bootstrap
    interval of 95% of that difference.

    Args:
        ours: bool [n] labels are right, and float [n] how much of each pair is kept.
        others: the same of other methods, by name; one at least.
        counts: float [resamples, n], how often each pair is drawn.
        alike: whether the others are moved to the best one's share, too. Then each of them may be the best by luck,
            which happens most often. Otherwise they stay as far behind as they are.

    Returns:
        bool [resamples].
    """
    columns = [part for right, weight in (*others.values(), ours) for part in (right * weight, weight)]
    totals, own = counts @ np.column_stack(columns), np.array([part.sum() for part in columns])
    with np.errstate(invalid="ignore", divide="ignore"):
        shares, observed = totals[:, ::2] / totals[:, 1::2], own[::2] / own[1::2]
    best = observed[:-1].max()
    moved = shares + np.append(np.full(len(others), best) - observed[:-1] if alike else np.zeros(len(others)), 0.0)
    moved[:, -1] += best - observed[-1]
    ahead = moved[:, -1:] - moved[:, :-1]
    room = np.nanquantile(shares[:, -1:] - shares[:, :-1] - (observed[-1] - observed[:-1]), 0.975, axis=0)
    usable = np.isfinite(moved).all(axis=1)
    chosen = np.where(usable[:, None], moved[:, :-1], 0.0).argmax(axis=1)
    # Two methods that agree on every pair do not differ, and rounding is no difference.
    return np.asarray(usable & (ahead[np.arange(len(ahead)), chosen] + room[chosen] < -1e-12))


@dataclass(frozen=True)
class ClaimErrors:
    """Errors of a mean claim about n labels.

    Attributes:
        absolute: mean of the absolute error.
        squared: mean of the squared error.
        within: probability that the error is at most what was asked.
    """

    absolute: float
    squared: float
    within: float


def errors_of_known_level(right: float, pairs: int, within: float) -> ClaimErrors:
    """Errors of a claim that is just the probability, since single labels are right or wrong by chance.

    Args:
        right: probability that a label is right.
        pairs: number of labels that are measured.
        within: greatest error that counts as small.
    """
    found = np.arange(pairs + 1)
    return _errors(np.abs(found / pairs - right), binom.pmf(found, pairs, right), within)


def errors_of_audited_level(right: float, pairs: int, audited: int, within: float) -> ClaimErrors:
    """Errors of a claim that is the share of right labels among those audited, and of nothing else.

    Args:
        right: probability that a label is right.
        pairs: number of labels that are measured, which are others.
        audited: number of audited labels, 1 or more.
        within: greatest error that counts as small.
    """
    claimed, found = np.arange(audited + 1), np.arange(pairs + 1)
    chance = np.outer(binom.pmf(claimed, audited, right), binom.pmf(found, pairs, right))
    return _errors(np.abs(claimed[:, None] / audited - found / pairs), chance, within)


def _errors(size: np.ndarray, chance: np.ndarray, within: float) -> ClaimErrors:
    return ClaimErrors(
        absolute=float((size * chance).sum()),
        squared=float((size**2 * chance).sum()),
        within=float(chance[size <= within + 1e-12].sum()),
    )
