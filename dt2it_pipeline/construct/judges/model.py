"""A judge that is a vision-language model: it sees the pictures, the reference answer and the responses.

The engine is asked for greedy output that keeps to the rubric's JSON schema, so that even a small model returns what
can be read; whether it makes sense is `rubric.parse_reply`'s to find out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dt2it_pipeline.construct.judges.protocol import JudgeError, JudgeRequest
from dt2it_pipeline.construct.judges.rubric import reply_schema
from dt2it_pipeline.construct.judges.templates import Template, load_template
from dt2it_pipeline.engines.chat import ChatError, ChatPrompt, chat_prompt
from dt2it_pipeline.engines.vllm_engine import Decoding, EngineError, SampleRequest, SamplingEngine


class ModelJudge:
    """Scores responses with a model behind a sampling engine.

    Args:
        name: how judgements call this judge.
        engine: answers prompts with pictures.
        media_root: folder that the prompts' media paths are relative to.
        max_new_tokens: length limit of a reply, in tokens.
        templates: folder of the templates; the project's when None.
    """

    def __init__(
        self,
        name: str,
        engine: SamplingEngine,
        media_root: Path,
        max_new_tokens: int = 4096,
        templates: Path | None = None,
    ) -> None:
        self.name = name
        self._engine = engine
        self._media_root = media_root
        self._max_new_tokens = max_new_tokens
        self._folder = templates
        self._templates: dict[tuple[str, str], Template] = {}

    def template_hash(self, mode: str, language: str) -> str:
        """Hash of the template's words for a mode and a language."""
        return self._template(mode, language).hash

    def judge(self, requests: Sequence[JudgeRequest]) -> list[str | JudgeError]:
        """See Judge. A prompt that cannot be put to the model, or a reply that is cut off, is an error of its own."""
        replies: list[str | JudgeError] = [JudgeError("not asked")] * len(requests)
        by_count: dict[int, list[tuple[int, ChatPrompt]]] = {}  # the schema depends on the number of responses
        for index, request in enumerate(requests):
            try:
                by_count.setdefault(len(request.responses), []).append((index, self._prompt(request)))
            except ChatError as error:
                replies[index] = JudgeError(str(error))
        for count, group in by_count.items():
            decoding = Decoding(0.0, 1.0, self._max_new_tokens, reply_schema(count))
            answers = self._engine.sample([SampleRequest(prompt, 1, 0) for _, prompt in group], decoding)
            for (index, _), answer in zip(group, answers, strict=True):
                if isinstance(answer, EngineError):
                    replies[index] = JudgeError(str(answer))
                elif not answer[0].finished:
                    replies[index] = JudgeError(f"the reply is longer than {self._max_new_tokens} tokens")
                else:
                    replies[index] = answer[0].text
        return replies

    def _prompt(self, request: JudgeRequest) -> ChatPrompt:
        row = dict(request.prompt)
        words = self._template(request.mode, row["language"]).render(request)
        markers = "".join(f"<{medium['kind']}>" for medium in row["media"])
        row |= {"system": "", "turns": [{"role": "user", "text": f"{markers}{words}"}]}
        return chat_prompt(row, self._media_root)

    def _template(self, mode: str, language: str) -> Template:
        key = (mode, language)
        if key not in self._templates:
            self._templates[key] = load_template(mode, language, self._folder)
        return self._templates[key]
