"""Sections of a recipe about constructed pairs: sampling, judging, pairing (DT2IT-MRM, arXiv 2604.19544, part 1)."""

from __future__ import annotations

import os
from collections import Counter
from typing import Annotated, Literal, TypeAlias
from urllib.parse import urlsplit

from pydantic import Discriminator, Field, Tag, model_validator

from dt2it_pipeline.engines.api_key import check_url, checked_key
from dt2it_pipeline.settings import DEMO_BASE_MODEL, Settings, kind_of

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_MODEL = "model folder or Hub id; `demo` is the model that ships with the package"


class EndpointSettings(Settings):
    """A chat endpoint that speaks OpenAI's protocol: a vendor's API, or `vllm serve`.

    The key is read from the environment variable that `key_variable` names; it stands in no file and no log.
    """

    base_url: str = Field(pattern=r"^https?://[^/\s]+", description="up to /v1, for instance https://host.example/v1")
    model: str = Field(
        min_length=1, description="name by which the endpoint knows the model; replies are kept under it"
    )
    key_variable: str | None = Field(
        None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="environment variable that holds the key; no key when absent",
    )
    concurrency: int = Field(8, ge=1, le=1024, description="requests in flight at once")
    timeout_seconds: float = Field(120, gt=0, le=3600, description="seconds that one request may take")
    retries: int = Field(6, ge=0, le=100, description="times a request is sent again after 429, 5xx or a broken line")
    longest_wait_seconds: float = Field(60, gt=0, le=3600, description="seconds; most that is waited before a retry")
    give_up_after: int = Field(
        20, ge=1, description="requests in a row that found no answer after all retries; then the run stops"
    )
    structured: Literal["json_schema", "json_object", "none"] = Field(
        "json_schema", description="how the endpoint is asked to keep to the form of a judgement"
    )
    ordered_schema: bool = Field(
        False,
        description="json_schema: every response of a list has its place in the schema, so that a weak model gives no "
        "number twice; vLLM takes such a schema (prefixItems), others are known to refuse it",
    )
    length_parameter: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="what the endpoint calls the length limit of a reply"
    )
    seeded: bool = Field(True, description="send a seed; some endpoints refuse one")
    input_price: float = Field(0.0, ge=0, description="price of a million tokens read, in your currency")
    output_price: float = Field(0.0, ge=0, description="price of a million tokens written, in your currency")

    @model_validator(mode="after")
    def _no_key_in_the_clear(self) -> EndpointSettings:
        check_url(self.base_url, "the environment variable that key_variable names")
        parts = urlsplit(self.base_url)
        if self.key_variable and parts.scheme == "http" and parts.hostname not in _LOOPBACK:
            raise ValueError("a key would travel unencrypted: use https, or no key_variable")
        return self

    def key(self) -> str | None:
        """The key from the environment, None where none is wanted.

        Raises:
            ValueError: the variable is not set, or holds what cannot be a key; see `checked_key`.
        """
        if self.key_variable is None:
            return None
        found = checked_key(os.environ.get(self.key_variable, ""), f"the environment variable {self.key_variable}")
        if not found:
            raise ValueError(
                f"the environment variable {self.key_variable}, which holds the key of {self.base_url}, is not set"
            )
        return found


class VllmSettings(Settings):
    """A model that vLLM runs here."""

    model: str = Field(DEMO_BASE_MODEL, min_length=1, description=_MODEL)
    max_model_len: int = Field(8192, ge=64, le=1_048_576, description="tokens of prompt and answer together")
    tensor_parallel: int = Field(1, ge=1, le=64, description="GPUs that share one copy of the model")


class _AskedInWords(Settings):
    """What every judge that is a model has in common."""

    name: str = Field(min_length=1, description="how judgements call this judge")
    max_new_tokens: int = Field(4096, ge=16, le=131_072, description="tokens of a reply")
    max_pixels: int = Field(1_310_720, ge=1024, description="pictures are scaled down to this many pixels")
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
    model: str = Field(DEMO_BASE_MODEL, min_length=1, description=_MODEL)
    batch: int = Field(64, ge=1, description="sequences per forward pass")


class LikelihoodJudgeSettings(_Likelihood):
    """Judges responses by their likelihood; `construct.judges.likelihood` has the formulas."""

    measure: Literal["evidence", "mean_log_likelihood", "yes"] = Field(
        "evidence",
        description="evidence: how much more probable the picture makes one response than the other; judges pairs "
        "only. mean_log_likelihood (per token), or yes (P(yes), asked whether it is correct): scores, in all modes",
    )

    @property
    def scores(self) -> bool:
        """Whether it gives every response a number of its own."""
        return self.measure != "evidence"


class LikelihoodCheckSettings(_Likelihood):
    """Tells whether two texts say the same, by a probability; `construct.judges.likelihood` has the formulas."""

    asks: Literal["same_content", "right"] = Field(
        "same_content",
        description="P(yes) to whether the two say the same; or the probability that, with the picture, both are right "
        "answers or both are not",
    )
    threshold: float = Field(0.5, gt=0, lt=1, description="least probability of texts that count as the same")


