"""Sections of a recipe about curation: policies, and the judges of contested pairs (arXiv 2604.19544, part 3)."""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from dt2it_pipeline.config.base import Settings


class OutOfFoldSettings(Settings):
    """Voters for feedback pairs that were trained without their prompts; each fold is one more training per round."""

    folds: int = Field(2, ge=2, le=20, description="parts into which the noisy pairs' prompts are cut")


class EnsembleSettings(Settings):
    """Voters that learn from no feedback and judge all pairs in all rounds, beside the rounds' own models."""

    seeds: int = Field(
        0, ge=0, le=16, description="reward models of further seeds, trained as round 0's is: one more training each"
    )
    checkpoints: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (),
        strict=False,
        description="folders of reward models, of this project or imported; they must not have learned these labels",
    )

    @model_validator(mode="after")
    def _somebody_votes_and_by_a_name_of_its_own(self) -> EnsembleSettings:
        if not self.seeds and not self.checkpoints:
            raise ValueError("an ensemble needs seeds, checkpoints or both")
        names = [PurePath(path).name for path in self.checkpoints]
        if len(set(names)) < len(names):
            raise ValueError(f"checkpoints vote under the names of their folders, which must differ: {names}")
        return self


class CurationSettings(Settings):
    """How labels are cleaned (arXiv 2604.19544, vote, flip and verify), or by another policy."""

    policy: Literal["paper", "posterior"] = Field(
        "paper", description="the published vote, flip and verify; or by the probability that a label is right"
    )
    flip_fraction: float = Field(0.5, ge=0, le=1, description="paper: share of the negatively voted pairs to flip")
    reuse_reward_model: bool = Field(
        False, description="paper: verify with the round's reward model instead of training a verifier"
    )
    keep_probability: float = Field(
        0.8, ge=0.5, lt=1, description="posterior: a label that is right with less than this goes to the judges"
    )
    keep_judged_probability: float = Field(
        0.8,
        ge=0.5,
        lt=1,
        description="posterior: a judged pair whose better side is right with less than this is dropped; 0.5 drops "
        "none. What is hard to judge is no chance sample, so dropping it leaves a bias",
    )
    smallest_source: int = Field(
        100, ge=1, description="posterior: pairs; smaller sources share one estimate of their share of right labels"
    )
    ensemble: EnsembleSettings | None = Field(
        None, description="more voters for all rounds; when absent, only the rounds' own models vote"
    )
    out_of_fold: OutOfFoldSettings | None = Field(
        None,
        description="posterior: from round 1 on, models trained without a fold's prompts vote on its pairs; when "
        "absent, only models of earlier rounds do",
    )

    def deciding(self) -> dict[str, Any]:
        """The settings that decide about pairs once all scores are there, as stages count them in their keys."""
        return self.model_dump(mode="json", exclude={"ensemble", "out_of_fold"})

    @model_validator(mode="after")
    def _published_policy_hears_every_voter_on_every_pair(self) -> CurationSettings:
        if self.out_of_fold is not None and self.policy == "paper":
            raise ValueError(
                "out_of_fold needs the policy `posterior`: under `paper` every voter scores every pair, and a fold's "
                "scores its own alone"
            )
        return self
