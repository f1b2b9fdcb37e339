"""What choosing the best of n answers is worth: their expected quality, for n = 1 to N, without drawing at random.

With N scored answers to a prompt, n of them are chosen without replacement, all sets being equally likely, and the one
of the highest score is taken. Sorted by score, ascending, the i-th is the highest of C(i - 1, n - 1) of the C(N, n)
sets, so the expected quality of the best of n is

    sum over i of q_i * C(i - 1, n - 1) / C(N, n)

which is unbiased for the quality of the best of n fresh answers of the same generator, if the N were drawn
independently. Nakano et al. 2021 (arXiv 2112.09332) estimate best-of-n like this, and so do Gao et al. 2022 (arXiv
2210.10760); for qualities of 0 and 1 sorted by themselves it is pass@n of Chen et al. 2021 (arXiv 2107.03374).

Answers of equal score are chosen among at random: each counts with the mean quality of those it is tied with. An answer
without a score ranks below all others; it is taken only from a set in which none has a score.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dt2it_pipeline.errors import UserError

REPEATS = 2000
LEVEL = 0.95
ORACLE = "oracle"
_MOST_PROMPTS = 0.9  # share of the prompts that the default length of the curve keeps
_BLOCK = 4_000_000  # weights in memory at once

Numbers = Sequence[Sequence[float | None]]


class CurveError(UserError, ValueError):
    """There is nothing to make a curve of; the message says why."""


@dataclass(frozen=True)
class BestOfCurve:
    """Expected quality of the best of n answers, by model.

    Attributes:
        table: a row per model and n: `model`, `n`, `quality`, and `low` and `high` of its 95% bootstrap interval over
            prompts; `difference`, `difference_low` and `difference_high` from the first model on the same resamples.
            The model `oracle` chooses by quality itself: no model can do better.
        prompts: how many prompts count.
        without_quality: prompts that are left out because an answer has no quality.
        too_few_answers: prompts that are left out because they have fewer answers than the curve is long.
        unscored: answers of the counted prompts without a score, by model.
    """

    table: pd.DataFrame
    prompts: int
    without_quality: int
    too_few_answers: int
    unscored: Mapping[str, int]


@functools.lru_cache(maxsize=64)  # most prompts have as many answers as the others
def best_of_weights(answers: int, up_to: int) -> np.ndarray:
    """Probability [up_to, answers] that the answer of each rank, ascending, is the best of n = 1 to `up_to`.

    >>> best_of_weights(3, 3).round(3).tolist()
    [[0.333, 0.333, 0.333], [0.0, 0.333, 0.667], [0.0, 0.0, 1.0]]
    """
    weights = np.zeros((up_to, answers))
    for n in range(1, up_to + 1):
        weight = n / answers  # C(N - 1, n - 1) / C(N, n); lower ranks follow without large numbers
        for rank in range(answers, n - 1, -1):
            weights[n - 1, rank - 1] = weight
            weight *= (rank - n) / max(rank - 1, 1)
    return weights


def expected_quality(scores: Sequence[float | None], quality: Sequence[float], up_to: int) -> np.ndarray:
    """Expected quality [up_to] of the best of n answers to one prompt; the formula stands in the module's docstring.

    Args:
        scores: of the N answers; None or NaN where there is none.
        quality: of the N answers.
        up_to: largest n, at most N.

    >>> expected_quality([0.1, 0.9, 0.4], [0.0, 1.0, 1.0], 3).round(3).tolist()
    [0.667, 1.0, 1.0]
    >>> expected_quality([1.0, 1.0], [0.0, 1.0], 2).tolist()  # tied: one of the two at random
    [0.5, 0.5]
    """
    values = np.array([np.nan if score is None else score for score in scores], dtype=np.float64)
    values[np.isnan(values)] = -np.inf
    _, group = np.unique(values, return_inverse=True)
    means = np.bincount(group, weights=np.asarray(quality, dtype=np.float64)) / np.bincount(group)
    return best_of_weights(len(values), up_to) @ means[np.sort(group)]


def best_of_curve(
    scores: Mapping[str, Numbers],
    quality: Numbers,
    *,
    up_to: int | None = None,
    repeats: int = REPEATS,
    seed: int = 0,
) -> BestOfCurve:
    """Expected quality of the best of n answers by several models, on the same prompts.

    Examples:
        >>> curve = best_of_curve({"model": [[0.2, 0.9], [0.4, 0.3]]}, [[0, 1], [0, 1]], repeats=200)
        >>> curve.table[["model", "n", "quality"]].to_dict("split")["data"]
        [['model', 1, 0.5], ['model', 2, 0.5], ['oracle', 1, 0.5], ['oracle', 2, 1.0]]

    Args:
        scores: by model, scores of each prompt's answers; None or NaN where there is none.
        quality: of each prompt's answers, higher is better, such as 1 for right and 0 for wrong.
        up_to: largest n; by default as many as 9 of 10 prompts have answers. Prompts with fewer are left out.
        repeats: of the bootstrap, which draws prompts with replacement; intervals are percentiles.
        seed: of the bootstrap.

    Raises:
        CurveError: no prompt has a quality for every answer, or none has `up_to` answers.
        ValueError: prompts or answers do not match.
    """
    for model, given in scores.items():
        if [len(row) for row in given] != [len(row) for row in quality]:
            raise ValueError(f"the scores of {model!r} are not one for each quality")
    known = [n for n, row in enumerate(quality) if row and all(_is_number(value) for value in row)]
    if not known:
        raise CurveError(
            "no prompt has a quality for every answer: give each row a list `quality` with one number per response"
        )
    lengths = np.array([len(quality[n]) for n in known])
    longest = int(np.sort(lengths)[int((1 - _MOST_PROMPTS) * len(lengths))]) if up_to is None else up_to
    kept = [n for n in known if len(quality[n]) >= longest]
    if longest < 1 or not kept:
        raise CurveError(f"no prompt has {longest} answers with a quality; the most is {lengths.max()}")
    numbers = [[float(value) for value in quality[n] if value is not None] for n in kept]
    curves = {
        name: np.array([expected_quality(given[n], own, longest) for n, own in zip(kept, numbers, strict=True)])
        for name, given in scores.items()
    }
    curves[ORACLE] = np.array([expected_quality(own, own, longest) for own in numbers])
    return BestOfCurve(
        pd.DataFrame(_rows(curves, repeats, seed)),
        len(kept),
        len(quality) - len(known),
        len(known) - len(kept),
        {name: sum(not _is_number(v) for n in kept for v in given[n]) for name, given in scores.items()},
    )


def _is_number(value: float | None) -> bool:
    return value is not None and bool(np.isfinite(value))


def _rows(curves: Mapping[str, np.ndarray], repeats: int, seed: int) -> list[dict[str, object]]:
    """Rows of the table, from expected qualities [prompts, n] by model."""
    prompts, longest = next(iter(curves.values())).shape
    joined = np.concatenate(list(curves.values()), axis=1)
    rng = np.random.default_rng(seed)
    drawn = [joined.mean(axis=0, keepdims=True)]
    step = max(1, _BLOCK // prompts)
    for start in range(0, repeats, step):
        counts = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=min(step, repeats - start))
        drawn.append(counts @ joined / prompts)
    means = np.concatenate(drawn).reshape(-1, len(curves), longest)  # [1 + repeats, models, n]
    differences = means - means[:, :1]
    rows: list[dict[str, object]] = []
    for place, name in enumerate(curves):
        for n in range(longest):
            row: dict[str, object] = {"model": name, "n": n + 1}
            for key, low, high, values in (
                ("quality", "low", "high", means),
                ("difference", "difference_low", "difference_high", differences),
            ):
                own = values[:, place, n]
                ends = np.full(2, np.nan)
                if repeats:
                    ends[:] = np.quantile(own[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
                row |= {key: float(own[0]), low: float(ends[0]), high: float(ends[1])}
            rows.append(row)
    return rows
