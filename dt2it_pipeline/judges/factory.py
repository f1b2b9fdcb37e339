"""From a recipe's settings to judges that can be asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dt2it_pipeline.config.models import EndpointSettings, VllmSettings
from dt2it_pipeline.config.sections.judging import (
    EndpointJudgeSettings,
    JudgeChoice,
    LikelihoodCheckSettings,
    LikelihoodJudgeSettings,
    ReferenceJudgeSettings,
    VllmJudgeSettings,
)
from dt2it_pipeline.engines.vllm_engine import EngineError, SamplingEngine
from dt2it_pipeline.judges.llm import ModelJudge
from dt2it_pipeline.judges.protocol import Judge, JudgeError
from dt2it_pipeline.judges.reference import ReferenceJudge

MakeEngine = Callable[[EndpointSettings | VllmSettings, int], SamplingEngine]


def make_judge(
    settings: JudgeChoice,
    prompts: Iterable[Mapping[str, Any]],
    media_root: Path,
    make_engine: MakeEngine | None = None,
    prompt: str = "",
) -> Judge:
    """The judge that a recipe names.

    Args:
        settings: which, and how it is asked.
        prompts: rows of all prompts that it will be asked about.
        media_root: folder that their media paths are relative to.
        make_engine: builds what runs a model, from its settings and the most images in a prompt; the real ones when
            None.
        prompt: words added to the instructions of a judge that is asked in words.

    Raises:
        JudgeError: the model cannot be loaded, or its key is not set.
    """
    rows = list(prompts)
    if isinstance(settings, ReferenceJudgeSettings):
        return ReferenceJudge(rows, settings.name)
    if isinstance(settings, LikelihoodJudgeSettings):
        return likelihood_judge(settings, media_root)
    engine = engine_of(settings, max((len(row["media"]) for row in rows), default=0), make_engine)
    return ModelJudge(
        settings.name,
        engine,
        media_root,
        settings.max_new_tokens,
        model=model_key(settings),
        temperature=settings.temperature,
        attempts=settings.attempts,
        max_runs=settings.max_runs,
        max_pixels=settings.max_pixels,
        prompt=prompt,
        ordered=isinstance(settings, VllmSettings) or settings.ordered_schema,
    )


def likelihood_judge(
    settings: LikelihoodJudgeSettings | LikelihoodCheckSettings, media_root: Path, model: Any = None
) -> Judge:
    """A judge, or a check of content, that reads probabilities.

    Args:
        settings: which, and how it is computed.
        media_root: folder that the prompts' media paths are relative to.
        model: what gives the probabilities; the model that the settings name, which is loaded, when None.

    Raises:
        JudgeError: its model cannot be had.
    """
    from dt2it_pipeline.judges.likelihood.judges import LikelihoodJudge, LikelihoodSameness, LikelihoodScores

    if model is None:
        model = _likelihood_model(settings)
    name, digest = settings.name, _digest(settings.model)
    if settings.precision != "auto":
        digest = f"{digest} {settings.precision}"
    if settings.max_pixels is not None:
        digest = f"{digest} {settings.max_pixels} pixels"
    if isinstance(settings, LikelihoodCheckSettings):
        return LikelihoodSameness(name, digest, model, media_root, settings.asks, settings.threshold)
    if settings.measure == "evidence":
        return LikelihoodJudge(name, digest, model, media_root)
    return LikelihoodScores(name, digest, model, media_root, settings.measure)


def _likelihood_model(settings: LikelihoodJudgeSettings | LikelihoodCheckSettings) -> Any:
    from dt2it_pipeline.config.paths import model_path
    from dt2it_pipeline.judges.likelihood.model import LikelihoodError, LikelihoodModel

    try:
        model = LikelihoodModel(
            model_path(settings.model), settings.tokens_per_batch, settings.precision, settings.max_pixels
        )
        if isinstance(settings, LikelihoodCheckSettings) or settings.measure == "yes":
            model.yes_and_no()
    except LikelihoodError as error:
        raise JudgeError(f"{settings.name}: {error}") from error
    return model


class HeldElsewhere:
    """Stands where a judge's engine or model would, in a judge that only names and words things."""

    def sample(self, requests: Sequence[Any], decoding: Any = None) -> Any:
        """Raise: whoever holds the model is to be asked."""
        raise NotImplementedError("this judge's model is held by worker processes")

    evidence = yes_probabilities = mean_log_likelihoods = sample


def without_model(settings: VllmJudgeSettings | LikelihoodJudgeSettings, media_root: Path) -> Judge:
    """A judge of a recipe whose model is held elsewhere, so that it cannot be asked; see `shared.SharedJudge`."""
    if isinstance(settings, LikelihoodJudgeSettings):
        return likelihood_judge(settings, media_root, HeldElsewhere())
    return make_judge(settings, (), media_root, lambda settings, most_images: HeldElsewhere())


def engine_of(
    settings: EndpointJudgeSettings | VllmJudgeSettings, most_images: int, make_engine: MakeEngine | None = None
) -> SamplingEngine:
    """What runs the model of a judge or a rewriter. Raises JudgeError where it cannot be had."""
    try:
        return (make_engine or _engine)(settings, max(1, most_images))
    except EngineError as error:
        raise JudgeError(f"{settings.name}: {error}") from error


def model_key(settings: EndpointJudgeSettings | VllmJudgeSettings) -> str:
    """What stands for a model in the keys of kept replies: name and form of the request, or the weights' content."""
    if isinstance(settings, EndpointSettings):
        return f"endpoint {settings.model} {settings.structured}{' ordered' if settings.ordered_schema else ''}"
    how = f" {settings.quantization}" if settings.quantization else ""
    return f"vllm {_digest(settings.model)}{how}"


def _digest(model: str) -> str:
    from dt2it_pipeline.config.paths import model_path
    from dt2it_pipeline.storage.artifacts import model_digest

    return model_digest(model_path(model))


def _engine(settings: EndpointSettings | VllmSettings, most_images: int) -> SamplingEngine:
    from dt2it_pipeline.config.paths import model_path

    if isinstance(settings, EndpointSettings):
        from dt2it_pipeline.engines.endpoint import EndpointEngine

        return EndpointEngine(settings)
    from dt2it_pipeline.engines.vllm_engine import VllmEngine

    return VllmEngine(
        model_path(settings.model),
        settings.max_model_len,
        most_images,
        run=settings,
    )
