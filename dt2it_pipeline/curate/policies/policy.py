"""What a curation policy is: it votes on labels, says which pairs are contested, and decides with people and judges.

`choice` takes one by name. What belongs here: what all policies take and give. What does not: any of their arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import pandas as pd

from dt2it_pipeline.curate.published_algorithm import VerifyResult, VoteResult

Ask = Callable[[pd.DataFrame], pd.DataFrame]  # pairs -> votes: pair_id, judge, order, verdict


@dataclass(frozen=True)
class Anchor:
    """What is known to be true; a policy that asks for no anchor does not look at it.

    Attributes:
        trusted: other pairs whose chosen side is the better one, and whose labels no voter learned; empty: none. For
            `decide` they have `votes`, as `vote` gives them back.
        audit: pair_id, better_id (null: neither), a row per answer, of pairs that were drawn at random and checked.
    """

    trusted: pd.DataFrame = field(default_factory=pd.DataFrame)
    audit: pd.DataFrame = field(default_factory=lambda: pd.DataFrame({"pair_id": [], "better_id": []}, dtype="str"))


@dataclass(frozen=True)
class Vote:
    """Step 1 of a policy.

    Attributes:
        result: the voted pairs, and those without a voter.
        trusted: the anchor's trusted pairs with their `votes`; empty where the policy takes none.
        metadata: what was fitted.
        warnings: what a reader must look at.
    """

    result: VoteResult
    trusted: pd.DataFrame = field(default_factory=pd.DataFrame)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Decision:
    """What became of all pairs of step 2: they are those of `kept`, `annotated` and `dropped` together.

    Attributes:
        kept: verified pairs that nobody was asked about, and that stay as they are.
        annotated: all other pairs that stay.
        dropped: with `reason` and `detail`.
        asked: pairs that judges were asked about.
        votes: the judges' votes.
        swapped: how many annotated pairs changed sides.
        reopened: verified pairs that are not among `kept`.
        beyond_budget: pairs dropped because the budget did not reach them.
        metadata: what was fitted.
        label_right: pair_id, probability (0 to 1) that the label as given is right; empty under a policy without one.
        calibration: computes what is claimed of pairs whose truth is known, and observed: `joint.calibration`.
    """

    kept: pd.DataFrame
    annotated: pd.DataFrame
    dropped: pd.DataFrame
    asked: pd.DataFrame
    votes: pd.DataFrame
    swapped: int
    reopened: int
    beyond_budget: int
    metadata: Mapping[str, Any] = field(default_factory=dict)
    label_right: pd.DataFrame = field(default_factory=lambda: pd.DataFrame({"pair_id": [], "probability": []}))
    calibration: Callable[[], pd.DataFrame] = pd.DataFrame


class Policy(Protocol):
    """A policy.

    `has_verifier`: `check` needs the scores of a model that is trained on the voted pairs. `takes_anchor`: `vote` and
    `decide` look at the anchor, and `vote` at which pairs the voters were trained on.
    """

    name: ClassVar[str]
    has_verifier: ClassVar[bool]
    takes_anchor: ClassVar[bool]

    def vote(
        self, pairs: pd.DataFrame, scores: pd.DataFrame, trained_on: Mapping[str, Collection[str]], anchor: Anchor
    ) -> Vote:
        """Relabel pairs by the voters' scores; `trained_on` is voter -> pair ids."""
        ...

    def check(self, voted: pd.DataFrame, scores: pd.DataFrame) -> VerifyResult:
        """Split voted pairs into kept and contested; `scores` are the verifier's, and not looked at without one."""
        ...

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
        """Decide about all pairs of step 2.

        Args:
            verified: pairs that `check` keeps.
            contested: pairs that it does not.
            people: votes of people: pair_id, judge, order, verdict.
            ask: asks the judges; it may be called several times, and never twice about a pair.
            judges: calls per pair.
            calls: most judge calls; None is no limit.
            anchor: as for `vote`.

        Raises:
            CurationError: malformed tables or repeated pair ids.
        """
        ...
