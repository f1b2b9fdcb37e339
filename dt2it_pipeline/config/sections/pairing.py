"""Section `pairing`: which judged responses become pairs, over which strengths, and how style is balanced."""

from __future__ import annotations

from typing import Annotated

from pydantic import Discriminator, Field, Tag, model_validator

from dt2it_pipeline.config.base import Settings, kind_of, unit
from dt2it_pipeline.config.sections.judging import (
    EndpointChoice,
    LikelihoodCheckSettings,
    VllmChoice,
    WordsCheckSettings,
)


class StrengthBin(Settings):
    """Pairs whose strength is at least `from_strength` (and below the next bin's), and how many of them are wanted."""

    from_strength: float = Field(
        ge=0, le=10, json_schema_extra=unit("score, 0 to 10"), description="least strength of the pairs of this bin"
    )
    share: float = Field(
        gt=0, le=1, json_schema_extra=unit("share"), description="share of all pairs that this bin should have"
    )


class RestyleSettings(Settings):
    """One rewriter that puts both sides of every pair into one style; what they say stays the same.

    This is checked in three ways: numbers may not change; the answer, compared with the reference, may not change; and
    `check` decides whether the two texts say the same.
    """

    rewriter: Annotated[EndpointChoice | VllmChoice, Discriminator(kind_of)] = Field(
        description="the model that rewrites both sides"
    )
    check: (
        Annotated[
            EndpointChoice
            | VllmChoice
            | Annotated[LikelihoodCheckSettings, Tag("likelihood")]
            | Annotated[WordsCheckSettings, Tag("words")],
            Discriminator(kind_of),
        ]
        | None
    ) = Field(
        None,
        description="what decides whether a rewritten text still says the same. null: the rewriter does. Where both "
        "are different models on one GPU, serve one of them as an endpoint",
    )
    style: str = Field(
        "one plain paragraph without headings, lists or bold type, and without opening or closing courtesies",
        min_length=1,
        description="the style that both sides get, as the rewriter is asked for it",
    )

    @property
    def heavy(self) -> bool:
        """Whether the rewriter or the check loads a model on this machine."""
        return any(each is not None and each.kind in ("vllm", "likelihood") for each in (self.rewriter, self.check))

    @property
    def gpus_per_copy(self) -> int:
        """GPUs that a copy of the models takes, where there are any."""
        local = (each for each in (self.rewriter, self.check) if each is not None and each.kind == "vllm")
        return max((each.tensor_parallel for each in local), default=1)

    @property
    def runs_vllm(self) -> bool:
        """Whether vLLM runs a model on this machine."""
        return any(each is not None and each.kind == "vllm" for each in (self.rewriter, self.check))


class PairingSettings(Settings):
    """Pairs over a spread of strengths, both sides in one style."""

    max_pairs_per_prompt: int = Field(
        3, ge=1, le=100, json_schema_extra=unit("pairs"), description="most pairs that are made of one prompt"
    )
    min_strength: float = Field(
        1.0,
        ge=0,
        le=10,
        json_schema_extra=unit("score, 0 to 10"),
        description="least difference between the overall scores of the two sides",
    )
    strength_bins: tuple[StrengthBin, ...] = Field(
        (), strict=False, description="target histogram of strengths. Empty: bins of width 1 with equal shares"
    )
    near_identical: float = Field(
        0.95,
        gt=0,
        le=1,
        json_schema_extra=unit("similarity"),
        description="two texts of 20 or more words that are more similar than this make no pair",
    )
    style_probe_bound: float = Field(
        0.55,
        ge=0.5,
        le=1,
        json_schema_extra=unit("AUC"),
        description="the asset check fails where style alone predicts the chosen side with a higher AUC",
    )
    balance_models: bool = Field(
        True,
        description="true: which model wrote a side counts as style, where answers come from several models, so none "
        "of them wins more often than the bound allows. false: a better model may always win, and the asset reports it",
    )
    restyle: RestyleSettings | None = Field(
        None, description="rewrites both sides in one style. null: both sides stay as they were sampled"
    )

    @model_validator(mode="after")
    def _bins_ascend(self) -> PairingSettings:
        edges = [item.from_strength for item in self.strength_bins]
        if edges != sorted(set(edges)):
            raise ValueError("strength_bins must ascend by from_strength")
        if edges and abs(sum(item.share for item in self.strength_bins) - 1) > 0.01:
            raise ValueError("the shares of strength_bins must sum to 1")
        return self
