"""Section `annotation`: the judges that decide about contested pairs."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag, model_validator

from dt2it_pipeline.config.base import DEMO_BASE_MODEL, Settings, kind_of, unit
from dt2it_pipeline.config.compute import ForwardSettings, VllmRunSettings
from dt2it_pipeline.config.models import JUDGE_NAME, MODEL_NAME
from dt2it_pipeline.config.sections.judging import EndpointJudgeSettings, VllmJudgeSettings


class PairJudgeSettings(ForwardSettings, VllmRunSettings):
    """A local model that votes on contested pairs without writing a judgement."""

    name: str = Field(min_length=1, description=JUDGE_NAME)
    model: str = Field(DEMO_BASE_MODEL, min_length=1, description=MODEL_NAME)
    kind: Literal["likelihood", "answer"] = Field(
        "likelihood",
        description="likelihood: votes for the response that seeing the image makes more probable. answer: the model "
        "answers the question itself and votes for the response that agrees (short factual questions)",
    )
    prompt: str = Field("", description="text added to the question, for instance how long to answer")
    baseline: Literal["blank", "mismatched"] = Field(
        "mismatched",
        description="likelihood: the image that the pair's own is compared with. blank: a grey one; mismatched: images "
        "of other prompts",
    )
    baselines: int = Field(
        4,
        ge=1,
        le=64,
        json_schema_extra=unit("images"),
        description="likelihood: images of other prompts per pair, where baseline is mismatched",
    )
    tie_margin: float = Field(
        0.0,
        ge=0,
        le=100,
        json_schema_extra=unit("nats"),
        description="likelihood: a smaller difference in log-likelihood gain is a tie and no vote",
    )
    max_new_tokens: int = Field(
        48, ge=1, le=8192, json_schema_extra=unit("tokens"), description="answer: a longer answer is no vote"
    )
    max_model_len: int = Field(
        512,
        ge=64,
        le=131_072,
        json_schema_extra=unit("tokens"),
        description="answer: context length, prompt and answer together",
    )

    @model_validator(mode="after")
    def _vllm_runs_the_answering_judge(self) -> PairJudgeSettings:
        given = [name for name, field in VllmRunSettings.model_fields.items() if getattr(self, name) != field.default]
        if given and self.kind == "likelihood":
            raise ValueError(f"{', '.join(given)} of a judge that vLLM does not run: they need kind: answer")
        if self.max_pixels is not None and self.kind == "answer":
            raise ValueError("max_pixels of a judge that vLLM runs: it needs kind: likelihood")
        return self


def _kind(judge: Any) -> str:
    """The kind of a judge; `likelihood` where the recipe gives none."""
    return "likelihood" if isinstance(judge, dict) and "kind" not in judge else kind_of(judge)


AnnotatorChoice: TypeAlias = PairJudgeSettings | EndpointJudgeSettings | VllmJudgeSettings


class AnnotationSettings(Settings):
    """Judges of every contested pair: two (arXiv 2604.19544, iterative training: annotation), or one."""

    judges: tuple[
        Annotated[
            Annotated[PairJudgeSettings, Tag("likelihood")]
            | Annotated[PairJudgeSettings, Tag("answer")]
            | Annotated[EndpointJudgeSettings, Tag("endpoint")]
            | Annotated[VllmJudgeSettings, Tag("vllm")],
            Discriminator(_kind),
        ],
        ...,
    ] = Field(
        strict=False,
        min_length=1,
        max_length=2,
        description="each has one vote on every pair that is put to judges. The policy `paper` needs two, `joint` one "
        "or two",
    )
    batch_pairs: int = Field(
        64,
        ge=1,
        json_schema_extra=unit("pairs"),
        description="pairs per shard; a killed run loses at most one shard per process",
    )
    budget_calls: int | None = Field(
        None,
        ge=0,
        json_schema_extra=unit("judge calls"),
        description="most judge calls per round, one per pair and judge. `paper` asks about the least certain pairs "
        "first, `joint` about those where a verdict brings most. null: no limit",
    )

    @property
    def gpus_per_copy(self) -> int:
        """GPUs that a copy of the judges' models takes, where there are any."""
        return max((judge.tensor_parallel for judge in self.judges if judge.kind != "endpoint"), default=1)

    @property
    def runs_vllm(self) -> bool:
        """Whether vLLM runs a judge's model on this machine."""
        return any(judge.kind in ("answer", "vllm") for judge in self.judges)

    @model_validator(mode="after")
    def _names_differ(self) -> AnnotationSettings:
        names = [judge.name for judge in self.judges]
        if len(set(names)) < len(names):
            raise ValueError(f"judge names must differ, found {names}")
        return self
