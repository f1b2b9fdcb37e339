"""Figures of one benchmark with bootstrap intervals: accuracies of groups, overall, macro mean, Acc+.

Every figure is a ratio of weighted sums over clusters (pairs that stand or fall together: the pairs of one id, or of
one prompt). With all weights 1 that is the figure itself; with the weights of a resample, the figure of that resample.
So one matrix product gives all figures of all resamples at once.

The bootstrap draws clusters within each group, so that group sizes stay; intervals are percentiles of the resamples
(Efron and Tibshirani 1993, chapters 6 and 13). Where every pair of a group is right, its interval has no width: the
resamples hold nothing else.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dt2it_pipeline.evaluate.benchmarks.spec import RESERVED, BenchmarkError, Entry

REPEATS = 2000
LEVEL = 0.95
_BLOCK = 4_000_000  # weights in memory at once


@dataclass(frozen=True)
class Figure:
    """A share between 0 and 1, its 95% interval, and how many pairs (or ids, for Acc+) it is a share of."""

    name: str
    value: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Measured:
    """Figures of one benchmark, and right answers and pairs of every resample [1 + repeats], the first being none."""

    figures: Mapping[str, Figure]
    right: np.ndarray
    pairs: np.ndarray


def measure(
    entry: Entry,
    right: np.ndarray,
    group: Sequence[str],
    part: Sequence[str],
    cluster: Sequence[object],
    *,
    repeats: int = REPEATS,
    seed: int = 0,
) -> Measured:
    """All figures of a benchmark.

    Args:
        entry: which figures are computed.
        right: bool [pairs], whether each is answered rightly.
        group: [pairs] names.
        part: [pairs] name of the part of the group, or "".
        cluster: [pairs] what each belongs to: the value of `all_right_by` where the entry has one.
        repeats: resamples; 0 leaves the intervals out (NaN).
        seed: of the resampling; every benchmark draws from a stream of its own.

    Raises:
        BenchmarkError: a group has the name of another figure.
    """
    if taken := sorted(set(group) & {*RESERVED, *entry.figure_names}):
        raise BenchmarkError(f"{entry.name}: groups {taken} have the names of other figures; rename them")
    codes, _ = pd.factorize(np.asarray(cluster, dtype=object))
    clusters = int(codes.max(initial=-1)) + 1
    groups = sorted(set(group))
    names = [*groups, *sorted(set(part) - {""})]
    flags = {name: np.asarray([g == name for g in group]) for name in groups}
    flags |= {name: np.asarray([p == name for p in part]) for name in names[len(groups) :]}
    sums: list[np.ndarray] = [np.bincount(codes, weights=flags[name] & right, minlength=clusters) for name in names]
    sums += [np.bincount(codes, weights=flags[name], minlength=clusters) for name in names]
    whole = np.bincount(codes, weights=~right, minlength=clusters) == 0 if len(right) else np.zeros(0, bool)
    held = [sums[len(names) + place] > 0 for place in range(len(groups))]  # groups that a cluster has pairs of
    sums += [whole, np.ones(clusters), *[whole & has for has in held], *held]
    stratum = np.zeros(clusters, dtype=np.int64)
    stratum[codes[::-1]] = np.asarray([groups.index(g) for g in group], dtype=np.int64)[::-1]
    totals = _totals(np.stack(sums, axis=1).astype(float), stratum, repeats, [seed, zlib.crc32(entry.name.encode())])
    counts = {name: (totals[:, i], totals[:, len(names) + i]) for i, name in enumerate(names)}
    found = _accuracies(entry, groups, counts)
    if entry.all_right_by is not None:
        at = 2 * len(names)
        found["acc_plus"] = (totals[:, at], totals[:, at + 1])
        for place, name in enumerate(groups):
            found[f"acc_plus/{name}"] = (totals[:, at + 2 + place], totals[:, at + 2 + len(groups) + place])
    figures = {name: _figure(name, _share(*pair), pair[1][0]) for name, pair in found.items()}
    if entry.macro and len(groups) > 1:
        kept = {"macro": groups} | {
            f"macro_{name}": [g for g in groups if g not in listed]
            for name, listed in entry.without.items()
            if set(groups) & set(listed)
        }
        for name, own in kept.items():
            figures[name] = _figure(name, np.mean([_share(*counts[g]) for g in own], axis=0), len(right))
    return Measured(figures, *found["overall"])


def combine(parts: Sequence[Measured]) -> dict[str, Figure]:
    """Both overalls of several benchmarks: `pooled` over all pairs, and `mean` of the benchmarks' accuracies."""
    right, pairs = (sum((getattr(part, side) for part in parts), np.zeros(1)) for side in ("right", "pairs"))
    mean = np.mean([_share(part.right, part.pairs) for part in parts], axis=0)
    return {"pooled": _figure("pooled", _share(right, pairs), pairs[0]), "mean": _figure("mean", mean, pairs[0])}


def _accuracies(
    entry: Entry, groups: Sequence[str], counts: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Right answers and pairs by figure."""

    def pooled(names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        own = [counts[name] for name in names] or [(np.zeros(1), np.zeros(1))]
        return np.sum([right for right, _ in own], axis=0), np.sum([pairs for _, pairs in own], axis=0)

    found = {"overall": pooled(groups), **counts}
    for name, listed in entry.unions.items():
        if present := [group for group in groups if group in listed]:
            found[name] = pooled(present)
    for name, listed in entry.without.items():
        if set(groups) & set(listed):
            found[f"overall_{name}"] = pooled([group for group in groups if group not in listed])
    return found


def _totals(table: np.ndarray, stratum: np.ndarray, repeats: int, seed: Sequence[int]) -> np.ndarray:
    """Weighted column sums [1 + repeats, columns] of `table` [clusters, columns]; the first row has all weights 1."""
    totals = np.tile(table.sum(axis=0), (1 + repeats, 1))
    totals[1:] = 0
    rng = np.random.default_rng(seed)
    for which in np.unique(stratum):
        own = table[stratum == which]
        for start, stop in _blocks(repeats, len(own)):
            weights = rng.multinomial(len(own), np.full(len(own), 1 / len(own)), size=stop - start)
            totals[1 + start : 1 + stop] += weights @ own
    return totals


def _blocks(repeats: int, width: int) -> Iterator[tuple[int, int]]:
    step = max(1, _BLOCK // width)
    for start in range(0, repeats, step):
        yield start, min(repeats, start + step)


def _share(right: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    return np.divide(right, pairs, out=np.full(np.shape(right), np.nan), where=np.asarray(pairs) > 0)


def _figure(name: str, values: np.ndarray, count: float) -> Figure:
    drawn = values[1:][np.isfinite(values[1:])]
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if len(drawn) else (np.nan, np.nan)
    return Figure(name, float(values[0]), float(low), float(high), int(count))