class WordsCheckSettings(Settings):
    """No model tells whether two texts say the same: numbers and the reference answer do, which are compared anyway.

    For short factual questions. A text that they cannot check, for want of a short reference, is set aside.
    """

    kind: Literal["words"] = "words"
    name: str = Field("words", min_length=1)


JudgeChoice: TypeAlias = ReferenceJudgeSettings | EndpointJudgeSettings | VllmJudgeSettings | LikelihoodJudgeSettings
_Endpoint: TypeAlias = Annotated[EndpointJudgeSettings, Tag("endpoint")]
_Vllm: TypeAlias = Annotated[VllmJudgeSettings, Tag("vllm")]


class JudgingSettings(Settings):
    """Who judges sampled responses, in which modes and orders.

    `diversity: uniform` leaves answers to another picture unjudged until they are needed: where the judges find all
    answers of a prompt alike, they are judged too (all are good), or the reference answer is (all are bad).
    """

    judges: tuple[
        Annotated[
            Annotated[ReferenceJudgeSettings, Tag("reference")]
            | _Endpoint
            | _Vllm
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
        "always", description="judge answers to another picture always, or where the others are all alike"
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


class SamplingSettings(Settings):
    """Candidate responses from one pool of models with one style.

    An answer is drawn from a model of the pool, with an instruction and at a temperature; a prompt's answers take the
    combinations in turn, each prompt starting elsewhere, so that all occur equally often.
    """

    model: str = Field(DEMO_BASE_MODEL, min_length=1, description=_MODEL)
    models: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (), strict=False, description="several models, instead of `model`; they should write in one style"
    )
    instructions: tuple[str, ...] = Field(
        ("",), strict=False, min_length=1, description="words added to the question, for instance how long to answer"
    )
    samples: int = Field(4, ge=1, le=64, description="answers per prompt to the true picture")
    mismatched_samples: int = Field(
        2, ge=0, le=64, description="answers per prompt to another prompt's picture (diversity)"
    )
    noised_samples: int = Field(
        0, ge=0, le=64, description="answers per prompt to its own picture under noise (diversity)"
    )
    noise: float = Field(0.7, gt=0, le=1, description="share of a noised picture that is noise")
    temperature: float = Field(1.0, ge=0, le=5)
    temperatures: tuple[float, ...] = Field(
        (), strict=False, description="a schedule instead of `temperature`: answers are drawn at these in turn"
    )
    top_p: float = Field(0.95, gt=0, le=1)
    max_new_tokens: int = Field(48, ge=1, le=8192, description="tokens; a longer answer is set aside")
    min_characters: int = Field(1, ge=1, le=100_000, description="characters; a shorter answer is set aside")
    max_model_len: int = Field(512, ge=64, le=131_072, description="tokens of prompt and answer together")
    max_pixels: int | None = Field(
        None, ge=1024, description="pictures are scaled down to this many pixels; the model's own limit when absent"
    )
    tensor_parallel: int = Field(1, ge=1, le=64, description="GPUs that share one copy of the model")
    data_parallel: int = Field(1, ge=1, le=64, description="copies of the model that share the prompts")
    shard_prompts: int = Field(512, ge=1, description="prompts per shard; a killed run loses at most one shard a copy")

    @property
    def pool(self) -> tuple[str, ...]:
        """The models that answers are drawn from."""
        return self.models or (self.model,)

    @property
    def schedule(self) -> tuple[float, ...]:
        """The temperatures that answers are drawn at."""
        return self.temperatures or (self.temperature,)

    @model_validator(mode="after")
    def _pool_is_clear(self) -> SamplingSettings:
        if len(set(self.models)) < len(self.models):
            raise ValueError("models must differ")
        if len({name.rstrip("/").rsplit("/", 1)[-1] for name in self.models}) < len(self.models):
            raise ValueError("models need different last parts: answers say by it which model wrote them")
        if any(not 0 <= value <= 5 for value in self.temperatures):
            raise ValueError("temperatures must lie between 0 and 5")
        return self


class StrengthBin(Settings):
    """Pairs whose strength is at least `from_strength` (and below the next bin's), and how many of them are wanted."""

    from_strength: float = Field(ge=0, le=10)
    share: float = Field(gt=0, le=1, description="share of all pairs that this bin should have")


class RestyleSettings(Settings):
    """One rewriter that puts both sides of every pair into one style; facts stay.

    That they do is checked in three ways: numbers and, by comparison with the reference, the answer may not change; and
    `check` says whether the two texts say the same.
    """

    rewriter: Annotated[_Endpoint | _Vllm, Discriminator(kind_of)]
    check: (
        Annotated[
            _Endpoint
            | _Vllm
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
