"""Section `annotation`: the judges of contested pairs."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag, model_validator

from dt2it_pipeline.config.base import DEMO_BASE_MODEL, Settings, kind_of
from dt2it_pipeline.config.judging import EndpointJudgeSettings, VllmJudgeSettings


class JudgeSettings(Settings):
    """One annotator of contested pairs."""

    name: str = Field(min_length=1)
    model: str = Field(
        DEMO_BASE_MODEL,
        min_length=1,
        description="model folder or Hub id; `demo` is the model that ships with the package",
    )
    kind: Literal["likelihood", "answer"] = Field(
        "likelihood",
        description="votes for the response that seeing the image makes more probable, or that agrees with the "
        "model's own answer (short factual questions)",
    )
    prompt: str = Field("", description="words added to the question")
    baseline: Literal["blank", "mismatched"] = Field(
        "mismatched", description="the image against which the judge compares: grey, or of other prompts"
    )
    baselines: int = Field(4, ge=1, le=64, description="images of other prompts, where baseline is mismatched")
    tie_margin: float = Field(
        0.0, ge=0, le=100, description="likelihood: nats; a smaller difference of evidence is a tie"
    )
    max_new_tokens: int = Field(48, ge=1, le=8192, description="answer: tokens; a longer one is no vote")
    max_model_len: int = Field(512, ge=64, le=131_072, description="answer: tokens of prompt and answer together")


def _kind(judge: Any) -> str:
    """The kind of a judge; `likelihood` where the recipe gives none."""
    return "likelihood" if isinstance(judge, dict) and "kind" not in judge else kind_of(judge)


AnnotatorChoice: TypeAlias = JudgeSettings | EndpointJudgeSettings | VllmJudgeSettings


class AnnotationSettings(Settings):
    """Judges of every contested pair: two (arXiv 2604.19544, iterative training: annotation), or one."""

    judges: tuple[
        Annotated[
            Annotated[JudgeSettings, Tag("likelihood")]
            | Annotated[JudgeSettings, Tag("answer")]
            | Annotated[EndpointJudgeSettings, Tag("endpoint")]
            | Annotated[VllmJudgeSettings, Tag("vllm")],
            Discriminator(_kind),
        ],
        ...,
    ] = Field(
        strict=False,
        min_length=1,
        max_length=2,
        description="each with one vote on every contested pair; two under the policy paper, one or two under "
        "posterior; kind: likelihood, answer, endpoint or vllm",
    )
    batch_pairs: int = Field(64, ge=1, description="pairs per forward pass, and per shard that a killed run keeps")
    budget_calls: int | None = Field(
        None,
        ge=0,
        description="most judge calls per round, one a pair and judge; under `paper` the least sure pairs come first, "
        "under `posterior` the surest of the contested ones. None: no limit",
    )

    @model_validator(mode="after")
    def _names_differ(self) -> AnnotationSettings:
        names = [judge.name for judge in self.judges]
        if len(set(names)) < len(names):
            raise ValueError(f"judge names must differ, found {names}")
        return self
