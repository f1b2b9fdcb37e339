"""Section `pairing`: pairs over a spread of strengths, balanced in style."""

from __future__ import annotations

from typing import Annotated

from pydantic import Discriminator, Field, Tag, model_validator

from dt2it_pipeline.config.base import Settings, kind_of
from dt2it_pipeline.config.judging import EndpointChoice, LikelihoodCheckSettings, VllmChoice, WordsCheckSettings


class StrengthBin(Settings):
    """Pairs whose strength is at least `from_strength` (and below the next bin's), and how many of them are wanted."""

    from_strength: float = Field(ge=0, le=10)
    share: float = Field(gt=0, le=1, description="share of all pairs that this bin should have")


class RestyleSettings(Settings):
    """One rewriter that puts both sides of every pair into one style; metadata stay.

    That they do is checked in three ways: numbers and, by comparison with the reference, the answer may not change; and
    `check` says whether the two texts say the same.
    """

    rewriter: Annotated[EndpointChoice | VllmChoice, Discriminator(kind_of)]
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
        description="who tells whether a rewritten text still says the same; the rewriter when absent. Of two "
        "different models on one GPU, serve one as an endpoint",
    )
    style: str = Field(
        "one plain paragraph without headings, lists or bold type, and without opening or closing courtesies",
        min_length=1,
        description="the style that both sides get, in words",
    )

    @property
    def heavy(self) -> bool:
        """Whether the rewriter or the check loads a model on this machine."""
        return any(each is not None and each.kind in ("vllm", "likelihood") for each in (self.rewriter, self.check))


class PairingSettings(Settings):
    """Pairs over a spread of strengths, both sides in one style."""

    max_pairs_per_prompt: int = Field(3, ge=1, le=100)
    min_strength: float = Field(1.0, ge=0, le=10, description="least difference of overall scores (0 to 10)")
    strength_bins: tuple[StrengthBin, ...] = Field(
        (), strict=False, description="target histogram of strengths; bins 1 wide with equal shares when empty"
    )
    near_identical: float = Field(
        0.95, gt=0, le=1, description="texts of 20 or more words that agree by more than this share make no pair"
    )
    style_probe_bound: float = Field(
        0.55, ge=0.5, le=1, description="the check fails when the probe's AUC is above this"
    )
    balance_models: bool = Field(
        True,
        description="who wrote a side counts as style, where answers come from several models: none of them wins more "
        "often than the bound allows. false: a better model may win always, and the asset only reports it",
    )
    restyle: RestyleSettings | None = Field(None, description="both sides of a pair stay as sampled when absent")

    @model_validator(mode="after")
    def _bins_ascend(self) -> PairingSettings:
        edges = [item.from_strength for item in self.strength_bins]
        if edges != sorted(set(edges)):
            raise ValueError("strength_bins must ascend by from_strength")
        if edges and abs(sum(item.share for item in self.strength_bins) - 1) > 0.01:
            raise ValueError("the shares of strength_bins must sum to 1")
        return self
