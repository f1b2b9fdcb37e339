"""What a curation method sees of a set, and the table that it answers with.

What belongs here: tables turned into arrays that every method uses. What does not: the truth, which no method sees.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

VERDICTS = {"chosen": 1.0, "rejected": -1.0, "tie": 0.0}


class NotApplicable(Exception):
    """A method needs evidence (voters, judges, an audit, a package) that is not there; the text says which."""


class Refused(NotApplicable):
    """A method of the project raised an error for users on evidence that it should take; the text is the error's."""


@dataclass(frozen=True)
class Evidence:
    """Pairs and what is known of them.

    Attributes:
        pairs: pair_id, source, chosen_id, rejected_id and perhaps the texts chosen and rejected; n rows.
        scores: response_id, voter, score; may be empty.
        votes: pair_id, judge, order, better_id, verdict; may be empty.
        audit: pair_id, better_id of a random sample that a person checked; None without an audit.
        seed: for methods that draw.
    """

    pairs: pd.DataFrame
    scores: pd.DataFrame
    votes: pd.DataFrame
    audit: pd.DataFrame | None = None
    seed: int = 0

    @cached_property
    def voters(self) -> tuple[str, ...]:
        """The voters, in the order in which `scores` names them first."""
        return tuple(self.scores["voter"].unique())

    @cached_property
    def judges(self) -> tuple[str, ...]:
        """The judges, in the order in which `votes` names them first."""
        return tuple(self.votes["judge"].unique())

    @cached_property
    def margins(self) -> np.ndarray:
        """Margins chosen minus rejected, each voter's divided by their root mean square: float64 [n, voters].

        NaN where a side has no score. The sign stays what the voter said: nothing is subtracted.
        """
        table = self.scores.pivot_table(index="response_id", columns="voter", values="score", aggfunc="mean")
        table = table.reindex(columns=list(self.voters))
        chosen = table.reindex(self.pairs["chosen_id"]).to_numpy(dtype=np.float64)
        made = chosen - table.reindex(self.pairs["rejected_id"]).to_numpy(dtype=np.float64)
        count = np.maximum(np.isfinite(made).sum(axis=0), 1)
        scale = np.sqrt(np.nansum(made**2, axis=0) / count)
        return np.asarray(made / np.where(scale > 0, scale, 1.0))

    @cached_property
    def margin(self) -> np.ndarray:
        """Mean of the margins over the voters that scored both sides: float64 [n]; 0 where none did."""
        usable = np.isfinite(self.margins)
        return np.asarray(np.nansum(self.margins, axis=1) / np.maximum(usable.sum(axis=1), 1))

    @cached_property
    def verdicts(self) -> np.ndarray:
        """Verdicts, 1 for the label, -1 against it, 0 a tie, the mean over orders: float64 [n, judges].

        NaN where a judge gave none. A null verdict counts as none.
        """
        rows = self.votes.assign(value=self.votes["verdict"].map(VERDICTS).astype(np.float64))
        table = rows.pivot_table(index="pair_id", columns="judge", values="value", aggfunc="mean")
        table = table.reindex(index=self.pairs["pair_id"], columns=list(self.judges))
        return np.asarray(table.to_numpy(dtype=np.float64))

    @cached_property
    def net(self) -> np.ndarray:
        """Judges for the label minus judges against it: float64 [n]."""
        return np.asarray(np.nansum(np.sign(self.verdicts), axis=1), dtype=np.float64)

    @cached_property
    def calls(self) -> np.ndarray:
        """Judge calls that the votes on a pair cost, one per row of `votes`: int64 [n]."""
        counts = self.votes["pair_id"].value_counts()
        return counts.reindex(self.pairs["pair_id"]).fillna(0).to_numpy(dtype=np.int64)

    @cached_property
    def longer(self) -> np.ndarray:
        """Log length of the chosen text minus that of the rejected one: float64 [n]; 0 without texts."""
        if not {"chosen", "rejected"} <= set(self.pairs.columns):
            return np.zeros(len(self.pairs))
        chosen, rejected = (self.pairs[side].str.len().to_numpy(dtype=np.float64) for side in ("chosen", "rejected"))
        return np.asarray(np.log1p(chosen) - np.log1p(rejected))

    @cached_property
    def audited(self) -> np.ndarray:
        """Bool [n]: the pairs of the audit."""
        if self.audit is None:
            return np.zeros(len(self.pairs), dtype=bool)
        return self.pairs["pair_id"].isin(self.audit["pair_id"]).to_numpy(dtype=bool)

    @cached_property
    def audited_right(self) -> np.ndarray:
        """Bool [audited pairs, in the order of `pairs`]: their label is right."""
        if self.audit is None:
            return np.zeros(0, dtype=bool)
        rows = self.pairs[self.audited]
        better = rows["pair_id"].map(self.audit.set_index("pair_id")["better_id"])
        return (better == rows["chosen_id"]).to_numpy(dtype=bool)

    @cached_property
    def swapped(self) -> np.ndarray:
        """Bool [n], drawn: pairs whose label side is called side b by methods that know no label beside others.

        Without the draw every label would name the same class, and a class prior would swallow it.
        """
        return np.random.default_rng(self.seed).random(len(self.pairs)) < 0.5

    def need_voters(self, least: int = 1) -> None:
        """Raise NotApplicable where there are fewer voters."""
        if len(self.voters) < least:
            raise NotApplicable("needs a voter" if least == 1 else f"needs {least} voters")

    def need_judges(self, least: int = 1) -> None:
        """Raise NotApplicable where there are fewer judges."""
        if len(self.judges) < least:
            raise NotApplicable("needs a judge" if least == 1 else f"needs {least} judges")


def answer(
    evidence: Evidence,
    keep: np.ndarray | None = None,
    flip: np.ndarray | None = None,
    score: np.ndarray | None = None,
    probability: np.ndarray | None = None,
    calls: np.ndarray | None = None,
) -> pd.DataFrame:
    """A method's answer about n pairs.

    Args:
        evidence: what it answers about.
        keep: bool [n], all where None.
        flip: bool [n], none where None; a flip is meant for dropped pairs, too, where they are ranked.
        score: float [n], how sure the method is of its label, for ranking; all alike where None.
        probability: float [n] in [0, 1], that the method's label is right; NaN (None: everywhere) where it claims none.
        calls: int [n], judge calls used; none where None.

    Returns:
        pair_id, keep, flip, probability, score, calls; one row per pair in the order of `evidence.pairs`.
    """
    count = len(evidence.pairs)
    return pd.DataFrame(
        {
            "pair_id": evidence.pairs["pair_id"].to_numpy(),
            "keep": np.ones(count, dtype=bool) if keep is None else keep,
            "flip": np.zeros(count, dtype=bool) if flip is None else flip,
            "probability": np.full(count, np.nan) if probability is None else probability,
            "score": np.zeros(count) if score is None else score,
            "calls": np.zeros(count, dtype=np.int64) if calls is None else calls,
        }
    )


def by_probability(
    evidence: Evidence, right: np.ndarray, least: float, calls: np.ndarray | None = None
) -> pd.DataFrame:
    """The answer that follows from the probability that a label is right, float [n].

    The more likely label is taken, and kept where its probability is at least `least`.
    """
    sure = np.maximum(right, 1 - right)
    return answer(evidence, sure >= least, right < 0.5, sure, sure, calls)
