"""Curation policies: how votes become labels, which pairs judges see, and what the judges decide.

The recipe's `curation.policy` chooses:

- `paper`: the published steps as they are (`published_algorithm`). The mean margin of all voters decides, half of the
  negative pairs are flipped, a verifier that is trained on the result confirms or contests, and judges decide contested
  pairs.
- `posterior`: the probability that a label is right, from voters that never saw it (`posterior`). There is no verifier.
  Judges' verdicts on uncertain pairs count as much as their fitted accuracy allows, and show where the vote is
  overconfident (`judge_calibration`).

What belongs here: the choice and its parameters. What does not: the arithmetic.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import pandas as pd
from scipy.special import logit

from dt2it_pipeline.config.sections.curation import CurationSettings
from dt2it_pipeline.curate.judge_calibration import calibrate_judges, reopened
from dt2it_pipeline.curate.posterior import posterior_vote, split_confident
from dt2it_pipeline.curate.published_algorithm import (
    AnnotationResult,
    VerifyResult,
    VoteResult,
    decide_by_people,
    resolve_annotations,
    verify,
    vote_and_flip,
)

PERSON_RIGHT = 0.98  # assumed accuracy of people's votes; a majority decides whatever it is


class Policy(Protocol):
    """A policy.

    `has_verifier`: `check` needs the scores of a model that is trained on the voted pairs. `heeds_training`: `vote`
    asks which pairs the voters were trained on. `surest_first`: the order in which a budget of calls is spent; see
    `budget.within_budget`.
    """

    name: ClassVar[str]
    has_verifier: ClassVar[bool]
    heeds_training: ClassVar[bool]
    surest_first: ClassVar[bool]

    def vote(
        self, pairs: pd.DataFrame, scores: pd.DataFrame, trained_on: Mapping[str, Collection[str]]
    ) -> tuple[VoteResult, dict[str, Any]]:
        """Relabel pairs by the voters' scores; `trained_on` is voter -> pair ids. Returns the result and its
        metadata.
        """
        ...

    def check(self, voted: pd.DataFrame, scores: pd.DataFrame) -> VerifyResult:
        """Split voted pairs into kept and contested; `scores` are the verifier's, and not looked at without one."""
        ...

    def settle(self, contested: pd.DataFrame, votes: pd.DataFrame) -> tuple[AnnotationResult, pd.DataFrame]:
        """What becomes of contested pairs that people voted on, and the other contested pairs."""
        ...

    def reopened(self, verified: pd.DataFrame, judged: pd.DataFrame, votes: pd.DataFrame, judges: int) -> np.ndarray:
        """Bool [verified pairs]: those that the votes on `judged`, which are other pairs, make uncertain."""
        ...

    def dropped_without_verdict(
        self, unjudged: pd.DataFrame, judged: pd.DataFrame, votes: pd.DataFrame, judges: int
    ) -> np.ndarray:
        """Bool [unjudged pairs]: reopened pairs without a verdict that are too uncertain to be retained."""
        ...

    def resolve(
        self, contested: pd.DataFrame, votes: pd.DataFrame, judges: int
    ) -> tuple[AnnotationResult, dict[str, Any]]:
        """What becomes of contested pairs after the votes of so many judges; returns the result and its metadata."""
        ...


