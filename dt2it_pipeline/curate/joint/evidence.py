"""What the joint model sees of a pair: margins of voters, verdicts of judges and lengths, as features of one scale.

Every feature points in the direction of the given label: a positive value speaks for the label, a negative one against
it, and the same pair with its sides swapped has the opposite features. What belongs here: scaling, and what happens to
outlying and missing values. What does not: how far a feature can be believed (`model`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

VOTER, NET_VERDICT, JUDGE, POSITION, LENGTH = "voter", "net verdict", "judge", "position", "length"
_FARTHEST = 4.0  # medians; a margin beyond counts as that much, so that one broken score decides nothing
_CONSTANT = 1e-9  # of the largest margin; a voter whose margins differ less favours one side whatever the pair
_MOST_LEVELS = 3  # net verdicts of 3 and more share one accuracy
_LEAST_SHARE = 0.2  # of the pairs in which a judge saw the chosen side first, and of those in which the other
_MOST_SOURCES = 24  # with a label accuracy of their own; the smaller ones share one


@dataclass(frozen=True)
class Evidence:
    """Features of n pairs.

    Attributes:
        features: float64 [n, F], in the direction of the given label; 0 is no evidence.
        kinds: F kinds: VOTER, NET_VERDICT, JUDGE, POSITION or LENGTH.
        levels: int [F]; of a NET_VERDICT, by how many verdicts one side leads; 0 for others.
        names: F names.
        sources: int [n], the group of every pair.
        source_names: the sources of every group.
        seen: bool [n], whether there is a score of both sides or a verdict. Where all features are 0, a pair is either
            hard, or was not looked at.
    """

    features: np.ndarray
    kinds: tuple[str, ...]
    levels: np.ndarray
    names: tuple[str, ...]
    sources: np.ndarray
    source_names: tuple[tuple[str, ...], ...]
    seen: np.ndarray

    def __len__(self) -> int:
        return len(self.features)

    def of(self, *kinds: str) -> np.ndarray:
        """Bool [F]: the features of these kinds."""
        return np.isin(self.kinds, kinds)

    def rows(self, places: slice | np.ndarray) -> Evidence:
        """The evidence of these pairs alone."""
        return replace(self, features=self.features[places], sources=self.sources[places], seen=self.seen[places])

    @property
    def length(self) -> np.ndarray:
        """float64 [n], the scaled difference of log lengths."""
        return self.features[:, -1]


def gather_evidence(
    margins: np.ndarray,
    voters: Sequence[str],
    verdicts: np.ndarray,
    judges: Sequence[str],
    length: np.ndarray,
    sources: np.ndarray,
    shown_first: np.ndarray | None = None,
) -> Evidence:
    """Put what is known of n pairs on one scale.

    Args:
        margins: float64 [n, V], score of chosen minus score of rejected; not finite where a voter has none.
        voters: V names.
        verdicts: float64 [n, J]: for the label positive, against it negative, 0 for a tie or no verdict. A judge who
            was asked in both orders has the sum.
        judges: J names.
        length: float64 [n], difference of log lengths, chosen minus rejected.
        sources: n names of data sources.
        shown_first: float64 [n, J], positive where the judge saw the chosen side first, negative where last, 0 where
            that is not known, or where a judge who was asked in both orders saw either first; None: all 0. What a judge
            says for the side that it sees first says less if it often says that.
    """
    count, size = margins.shape
    signs = np.sign(verdicts)
    net = signs.sum(axis=1)
    level = np.minimum(np.abs(net), _MOST_LEVELS)
    levels = sorted(set(np.unique(level[level > 0]).astype(int).tolist()))
    heard = [k for k in range(signs.shape[1]) if signs[:, k].any()]
    heard = heard if len(heard) > 1 else []  # of one alone, the lead is its verdict
    first = np.zeros_like(signs) if shown_first is None else np.sign(shown_first) * (signs != 0)
    ordered = [k for k in range(first.shape[1]) if first[:, k].any()]
    kinds = [VOTER] * size + [NET_VERDICT] * len(levels) + [JUDGE] * len(heard) + [POSITION] * len(ordered) + [LENGTH]
    names = [*voters, *(f"lead of {each}" for each in levels), *(judges[k] for k in heard)]
    names += [*(f"first of {judges[k]}" for k in ordered), LENGTH]
    # Column by column into one array: of ten million pairs, every copy is half a gigabyte.
    features = np.empty((count, len(kinds)))
    for k in range(size):
        features[:, k] = _scaled(margins[:, k])
    for k, each in enumerate(levels, start=size):
        features[:, k] = np.where(level == each, np.sign(net), 0.0)
    for k, judge in enumerate(heard, start=size + len(levels)):
        features[:, k] = signs[:, judge]
    for k, judge in enumerate(ordered, start=size + len(levels) + len(heard)):
        features[:, k] = first[:, judge]
    features[:, -1] = _scaled(length)
    codes, source_names = _groups(sources)
    places = np.zeros(len(kinds), dtype=int)
    places[size : size + len(levels)] = levels
    seen = np.isfinite(margins).any(axis=1) | (signs != 0).any(axis=1)
    return Evidence(features, tuple(kinds), places, tuple(names), codes, source_names, seen)


def balanced_positions(shown_first: np.ndarray) -> np.ndarray:
    """Positions of judges that saw either side first in at least a fifth of the pairs; 0 for the others.

    Where the chosen side nearly always comes first, a habit of place cannot be told from good labels.

    Args:
        shown_first: float64 [n, J], as for `gather_evidence`.
    """
    signs = np.sign(shown_first)
    known = np.maximum((signs != 0).sum(axis=0), 1)
    return np.asarray(signs * (np.minimum((signs > 0).sum(axis=0), (signs < 0).sum(axis=0)) >= _LEAST_SHARE * known))


def _scaled(values: np.ndarray) -> np.ndarray:
    """Values over their root mean square, outlying ones cut off; missing ones are 0, and so are constant ones."""
    there = np.isfinite(values)
    size = np.abs(values[there])
    if not size.any() or np.ptp(values[there]) <= _CONSTANT * size.max():
        return np.zeros(len(values))
    middle = np.median(size[size > 0])
    cut = np.where(there, np.clip(np.where(there, values, 0.0) / middle, -_FARTHEST, _FARTHEST), 0.0)
    return np.asarray(cut / np.sqrt(np.mean(cut[there] ** 2)))


def _groups(sources: np.ndarray) -> tuple[np.ndarray, tuple[tuple[str, ...], ...]]:
    """Group of every pair, and the sources of every group: one each, the smallest ones together."""
    found, values = pd.factorize(np.asarray(sources, dtype=object), use_na_sentinel=False)
    names, name_of = np.unique(np.array([str(value) for value in values], dtype=str), return_inverse=True)
    codes = name_of[found]
    order = np.argsort(-np.bincount(codes, minlength=len(names)), kind="stable")
    place = np.empty(len(names), dtype=int)
    place[order] = np.minimum(np.arange(len(names)), _MOST_SOURCES)
    members = tuple(tuple(str(name) for name in names[place == group]) for group in range(place.max(initial=-1) + 1))
    return place[codes], members
