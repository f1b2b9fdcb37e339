"""A judge that compares two responses by likelihood: which of them does seeing the picture make more probable?

The measure is that of `curate.likelihood`, against grey pictures. It writes no words and gives no scores, so that it
judges pairs only, beside a judge of another kind.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from dt2it_pipeline import records
from dt2it_pipeline.construct.judges.protocol import PAIRWISE, JudgeError, JudgeRequest, Reply
from dt2it_pipeline.curate.likelihood import Question
from dt2it_pipeline.engines.chat import ChatError, chat_prompt

_GREY = (128, 128, 128)


class Weigher(Protocol):
    """Whatever gives the evidence for responses; `curate.likelihood.LikelihoodModel` does."""

    def evidence(self, questions: Sequence[Question]) -> list[list[float]]:
        """Evidence in nats of each response of each question."""
        ...


class LikelihoodJudge:
    """Says which of two responses the picture makes more probable."""

    modes = frozenset({PAIRWISE})
    attempts = 1

    def __init__(self, name: str, model: str, weigher: Weigher, media_root: Path) -> None:
        self.name = name
        self._model = model
        self._weigher = weigher
        self._media_root = media_root

    def template_hash(self, mode: str, language: str) -> str:
        """There are no words: a hash of the rule."""
        return records.content_hash("likelihood judge", 1)

    def fingerprint(self) -> Any:
        """See Judge."""
        return ["likelihood", self._model]

    def judge(self, requests: Sequence[JudgeRequest]) -> Iterator[tuple[int, Reply | JudgeError]]:
        """See Judge. A prompt without a picture is an error of its own: there is nothing to measure."""
        questions: dict[int, Question] = {}
        for place, request in enumerate(requests):
            try:
                prompt = chat_prompt(request.prompt, self._media_root)
            except ChatError as error:
                yield place, JudgeError(str(error))
                continue
            if not prompt.images:
                yield place, JudgeError("the prompt has no picture")
                continue
            grey = tuple(Image.new("RGB", image.size, _GREY) for image in prompt.images)
            questions[place] = Question(prompt, (grey,), request.responses)
        found = self._weigher.evidence(list(questions.values())) if questions else []
        for place, (first, second) in zip(questions, found, strict=True):
            if math.isfinite(first) and math.isfinite(second):
                yield place, Reply(json.dumps({"better": 0 if first == second else 1 if first > second else 2}))
            else:
                yield place, JudgeError(f"likelihood is not a number: {first}, {second}")
