"""Simulated pairs with known truth: labels and voters that err in several ways, and auditors who err now and then."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import norm

SHAPES = ("normal", "binary", "heavy", "rounded")
ERRORS = ("even", "hard", "alike")
_ALIKE = 0.8  # correlation of the voters' errors


@dataclass(frozen=True)
class World:
    """How a world is made.

    Attributes:
        pairs: how many.
        voters: how many.
        label: share of right labels.
        voter: share of pairs that each voter gets right.
        shape: of margins: normal, binary, heavy (a few are huge) or rounded.
        errors: of labels: even, hard (where voters are unsure), or alike (where voters err, too).
        seed: of everything.
    """

    pairs: int
    voters: int
    label: float
    voter: float
    shape: str
    errors: str
    seed: int

    def made(self) -> tuple[pd.DataFrame, np.ndarray]:
        """A table with the scores `v0`, `v1`, ... of chosen sides and `other` of rejected ones, and right labels."""
        rng = np.random.default_rng(self.seed)
        common, middle = rng.standard_normal((self.pairs, 1)), norm.ppf(self.voter)
        own = rng.standard_normal((self.pairs, self.voters))
        margins = middle + np.sqrt(_ALIKE) * common + np.sqrt(1 - _ALIKE) * own  # for the better side positive
        uneasy = {"even": 0.0, "hard": -np.abs(middle + common[:, 0]), "alike": -common[:, 0]}[self.errors]
        order = np.argsort(uneasy + rng.standard_normal(self.pairs), kind="stable")  # the last ones are wrong
        right = np.ones(self.pairs, dtype=bool)
        wrong = rng.binomial(self.pairs, 1 - self.label)
        right[order[self.pairs - wrong :]] = False
        forms = {"binary": np.sign(margins), "heavy": np.sign(margins) * margins**4, "rounded": np.round(margins)}
        scores = forms.get(self.shape, margins) * np.where(right, 1, -1)[:, None]
        table = pd.DataFrame(scores, columns=[f"v{place}" for place in range(self.voters)])
        return table.assign(pair_id=[f"p{row}" for row in range(self.pairs)], other=0.0), right


def answers(drawn: pd.Series, right: np.ndarray, auditor: float, seed: int) -> pd.DataFrame:
    """An audit: pair_id, better_id, of an auditor who is right in a share of `auditor`.

    Args:
        drawn: ids of the pairs to check.
        right: bool [pairs], whether each label of the world is right.
        auditor: one who is more often right is right where another is, too.
        seed: of the errors.
    """
    errs = np.random.default_rng([seed, 1]).random(len(right)) >= auditor
    rows = drawn.str.removeprefix("p").astype(int).to_numpy()
    return pd.DataFrame({"pair_id": drawn, "better_id": np.where((right ^ errs)[rows], "chosen", "rejected")})