@dataclass(frozen=True)
class PaperPolicy:
    """The published policy."""

    name: ClassVar[str] = "paper"
    has_verifier: ClassVar[bool] = True
    heeds_training: ClassVar[bool] = False
    surest_first: ClassVar[bool] = False

    flip_fraction: float

    def vote(
        self, pairs: pd.DataFrame, scores: pd.DataFrame, trained_on: Mapping[str, Collection[str]]
    ) -> tuple[VoteResult, dict[str, Any]]:
        """`published_algorithm.vote_and_flip`: every voter counts on every pair, whatever it was trained on."""
        return vote_and_flip(pairs, scores, self.flip_fraction), {}

    def check(self, voted: pd.DataFrame, scores: pd.DataFrame) -> VerifyResult:
        """`published_algorithm.verify`."""
        return verify(voted, scores)

    def settle(self, contested: pd.DataFrame, votes: pd.DataFrame) -> tuple[AnnotationResult, pd.DataFrame]:
        """`published_algorithm.decide_by_people`, with strength in votes, as after the judges' votes."""
        return decide_by_people(contested, votes)

    def reopened(self, verified: pd.DataFrame, judged: pd.DataFrame, votes: pd.DataFrame, judges: int) -> np.ndarray:
        """None: what the verifier confirms is kept."""
        return np.zeros(len(verified), dtype=bool)

    def dropped_without_verdict(
        self, unjudged: pd.DataFrame, judged: pd.DataFrame, votes: pd.DataFrame, judges: int
    ) -> np.ndarray:
        """None, as none is reopened."""
        return np.zeros(len(unjudged), dtype=bool)

    def resolve(
        self, contested: pd.DataFrame, votes: pd.DataFrame, judges: int
    ) -> tuple[AnnotationResult, dict[str, Any]]:
        """`published_algorithm.resolve_annotations`: the judges decide."""
        return resolve_annotations(contested, votes, judges), {}


@dataclass(frozen=True)
class PosteriorPolicy:
    """Labels by their probability of being right."""

    name: ClassVar[str] = "posterior"
    has_verifier: ClassVar[bool] = False
    heeds_training: ClassVar[bool] = True
    surest_first: ClassVar[bool] = True

    keep_probability: float
    keep_judged_probability: float
    smallest_source: int

    def vote(
        self, pairs: pd.DataFrame, scores: pd.DataFrame, trained_on: Mapping[str, Collection[str]]
    ) -> tuple[VoteResult, dict[str, Any]]:
        """`posterior.posterior_vote`, with the fitted model among the metadata."""
        found = posterior_vote(pairs, scores, trained_on, self.smallest_source)
        model = found.model
        return found, {
            "estimated_label_accuracy": {name: round(share, 4) for name, share in model.label_accuracy.items()},
            "pooled_sources": list(model.pooled),
            "voter_weights": dict(zip(found.voters, model.weights.round(4).tolist(), strict=True)),
            "style_shifts": dict(zip(found.voters, model.style_shifts.round(4).tolist(), strict=True)),
        }

    def check(self, voted: pd.DataFrame, scores: pd.DataFrame) -> VerifyResult:
        """`posterior.split_confident`."""
        return split_confident(voted, self.keep_probability)

    def settle(self, contested: pd.DataFrame, votes: pd.DataFrame) -> tuple[AnnotationResult, pd.DataFrame]:
        """`published_algorithm.decide_by_people`; strength is in nats as for other labels, PERSON_RIGHT per vote."""
        return decide_by_people(contested, votes, float(logit(PERSON_RIGHT)))

    def reopened(self, verified: pd.DataFrame, judged: pd.DataFrame, votes: pd.DataFrame, judges: int) -> np.ndarray:
        """`judge_calibration.reopened`."""
        return reopened(verified, judged, votes, self.keep_probability, judges)

    def dropped_without_verdict(
        self, unjudged: pd.DataFrame, judged: pd.DataFrame, votes: pd.DataFrame, judges: int
    ) -> np.ndarray:
        """`judge_calibration.reopened` with the probability from which judged pairs are kept."""
        return reopened(unjudged, judged, votes, self.keep_judged_probability, judges)

    def resolve(
        self, contested: pd.DataFrame, votes: pd.DataFrame, judges: int
    ) -> tuple[AnnotationResult, dict[str, Any]]:
        """`judge_calibration.calibrate_judges`, with what was fitted among the metadata."""
        found = calibrate_judges(contested, votes, self.keep_judged_probability, judges)
        return found, {
            "estimated_verdict_accuracy": round(found.calibration.accuracy, 4),
            "vote_slope": round(found.calibration.slope, 4),
            "vote_style": round(found.calibration.style, 4),
            "judge_length_bias": round(found.calibration.judge_length_bias, 4),
        }


def make_policy(settings: CurationSettings) -> Policy:
    """The policy that a recipe asks for."""
    if settings.policy == "paper":
        return PaperPolicy(settings.flip_fraction)
    return PosteriorPolicy(settings.keep_probability, settings.keep_judged_probability, settings.smallest_source)
