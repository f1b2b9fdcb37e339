"""Section `judging`, and the judges that it and other sections choose from."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag, model_validator

from dt2it_pipeline.config.base import DEMO_BASE_MODEL, Settings, kind_of
from dt2it_pipeline.config.models import MODEL_NAME, EndpointSettings, VllmSettings


class _AskedInWords(Settings):
    """What every judge that is a model has in common."""

    name: str = Field(min_length=1, description="how judgements call this judge")
    max_new_tokens: int = Field(4096, ge=16, le=131_072, description="tokens of a reply")
    max_pixels: int = Field(1_310_720, ge=1024, description="images are scaled down to this many pixels")
    temperature: float = Field(0.0, ge=0, le=2, description="of the first attempt; later ones use at least 0.5")
    attempts: int = Field(3, ge=1, le=20, description="times a judge is asked whose reply cannot be used")


class ReferenceJudgeSettings(Settings):
    """Rules that compare a response with the reference answer; no model is asked."""

    kind: Literal["reference"] = "reference"
    name: str = Field("reference", min_length=1)


class EndpointJudgeSettings(_AskedInWords, EndpointSettings):
    """A model behind an endpoint, asked in words."""

    kind: Literal["endpoint"] = "endpoint"


class VllmJudgeSettings(_AskedInWords, VllmSettings):
    """A model that vLLM runs here, asked in words; its replies are constrained to the form of a judgement."""

    kind: Literal["vllm"] = "vllm"


class _Likelihood(Settings):
    """A model of transformers whose probabilities are read; it writes nothing."""

    kind: Literal["likelihood"] = "likelihood"
    name: str = Field(min_length=1, description="how judgements call this judge")
    model: str = Field(DEMO_BASE_MODEL, min_length=1, description=MODEL_NAME)
    batch: int = Field(64, ge=1, description="sequences per forward pass")


class LikelihoodJudgeSettings(_Likelihood):
    """Judges responses by their likelihood; `judges.likelihood.model` has the formulas."""

    measure: Literal["evidence", "mean_log_likelihood", "yes"] = Field(
        "evidence",
        description="evidence: how much more probable the image makes one response than the other; judges pairs "
        "only. mean_log_likelihood (per token), or yes (P(yes), asked whether it is correct): scores, in all modes",
    )

    @property
    def scores(self) -> bool:
        """Whether it gives every response a number of its own."""
        return self.measure != "evidence"


class LikelihoodCheckSettings(_Likelihood):
    """Tells whether two texts say the same, by a probability; `judges.likelihood.model` has the formulas."""

    asks: Literal["same_content", "right"] = Field(
        "same_content",
        description="P(yes) to whether the two say the same; or the probability that, with the image, both are right "
        "answers or both are not",
    )
    threshold: float = Field(0.5, gt=0, lt=1, description="least probability of texts that count as the same")


class WordsCheckSettings(Settings):
    """No model tells whether two texts say the same: numbers and the reference answer do, which are compared anyway.

    For short factual questions. A text that they cannot check, for want of a short reference, is quarantined.
    """

    kind: Literal["words"] = "words"
    name: str = Field("words", min_length=1)


JudgeChoice: TypeAlias = ReferenceJudgeSettings | EndpointJudgeSettings | VllmJudgeSettings | LikelihoodJudgeSettings


EndpointChoice: TypeAlias = Annotated[EndpointJudgeSettings, Tag("endpoint")]


VllmChoice: TypeAlias = Annotated[VllmJudgeSettings, Tag("vllm")]


class JudgingSettings(Settings):
    """Who judges sampled responses, in which modes and orders.

    `diversity: uniform` leaves answers to another image unjudged until they are needed: where the judges find all
    answers of a prompt alike, they are judged too (all are good), or the reference answer is (all are bad).
    """

    judges: tuple[
        Annotated[
            Annotated[ReferenceJudgeSettings, Tag("reference")]
            | EndpointChoice
            | VllmChoice
            | Annotated[LikelihoodJudgeSettings, Tag("likelihood")],
            Discriminator(kind_of),
        ],
        ...,
    ] = Field((ReferenceJudgeSettings(),), strict=False, min_length=1, description="each judges everything")
    modes: tuple[Literal["listwise", "pointwise", "pairwise"], ...] = Field(
        ("listwise", "pointwise"), strict=False, min_length=1, description="all must agree on the order of a pair"
    )
    orders: int = Field(1, ge=1, le=8, description="presentation orders per list, none of them the identity")
    diversity: Literal["always", "uniform"] = Field(
        "always", description="judge answers to another image always, or where the others are all alike"
    )
    uniform_spread: float = Field(
        1.0, ge=0, le=10, description="uniform: overall scores of a prompt that lie no further apart are alike"
    )
    uniform_high: float = Field(6.0, ge=0, le=10, description="uniform: a mean overall score from here on is good")

    @model_validator(mode="after")
    def _judges_fit(self) -> JudgingSettings:
        repeated = [name for name, count in Counter(judge.name for judge in self.judges).items() if count > 1]
        if repeated:
            raise ValueError(f"judge names must differ, found {repeated[0]!r} more than once")
        if not {"listwise", "pointwise"} & set(self.modes):
            raise ValueError("modes needs listwise or pointwise: the strength of a pair comes from scores")
        scoring = [judge for judge in self.judges if judge.kind != "likelihood" or judge.scores]
        if not scoring:
            raise ValueError(
                "a likelihood judge gives no scores by `measure: evidence`; name another measure, or a judge of "
                "another kind beside it"
            )
        if len(scoring) < len(self.judges) and "pairwise" not in self.modes:
            raise ValueError("a likelihood judge with `measure: evidence` judges pairs: add pairwise to modes")
        return self

    @property
    def heavy(self) -> bool:
        """Whether a judge loads a model on this machine."""
        return any(judge.kind in ("vllm", "likelihood") for judge in self.judges)

    @property
    def in_words(self) -> bool:
        """Whether a judge is asked in words, those of the templates."""
        return any(judge.kind in ("vllm", "endpoint") for judge in self.judges)

    @property
    def yes_or_no(self) -> bool:
        """Whether a judge is asked what yes or no answers."""
        return any(judge.kind == "likelihood" and judge.measure == "yes" for judge in self.judges)
