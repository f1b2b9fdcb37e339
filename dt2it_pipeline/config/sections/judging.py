"""Section `judging`: who judges sampled responses, and the kinds of judges that other sections choose from too."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag, model_validator

from dt2it_pipeline.config.base import DEMO_BASE_MODEL, Settings, kind_of, unit
from dt2it_pipeline.config.compute import ForwardSettings
from dt2it_pipeline.config.models import JUDGE_NAME, MODEL_NAME, EndpointSettings, VllmSettings


class _PromptedJudge(Settings):
    """What judges that write a judgement have in common."""

    name: str = Field(min_length=1, description=JUDGE_NAME)
    max_new_tokens: int = Field(
        4096, ge=16, le=131_072, json_schema_extra=unit("tokens"), description="length limit of a reply"
    )
    max_pixels: int = Field(
        1_310_720, ge=1024, json_schema_extra=unit("pixels"), description="larger images are scaled down to this size"
    )
    temperature: float = Field(
        0.0,
        ge=0,
        le=2,
        json_schema_extra=unit("sampling temperature"),
        description="temperature of the first attempt; later ones use at least 0.5",
    )
    attempts: int = Field(
        3,
        ge=1,
        le=20,
        json_schema_extra=unit("attempts"),
        description="how often a run asks a judge before a reply that cannot be used counts as no judgement",
    )
    max_runs: int = Field(
        3,
        ge=1,
        le=100,
        json_schema_extra=unit("runs"),
        description="a later run asks again, `attempts` times, where no reply could be used; after this many runs the "
        "unusable replies stand. 1: they stand at once",
    )


class ReferenceJudgeSettings(Settings):
    """Rules that compare a response with the reference answer; no model is asked."""

    kind: Literal["reference"] = Field("reference", description="which kind of judge this is")
    name: str = Field("reference", min_length=1, description=JUDGE_NAME)


class EndpointJudgeSettings(_PromptedJudge, EndpointSettings):
    """A model behind an endpoint that writes its judgement."""

    kind: Literal["endpoint"] = Field("endpoint", description="which kind of judge this is")


class VllmJudgeSettings(_PromptedJudge, VllmSettings):
    """A model that vLLM runs here and that writes its judgement; replies are constrained to the form of a judgement."""

    kind: Literal["vllm"] = Field("vllm", description="which kind of judge this is")


class _Likelihood(ForwardSettings):
    """A Transformers model whose probabilities are read; it writes nothing."""

    kind: Literal["likelihood"] = Field("likelihood", description="which kind of judge this is")
    name: str = Field(min_length=1, description=JUDGE_NAME)
    model: str = Field(DEMO_BASE_MODEL, min_length=1, description=MODEL_NAME)


class LikelihoodJudgeSettings(_Likelihood):
    """Judges responses by their likelihood; `judges/likelihood/judges.py` has the formulas."""

    measure: Literal["evidence", "mean_log_likelihood", "yes"] = Field(
        "evidence",
        description="evidence: how much more probable the image makes one response than the other, which judges pairs "
        "only. mean_log_likelihood: per token. yes: probability of `yes` to whether the response is correct. The last "
        "two give scores, in all modes",
    )

    @property
    def scores(self) -> bool:
        """Whether it gives every response a number of its own."""
        return self.measure != "evidence"


class LikelihoodCheckSettings(_Likelihood):
    """Decides by a probability whether two texts say the same; `judges/likelihood/judges.py` has the formulas."""

    asks: Literal["same_content", "right"] = Field(
        "same_content",
        description="same_content: probability of `yes` to whether the two say the same. right: probability that, "
        "with the image, both are right answers or both are not",
    )
    threshold: float = Field(
        0.5,
        gt=0,
        lt=1,
        json_schema_extra=unit("probability"),
        description="least probability of texts that count as the same",
    )


class WordsCheckSettings(Settings):
    """Decides whether two texts say the same without a model: numbers and the reference answer must agree.

    For short factual questions. A text that cannot be checked, because there is no short reference, is quarantined.
    """

    kind: Literal["words"] = Field("words", description="which kind of check this is")
    name: str = Field("words", min_length=1, description="name of the check in the quarantine table")


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
    ] = Field((ReferenceJudgeSettings(),), strict=False, min_length=1, description="every judge judges every response")
    modes: tuple[Literal["listwise", "pointwise", "pairwise"], ...] = Field(
        ("listwise", "pointwise"),
        strict=False,
        min_length=1,
        description="ways in which responses are judged: all of a prompt at once, one by one, or two at a time. All "
        "modes must agree on the order of a pair",
    )
    orders: int = Field(
        1,
        ge=1,
        le=8,
        json_schema_extra=unit("orders"),
        description="shuffled presentation orders per list; two or more measure order consistency",
    )
    diversity: Literal["always", "uniform"] = Field(
        "always",
        description="answers to another image are judged always, or (uniform) only where the other answers of the "
        "prompt all get about the same score",
    )
    uniform_spread: float = Field(
        1.0,
        ge=0,
        le=10,
        json_schema_extra=unit("score, 0 to 10"),
        description="uniform: the answers of a prompt are alike if their overall scores lie no further apart",
    )
    uniform_high: float = Field(
        6.0,
        ge=0,
        le=10,
        json_schema_extra=unit("score, 0 to 10"),
        description="uniform: alike answers are all good if their mean overall score is at least this, else all bad",
    )

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
    def gpus_per_copy(self) -> int:
        """GPUs that a copy of the judges' models takes, where there are any."""
        return max((judge.tensor_parallel for judge in self.judges if judge.kind == "vllm"), default=1)

    @property
    def runs_vllm(self) -> bool:
        """Whether vLLM runs a judge's model on this machine."""
        return any(judge.kind == "vllm" for judge in self.judges)

    @property
    def in_words(self) -> bool:
        """Whether a judge writes its judgement, asked by the prompt templates."""
        return any(judge.kind in ("vllm", "endpoint") for judge in self.judges)

    @property
    def yes_or_no(self) -> bool:
        """Whether a judge is asked what yes or no answers."""
        return any(judge.kind == "likelihood" and judge.measure == "yes" for judge in self.judges)
