"""A user's tables of pairs and scores as the joint model's readers take them, in memory or in files.

What belongs here: what readers may ask of a table. What does not: what its columns mean (`preference_tables`), and
files (`out_of_core.preference_streams`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd

from dt2it_pipeline.curate.pair_frames import length_difference

CHOSEN, REJECTED = "chosen", "rejected"


class GivenPairs(Protocol):
    """A table of pairs."""

    @property
    def frame(self) -> pd.DataFrame:
        """The columns that decide: ids, `source` and scores; others may be missing."""

    @property
    def columns(self) -> pd.Index:
        """The names of all columns."""

    def lengths(self, chosen: str, rejected: str) -> np.ndarray:
        """float64 [n], log length of the text in column `chosen` minus that in `rejected`; 0 without texts."""

    def cells(self, rows: np.ndarray, columns: Sequence[str]) -> pd.DataFrame:
        """Some columns of the rows with these rising numbers, numbered from 0."""

    def close(self) -> None:
        """Stop what reads of it in the background."""


class GivenScores(Protocol):
    """Scores that come in parts."""

    @property
    def columns(self) -> pd.Index:
        """The names of all columns."""

    def __len__(self) -> int: ...

    def parts(self) -> Iterator[pd.DataFrame]:
        """Their rows, some at a time."""


@dataclass(frozen=True)
class PairFrame:
    """A table of pairs in memory."""

    frame: pd.DataFrame

    @property
    def columns(self) -> pd.Index:
        """The names of all columns."""
        return self.frame.columns

    def lengths(self, chosen: str, rejected: str) -> np.ndarray:
        """float64 [n], log length of the text in column `chosen` minus that in `rejected`; 0 without texts."""
        names = [chosen, rejected]
        if not all(name in self.frame and pd.api.types.is_string_dtype(self.frame[name]) for name in names):
            return np.zeros(len(self.frame))
        return length_difference(self.frame[names].set_axis([CHOSEN, REJECTED], axis=1))

    def cells(self, rows: np.ndarray, columns: Sequence[str]) -> pd.DataFrame:
        """Some columns of the rows with these rising numbers, numbered from 0."""
        return self.frame[list(columns)].iloc[rows].reset_index(drop=True)

    def close(self) -> None:
        """Nothing reads of it in the background."""


@dataclass(frozen=True)
class ScoreFrame:
    """A table of scores in memory."""

    frame: pd.DataFrame

    @property
    def columns(self) -> pd.Index:
        """The names of all columns."""
        return self.frame.columns

    def __len__(self) -> int:
        return len(self.frame)

    def parts(self) -> Iterator[pd.DataFrame]:
        """Their rows: all at once."""
        yield self.frame
