"""A judge that is a vision-language model: it sees the images, the reference answer and the responses.

The model stands behind a sampling engine: vLLM on this machine, or an endpoint. It is asked to keep to a JSON schema,
so that even a small model returns what can be read; whether it makes sense is `rubric.read_reply`'s to find out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from dt2it_pipeline.engines.chat import ChatError, ChatPrompt, chat_prompt, opened
from dt2it_pipeline.engines.vllm_engine import Decoding, EngineError, SampleRequest, SamplingEngine, stream
from dt2it_pipeline.judges.protocol import LISTWISE, PAIRWISE, POINTWISE, JudgeError, JudgeRequest, JudgeStopped, Reply
from dt2it_pipeline.judges.rubric import reply_schema
from dt2it_pipeline.judges.templates import Template, load_template, question_row

_SEEDS_OF_A_RUN = 100  # more than the attempts of a run
_WARM = 0.5  # least temperature of a second attempt: the same words again would be of no use


class ModelJudge:
    """Judges responses with a model behind a sampling engine.

    Args:
        name: how judgements call this judge.
        engine: answers prompts with images.
        media_root: folder that the prompts' media paths are relative to.
        max_new_tokens: length limit of a reply, in tokens.
        templates: folder of the templates; the project's when None.
        model: what stands for the model in the keys under which replies are kept; they are not kept when None.
        temperature: of the first attempt.
        attempts: how often a run asks it where its reply cannot be used.
        max_runs: how many runs do so.
        max_pixels: images are scaled down to this; not at all when None.
        prompt: words added to the judge's instructions.
        values: further words for the templates.
        schemas: JSON schemas of replies by mode, for modes that do not judge.
        with_images: whether the model sees the images.
        ordered: whether the engine takes a schema in which every response has its place; see `reply_schema`.
    """

    modes = frozenset({LISTWISE, POINTWISE, PAIRWISE})
    writes = True

    def __init__(
        self,
        name: str,
        engine: SamplingEngine,
        media_root: Path,
        max_new_tokens: int = 4096,
        templates: Path | None = None,
        model: str | None = None,
        temperature: float = 0.0,
        attempts: int = 1,
        max_runs: int = 1,
        max_pixels: int | None = None,
        prompt: str = "",
        values: Mapping[str, str] | None = None,
        schemas: Mapping[str, dict[str, Any]] | None = None,
        with_images: bool = True,
        ordered: bool = False,
    ) -> None:
        self.name = name
        self.attempts = attempts
        self.max_runs = max_runs
        self.engine = engine
        self._media_root = media_root
        self._max_new_tokens = max_new_tokens
        self._folder = templates
        self._model = model
        self._temperature = temperature
        self._max_pixels = max_pixels
        self._added = prompt
        self._values = dict(values or {})
        self._schemas = dict(schemas or {})
        self._with_images = with_images
        self._ordered = ordered
        self._templates: dict[tuple[str, str], Template] = {}

    def template_hash(self, mode: str, language: str) -> str:
        """Hash of the template's words for a mode and a language."""
        return self._template(mode, language).hash

    def fingerprint(self) -> Any:
        """See Judge."""
        if self._model is None:
            return None
        return [self._model, self._temperature, self._max_new_tokens, self._max_pixels, self._added, self._values]

    def judge(self, requests: Sequence[JudgeRequest]) -> Iterator[tuple[int, Reply | JudgeError]]:
        """See Judge. A prompt that cannot be put to the model is an error of its own."""
        places: list[int] = []
        asked: list[SampleRequest] = []
        images = self._images(requests)
        for place, request in enumerate(requests):
            try:
                prompt = self._prompt(request, images.get(request.prompt["prompt_id"]))
            except ChatError as error:
                yield place, JudgeError(str(error))
                continue
            temperature = max(self._temperature, _WARM) if request.attempt else self._temperature
            count = len(request.responses)
            schema = self._schemas.get(request.mode) or reply_schema(request.mode, count, self._ordered)
            places.append(place)
            seed = request.run * _SEEDS_OF_A_RUN + request.attempt
            asked.append(SampleRequest(prompt, 1, seed, temperature, schema))
        try:
            for index, result in stream(self.engine, asked, Decoding(0.0, 1.0, self._max_new_tokens)):
                if isinstance(result, EngineError):
                    yield places[index], JudgeError(str(result))
                else:
                    sample = result[0]
                    yield places[index], Reply(sample.text, sample.finished, sample.prompt_tokens, sample.tokens)
        except EngineError as error:
            raise JudgeStopped(f"judge {self.name}: {error}") from error

    def _images(self, requests: Sequence[JudgeRequest]) -> dict[str, tuple[Image.Image, ...]]:
        """Images of each prompt that can be put to the model, by prompt_id; the calls about one prompt share them."""
        asked = {request.prompt["prompt_id"]: request for request in requests}
        prompts = opened(asked.items(), lambda item: self._prompt(item[1], None))
        return {key: prompt.images for (key, _), prompt in prompts if isinstance(prompt, ChatPrompt)}

    def _prompt(self, request: JudgeRequest, images: tuple[Image.Image, ...] | None) -> ChatPrompt:
        """A request as the model sees it. Its images are read where there are none yet; ChatError where they cannot."""
        words = self._template(request.mode, request.prompt["language"]).render(request, self._values)
        row = question_row(request.prompt, words, self._with_images)
        prompt = chat_prompt(row, self._media_root, suffix=self._added, images=images)
        return prompt.fitted(self._max_pixels) if images is None else prompt

    def _template(self, mode: str, language: str) -> Template:
        key = (mode, language)
        if key not in self._templates:
            self._templates[key] = load_template(mode, language, self._folder)
        return self._templates[key]
