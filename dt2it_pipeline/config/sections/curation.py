"""Section `curation`: the policy that decides which labels are kept, flipped or dropped (arXiv 2604.19544, part 3)."""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from dt2it_pipeline.config.base import Settings, unit


class OutOfFoldSettings(Settings):
    """Voters on feedback pairs that were trained without the prompts of these pairs."""

    folds: int = Field(
        2,
        ge=2,
        le=20,
        json_schema_extra=unit("folds"),
        description="parts into which the prompts of the noisy pairs are split; each is one more training per round",
    )


class EnsembleSettings(Settings):
    """Voters that do not learn from the noisy pairs; they score all pairs in all rounds, beside the rounds' models."""

    seeds: int = Field(
        0,
        ge=0,
        le=16,
        json_schema_extra=unit("reward models"),
        description="reward models of further seeds, trained as the one of round 0 is: one more training each",
    )
    checkpoints: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (),
        strict=False,
        description="folders of reward models, trained here or converted (a relative one counts from the project); "
        "they must not have learned these labels",
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

    policy: Literal["paper", "joint"] = Field(
        "paper",
        description="paper: the published vote, flip and verify. joint: one model of labels, voters and judges, "
        "anchored by pairs whose truth is known",
    )
    flip_fraction: float = Field(
        0.5,
        ge=0,
        le=1,
        json_schema_extra=unit("share"),
        description="paper: share of the negatively voted pairs that is flipped, the most negative first",
    )
    reuse_reward_model: bool = Field(
        False, description="paper: verify with the round's reward model instead of training a verifier"
    )
    wrong_label_cost: float = Field(
        4.0,
        ge=1,
        le=1e6,
        json_schema_extra=unit("right labels"),
        description="joint: how many right labels a wrong one that is kept costs. A label is kept from the probability "
        "cost / (1 + cost) on: 80% at 4",
    )
    keep_probability: float | None = Field(
        None,
        ge=0.5,
        lt=1,
        json_schema_extra=unit("probability"),
        description="joint: least probability of a kept label, in place of wrong_label_cost. null: by that cost",
    )
    call_cost: float = Field(
        0.05,
        ge=0,
        le=1e6,
        json_schema_extra=unit("right labels"),
        description="joint: price of one judge call. A pair is put to the judges where their verdict is expected to "
        "bring more",
    )
    trusted_pairs: int = Field(
        0,
        ge=0,
        le=100_000,
        json_schema_extra=unit("pairs"),
        description="joint: pairs of debiased_pairs that no model is trained on. Their labels come from reference "
        "answers, and so they anchor the joint model; 50 are the least that do. At most a quarter of debiased_pairs is "
        "held out. 0: none is",
    )
    ensemble: EnsembleSettings | None = Field(
        None, description="more voters for all rounds. null: only the models of the rounds vote"
    )
    out_of_fold: OutOfFoldSettings | None = Field(
        None,
        description="joint: from round 1 on, models trained without the prompts of a fold vote on its pairs. null: "
        "only models of earlier rounds vote",
    )

    def deciding(self) -> dict[str, Any]:
        """The settings that decide about pairs once all scores are there, as stages count them in their keys."""
        return self.model_dump(mode="json", exclude={"ensemble", "out_of_fold", "trusted_pairs"})

    @model_validator(mode="after")
    def _published_policy_hears_every_voter_on_every_pair(self) -> CurationSettings:
        if self.out_of_fold is not None and self.policy == "paper":
            raise ValueError(
                "out_of_fold needs the policy `joint`: under `paper` every voter scores every pair, and a fold's "
                "scores its own alone"
            )
        return self

    @model_validator(mode="after")
    def _trusted_pairs_are_of_use(self) -> CurationSettings:
        if self.trusted_pairs and self.policy == "paper":
            raise ValueError("trusted_pairs needs the policy `joint`: `paper` has no use for them")
        return self
