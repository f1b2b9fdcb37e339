"""Judges that look at likelihoods instead of asking for words. They cost one forward pass, and answer no JSON.

- `LikelihoodJudge` compares two responses: which of them does seeing the image make more probable? The measure is
  that of `curate.likelihood`, against grey images. It gives no scores, so that it stands beside a judge that does.
- `LikelihoodScores` gives every response a number of its own, 0 to 10, and therefore judges in all modes:

      mean_log_likelihood    10 * exp(log p(response | image, question) / tokens), 10 times the geometric mean of its
                             tokens' probabilities (the normalised likelihood of SimPO, arXiv 2405.14734)
      yes                    10 * P(yes), asked whether the response is correct (VQAScore, arXiv 2404.01291; P(True),
                             arXiv 2207.05221)

  A list is judged like its members by themselves: the order of presentation does not enter.
- `LikelihoodSameness` decides whether two texts mean the same (`construct.restyle`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

from PIL import Image

from dt2it_pipeline.engines.chat import ChatError, ChatPrompt, chat_prompt, opened
from dt2it_pipeline.judges.likelihood.model import Question
from dt2it_pipeline.judges.protocol import LISTWISE, PAIRWISE, POINTWISE, JudgeError, JudgeRequest, Reply
from dt2it_pipeline.judges.rubric import MAX_SCORE, Rubric
from dt2it_pipeline.judges.templates import IS_RIGHT, IS_SAME, load_template, question_row
from dt2it_pipeline.storage import content_ids

_GREY = (128, 128, 128)
_NAME = "Likelihood"  # the one criterion of a judgement by likelihood
Measure: TypeAlias = Literal["mean_log_likelihood", "yes"]


class Weigher(Protocol):
    """Whatever gives the evidence for responses; `curate.likelihood.LikelihoodModel` does."""

    def evidence(self, questions: Sequence[Question]) -> list[list[float]]:
        """Evidence in nats of each response of each question."""
        ...


class YesOrNo(Protocol):
    """Whatever answers a question by a probability; `curate.likelihood.LikelihoodModel` does."""

    def yes_probabilities(self, prompts: Sequence[ChatPrompt]) -> list[float]:
        """P(yes) of each question, 0 to 1."""
        ...


class Scorer(YesOrNo, Protocol):
    """Whatever gives a response a number of its own; `curate.likelihood.LikelihoodModel` does."""

    def mean_log_likelihoods(self, sequences: Sequence[tuple[ChatPrompt, str]]) -> list[float]:
        """Nats per token of each (prompt, response)."""
        ...


class LikelihoodJudge:
    """Says which of two responses the image makes more probable."""

    modes = frozenset({PAIRWISE})
    attempts = max_runs = 1

    def __init__(self, name: str, model: str, weigher: Weigher, media_root: Path) -> None:
        self.name = name
        self._model = model
        self._weigher = weigher
        self._media_root = media_root

    def template_hash(self, mode: str, language: str) -> str:
        """There are no words: a hash of the rule."""
        return content_ids.content_hash("likelihood judge", 1)

    def fingerprint(self) -> Any:
        """See Judge."""
        return ["likelihood", self._model]

    def judge(self, requests: Sequence[JudgeRequest]) -> Iterator[tuple[int, Reply | JudgeError]]:
        """See Judge. A prompt without an image is an error of its own: there is nothing to measure."""
        questions: dict[int, Question] = {}
        prompts = opened(requests, lambda request: chat_prompt(request.prompt, self._media_root))
        for place, (request, prompt) in enumerate(prompts):
            if isinstance(prompt, ChatError):
                yield place, JudgeError(str(prompt))
                continue
            if not prompt.images:
                yield place, JudgeError("the prompt has no image")
                continue
            grey = tuple(Image.new("RGB", image.size, _GREY) for image in prompt.images)
            questions[place] = Question(prompt, (grey,), request.responses)
        found = self._weigher.evidence(list(questions.values())) if questions else []
        for place, (first, second) in zip(questions, found, strict=True):
            if math.isfinite(first) and math.isfinite(second):
                yield place, _better(first, second)
            else:
                yield place, JudgeError(f"likelihood is not a number: {first}, {second}")


class LikelihoodScores:
    """Scores every response by a likelihood; see the module for the formulas.

    Args:
        name: how judgements call this judge.
        model: what stands for the model in the keys under which replies are kept.
        scorer: gives the numbers.
        media_root: folder that the prompts' media paths are relative to.
        measure: which number.
    """

    modes = frozenset({LISTWISE, POINTWISE, PAIRWISE})
    attempts = max_runs = 1
    rubric = Rubric((_NAME,), whole=False)

    def __init__(self, name: str, model: str, scorer: Scorer, media_root: Path, measure: Measure) -> None:
        self.name = name
        self._model = model
        self._scorer = scorer
        self._media_root = media_root
        self._measure = measure
        self._known: dict[tuple[str, str], float] = {}  # a response is judged in several modes, and weighed once

    def template_hash(self, mode: str, language: str) -> str:
        """Hash of the question that is asked, or of the rule where none is."""
        words = load_template(IS_RIGHT, language).text if self._measure == "yes" else ""
        return content_ids.content_hash("likelihood scores", 1, self._measure, words)

    def fingerprint(self) -> Any:
        """See Judge."""
        return ["likelihood", self._model, self._measure]

    def judge(self, requests: Sequence[JudgeRequest]) -> Iterator[tuple[int, Reply | JudgeError]]:
        """See Judge. A prompt whose images cannot be read is an error of its own."""
        unknown: dict[tuple[str, str], JudgeRequest] = {}
        for request in requests:
            for text in request.responses:
                key = (request.prompt["prompt_id"], text)
                if key not in self._known:
                    unknown.setdefault(key, request)
        asked: dict[tuple[str, str], ChatPrompt] = {}
        faults: dict[tuple[str, str], str] = {}
        for (key, _), prompt in opened(unknown.items(), lambda item: self._prompt(item[1], item[0][1])):
            if isinstance(prompt, ChatError):
                faults[key] = str(prompt)
            else:
                asked[key] = prompt
        self._known |= dict(zip(asked, self._scores(asked), strict=True))
        for place, request in enumerate(requests):
            keys = [(request.prompt["prompt_id"], text) for text in request.responses]
            scores = [self._known.get(key, math.nan) for key in keys]
            if fault := next((faults[key] for key in keys if key in faults), None):
                yield place, JudgeError(fault)
            elif not all(map(math.isfinite, scores)):
                yield place, JudgeError(f"likelihood is not a number: {scores}")
            elif request.mode == PAIRWISE:
                yield place, _better(*scores)
            else:
                yield place, _entries(scores)

    def _prompt(self, request: JudgeRequest, text: str) -> ChatPrompt:
        if self._measure == "mean_log_likelihood":
            return chat_prompt(request.prompt, self._media_root)
        return _asked(request, (text,), IS_RIGHT, self._media_root)

    def _scores(self, asked: dict[tuple[str, str], ChatPrompt]) -> list[float]:
        if not asked:
            return []
        if self._measure == "yes":
            return [MAX_SCORE * value for value in self._scorer.yes_probabilities(list(asked.values()))]
        means = self._scorer.mean_log_likelihoods([(prompt, text) for (_, text), prompt in asked.items()])
        return [MAX_SCORE * math.exp(value) for value in means]


class LikelihoodSameness:
    """Decides by a probability, which must reach a threshold, whether two texts mean the same.

    - `same_content`: P(yes), asked whether the two mean the same, without the image.
    - `right`: the probability that both are right or both are wrong, p q + (1 - p)(1 - q), where p and q are P(yes) of
      each, asked with the image whether it is a correct answer. It misses a change that leaves that as it was.

    Args:
        name: how messages call this judge.
        model: what stands for the model in the keys under which replies are kept.
        answers: gives P(yes).
        media_root: folder that the prompts' media paths are relative to.
        asks: which of the two.
        threshold: least probability of texts that count as the same, 0 to 1.
    """

    modes: frozenset[str] = frozenset()  # it judges no responses
    attempts = max_runs = 1

    def __init__(
        self,
        name: str,
        model: str,
        answers: YesOrNo,
        media_root: Path,
        asks: Literal["same_content", "right"],
        threshold: float,
    ) -> None:
        self.name = name
        self._model = model
        self._answers = answers
        self._media_root = media_root
        self._asks = asks
        self._threshold = threshold

    def template_hash(self, mode: str, language: str) -> str:
        """Hash of the question that is asked."""
        words = load_template(IS_SAME if self._asks == "same_content" else IS_RIGHT, language).text
        return content_ids.content_hash("likelihood sameness", 1, self._asks, words)

    def fingerprint(self) -> Any:
        """See Judge."""
        return ["likelihood", self._model, self._asks, self._threshold]

    def judge(self, requests: Sequence[JudgeRequest]) -> Iterator[tuple[int, Reply | JudgeError]]:
        """See Judge. Replies have the form of the template `same_content`; `difference` has the probability."""
        questions: dict[int, list[ChatPrompt]] = {}
        for place, (_, made) in enumerate(opened(requests, self._questions)):
            if isinstance(made, ChatError):
                yield place, JudgeError(str(made))
            else:
                questions[place] = made
        values = iter(self._answers.yes_probabilities([each for some in questions.values() for each in some]))
        for place, some in questions.items():
            found = [next(values) for _ in some]
            same = found[0] if len(found) == 1 else found[0] * found[1] + (1 - found[0]) * (1 - found[1])
            if math.isfinite(same):
                reply = {"difference": f"probability of the same {same:.4f}", "same": same >= self._threshold}
                yield place, Reply(json.dumps(reply))
            else:
                yield place, JudgeError(f"likelihood is not a number: {found}")

    def _questions(self, request: JudgeRequest) -> list[ChatPrompt]:
        if self._asks == "same_content":
            return [_asked(request, request.responses, IS_SAME, self._media_root, with_images=False)]
        return [_asked(request, (text,), IS_RIGHT, self._media_root) for text in request.responses]


def _asked(
    request: JudgeRequest, texts: tuple[str, ...], template: str, media_root: Path, with_images: bool = True
) -> ChatPrompt:
    """A question that yes or no answers, about some texts. Raises ChatError where it cannot be encoded."""
    words = load_template(template, request.prompt["language"]).render(JudgeRequest(request.prompt, texts, template))
    return chat_prompt(question_row(request.prompt, words, with_images), media_root)


def _better(first: float, second: float) -> Reply:
    return Reply(json.dumps({"better": 0 if first == second else 1 if first > second else 2}))


def _entries(scores: Sequence[float]) -> Reply:
    entries = [
        {"response": number, "criteria": {_NAME: {"weight": 1, "score": score}}}
        for number, score in enumerate(scores, start=1)
    ]
    return Reply(json.dumps({"responses": entries}))
