"""Expected right labels of groups of pairs, and label accuracies with their intervals, under draws of the posterior."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A number with its interval.

    Attributes:
        estimate: its mean.
        low, high: bounds that hold it with a probability of 95%, by the model.
    """

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return "not known" if np.isnan(self.estimate) else f"{self.estimate:.1%} ({self.low:.1%} to {self.high:.1%})"


UNKNOWN = Estimate(np.nan, np.nan, np.nan)


@dataclass
class BySource:
    """Mean P(label right) of the pairs of every source that have scores or verdicts.

    A pair without any is like the others of its source. One whose evidence is as strong on either side is a hard one.
    """

    right: np.ndarray
    pairs: np.ndarray

    @classmethod
    def of(cls, sources: int, draws: int) -> BySource:
        """No pairs."""
        return cls(np.zeros((sources, draws)), np.zeros(sources))

    def add(self, p: np.ndarray, sources: np.ndarray, seen: np.ndarray) -> None:
        """Take in the pairs with scores or verdicts."""
        for source in np.unique(sources[seen]):
            these = seen & (sources == source)
            self.right[source] += p[these].sum(axis=0, dtype=np.float64)
            self.pairs[source] += these.sum()

    def mean(self, sources: np.ndarray) -> np.ndarray:
        """float64 [n, draws], for pairs of these sources; of a source without evidence, that of all."""
        everywhere = self.right.sum(axis=0) / max(self.pairs.sum(), 1)
        means = np.where(self.pairs[:, None] > 0, self.right / np.maximum(self.pairs, 1)[:, None], everywhere)
        return np.asarray(means[sources])


@dataclass
class Sum:
    """Expected right labels of a group of pairs.

    Attributes:
        right: float64 [draws], sum of P(label right).
        variance: of the number of right labels, where the probabilities are known.
        size: pairs.
    """

    right: np.ndarray
    variance: float
    size: int

    @classmethod
    def of(cls, draws: int) -> Sum:
        """No pairs."""
        return cls(np.zeros(draws), 0.0, 0)

    def add(self, p: np.ndarray, mean: np.ndarray, where: np.ndarray) -> None:
        """Take in the marked pairs: P(label right) under every draw, and its mean."""
        self.right += p[where].sum(axis=0, dtype=np.float64)
        self.variance += float((mean * (1 - mean))[where].sum())
        self.size += int(where.sum())

    def __add__(self, other: Sum) -> Sum:
        return Sum(self.right + other.right, self.variance + other.variance, self.size + other.size)

    def __sub__(self, other: Sum) -> Sum:
        return Sum(self.right - other.right, max(self.variance - other.variance, 0.0), self.size - other.size)

    def turned(self) -> Sum:
        """The same pairs with their sides swapped."""
        return Sum(self.size - self.right, self.variance, self.size)

    def accuracy(self, seed: int) -> np.ndarray:
        """float64 [64, draws], possible label accuracies: over the draws, and over which of the labels are right."""
        chance = np.random.default_rng(seed).standard_normal((64, 1)) * np.sqrt(self.variance)
        return np.clip((self.right + chance) / self.size, 0.0, 1.0)

    def estimate(self, seed: int) -> Estimate:
        """Label accuracy with its interval; not a number without pairs."""
        if not self.size:
            return Estimate(float("nan"), float("nan"), float("nan"))
        low, high = np.quantile(self.accuracy(seed), (0.025, 0.975))
        return Estimate(float(self.right.mean() / self.size), float(low), float(high))
