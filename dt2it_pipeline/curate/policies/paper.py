"""The policy `paper`: the published steps as they are (`published_algorithm`).

The mean margin of all voters decides, half of the negative pairs are flipped, a verifier that is trained on the result
confirms or contests, and people and judges decide the contested pairs. What belongs here: the order of the published
steps. What does not: the steps.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd

from dt2it_pipeline.curate.annotation.budget import BEYOND, within_budget
from dt2it_pipeline.curate.pair_frames import select_rows, stack
from dt2it_pipeline.curate.policies.policy import Anchor, Ask, Decision, Vote
from dt2it_pipeline.curate.published_algorithm import (
    VerifyResult,
    decide_by_people,
    resolve_annotations,
    verify,
    vote_and_flip,
)


@dataclass(frozen=True)
class PaperPolicy:
    """The published policy; `flip_fraction`: share of the negatively voted pairs that is flipped, 0 to 1."""

    name: ClassVar[str] = "paper"
    has_verifier: ClassVar[bool] = True
    takes_anchor: ClassVar[bool] = False

    flip_fraction: float

    def vote(
        self, pairs: pd.DataFrame, scores: pd.DataFrame, trained_on: Mapping[str, Collection[str]], anchor: Anchor
    ) -> Vote:
        """`published_algorithm.vote_and_flip`: every voter counts on every pair, whatever it was trained on."""
        return Vote(vote_and_flip(pairs, scores, self.flip_fraction))

    def check(self, voted: pd.DataFrame, scores: pd.DataFrame) -> VerifyResult:
        """`published_algorithm.verify`."""
        return verify(voted, scores)

    def decide(
        self,
        verified: pd.DataFrame,
        contested: pd.DataFrame,
        people: pd.DataFrame,
        ask: Ask,
        judges: int,
        calls: int | None,
        anchor: Anchor,
    ) -> Decision:
        """People decide the pairs that they voted on, judges the other contested ones; strength is in votes.

        A budget is spent on the least certain pairs first. What judges leave undecided is dropped.
        """
        settled, _ = decide_by_people(stack(verified, contested), people)
        theirs = {*settled.annotated["pair_id"], *settled.dropped["pair_id"]}
        kept, left = (
            select_rows(part, ~part["pair_id"].isin(theirs).to_numpy(dtype=bool)) for part in (verified, contested)
        )
        asked, beyond = within_budget(left, calls, judges)
        votes = ask(asked)
        resolved = resolve_annotations(asked, votes, judges)
        dropped = stack(settled.dropped, resolved.dropped, beyond)
        return Decision(
            kept=kept,
            annotated=stack(settled.annotated, resolved.annotated),
            dropped=dropped,
            asked=asked,
            votes=votes,
            swapped=settled.swapped + resolved.swapped,
            reopened=len(verified) - len(kept),
            beyond_budget=int((dropped["reason"] == BEYOND).sum()),
        )
