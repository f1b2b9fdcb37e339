"""Tables of preference pairs with known truth: labels, voters and judges that err as told."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import norm


@dataclass(frozen=True)
class NoisyWorld:
    """Tables as `clean_preferences` takes them, `truth` (pair_id, better_id), and bool [n] whether labels are right."""

    pairs: pd.DataFrame
    scores: pd.DataFrame
    votes: pd.DataFrame
    truth: pd.DataFrame
    right: np.ndarray

    def audit(self, count: int, seed: int = 0) -> pd.DataFrame:
        """Answers on pairs drawn at random."""
        return self.truth.sample(count, random_state=seed)

    def with_trusted(self, count: int) -> tuple[NoisyWorld, pd.DataFrame]:
        """The first pairs as a world of their own, and the others with the better side chosen. Scores stay together."""
        theirs = self.truth[count:].merge(self.pairs[count:], on="pair_id")
        swapped = (theirs["better_id"] != theirs["chosen_id"]).to_numpy()
        trusted = theirs.assign(
            chosen_id=theirs["chosen_id"].mask(swapped, theirs["rejected_id"]),
            rejected_id=theirs["rejected_id"].mask(swapped, theirs["chosen_id"]),
        )
        own = NoisyWorld(self.pairs[:count], self.scores, self.votes, self.truth[:count], self.right[:count])
        return own, trusted

    def accuracy(self, outcome: pd.Series) -> float:
        """Label accuracy of the pairs that stay."""
        stays, flipped = (outcome != "dropped").to_numpy(), (outcome == "flipped").to_numpy()
        return float((self.right ^ flipped)[stays].mean())


def noisy_world(
    count: int,
    label: float = 0.8,
    voter: float = 0.8,
    voters: int = 3,
    judges: int = 0,
    judge: float = 0.8,
    shape: str = "normal",
    alike: float = 0.8,
    seed: int = 0,
) -> NoisyWorld:
    """Make tables.

    Args:
        count: pairs.
        label: share of right labels.
        voter: share of pairs that each voter gets right.
        voters: how many.
        judges: how many; every one votes on every pair.
        judge: share of right verdicts.
        shape: of margins: normal, binary, heavy (a few are huge) or rounded.
        alike: correlation of the voters' errors.
        seed: of everything.
    """
    rng = np.random.default_rng(seed)
    first = rng.random(count) < 0.5  # the side `a` is the better one
    right = rng.random(count) < label
    label_first = first == right
    common = rng.standard_normal((count, 1))
    margins = norm.ppf(voter) + np.sqrt(alike) * common + np.sqrt(1 - alike) * rng.standard_normal((count, voters))
    forms = {"normal": margins, "binary": np.sign(margins), "heavy": np.sign(margins) * margins**4}
    margins = forms.get(shape, np.round(margins)) * np.where(first, 1, -1)[:, None]
    number = pd.Series(range(count)).astype("str")
    sides = {name: name + number for name in "ab"}
    better = sides["a"].where(first, sides["b"])
    pairs = pd.DataFrame(
        {
            "pair_id": "p" + number,
            "chosen_id": sides["a"].where(label_first, sides["b"]),
            "rejected_id": sides["b"].where(label_first, sides["a"]),
        }
    )
    parts = [
        pd.DataFrame({"response_id": sides[name], "voter": f"v{place}", "score": sign * margins[:, place] / 2})
        for place in range(voters)
        for name, sign in (("a", 1), ("b", -1))
    ]
    scores = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    verdicts = []
    for place in range(judges):
        judged_first = first == (rng.random(count) < judge)
        side = sides["a"].where(judged_first, sides["b"])
        verdicts.append(pd.DataFrame({"pair_id": pairs["pair_id"], "judge": f"j{place}", "better_id": side}))
    votes = pd.concat(verdicts, ignore_index=True) if verdicts else pd.DataFrame()
    truth = pd.DataFrame({"pair_id": pairs["pair_id"], "better_id": better})
    return NoisyWorld(pairs, scores, votes, truth, right)
