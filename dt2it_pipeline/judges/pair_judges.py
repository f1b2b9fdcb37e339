"""Judges of contested pairs: what `annotate` asks of one, and the two that look at likelihoods and answers.

- `likelihood`: which response does seeing the image make more probable (`likelihood.py`)?
- `answer`: the model answers the question itself; which response agrees with it (`agreement.py`)?

A judge that is asked in words, at an endpoint or by vLLM, is `pairwise_votes.PairwiseVotes`.

Both see each response by itself, so no order of presentation enters. Both compare with what the model answers about
other images: a judge that answers the same for every image knows nothing about this one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from dt2it_pipeline.config.sections.annotation import PairJudgeSettings
from dt2it_pipeline.engines.chat import ChatError, ChatPrompt, chat_prompt, opened
from dt2it_pipeline.engines.vllm_engine import Decoding, EngineError, SampleRequest, SamplingEngine
from dt2it_pipeline.judges.answer_matching.agreement import is_yes_or_no, side_that_agrees
from dt2it_pipeline.judges.answer_matching.answers import question_text
from dt2it_pipeline.judges.likelihood.model import LikelihoodError, Question, SequenceMemoryError
from dt2it_pipeline.judges.pairwise_votes import CHOSEN, REJECTED, TIE, NoVerdict, PairVerdict, kept_words
from dt2it_pipeline.judges.protocol import Reply
from dt2it_pipeline.judges.reply_cache import ReplyCache
from dt2it_pipeline.storage import content_ids
from dt2it_pipeline.storage.artifacts import model_digest

_GREY = (128, 128, 128)
_FEW = 3  # pairs; a model that fails on so many and on none less is itself to blame
_SHOWN = 300  # characters of an error's message in the quarantine table
_ASKED = 1  # the way in which questions are put to the engine; raise it where answers would become other ones

Row = Mapping[str, Any]


class PairJudge(Protocol):
    """Says which side of a pair is the better one.

    `calls` counts the verdicts so far for which its model was asked anything, `cached` those from kept answers, which
    are free. A judge that may ask several times about a pair counts replies.
    """

    @property
    def calls(self) -> int:
        """See above."""
        ...

    @property
    def cached(self) -> int:
        """See above."""
        ...

    def verdicts(self, pairs: Sequence[Row]) -> list[PairVerdict | NoVerdict]:
        """The verdict on each row of a pairs table, or why there is none."""
        ...


class Weigher(Protocol):
    """What a likelihood judge asks of its model."""

    def evidence(self, questions: Sequence[Question]) -> list[list[float]]:
        """Evidence in nats of each response of each question."""
        ...


@dataclass(frozen=True)
class Prompts:
    """Prompts rows by id, where their media lie, and the seed of what a judge draws from them."""

    rows: Mapping[str, Row]
    media_root: Path
    seed: int

    def chat(self, pair: Row, settings: PairJudgeSettings) -> tuple[Row, ChatPrompt]:
        """A pair's prompt as the judge words it. Raises ChatError where there is none or it cannot be shown."""
        row = self.rows.get(pair["prompt_id"])
        if row is None:
            raise ChatError("unknown prompt", pair["prompt_id"])
        return row, chat_prompt(row, self.media_root, suffix=settings.prompt)


class LikelihoodJudge:
    """Votes for the response with more evidence; a difference of `tie_margin` nats or less is a tie."""

    def __init__(self, settings: PairJudgeSettings, weigher: Weigher, prompts: Prompts) -> None:
        self._settings, self._weigher, self._prompts = settings, weigher, prompts
        self._images = _OtherImages(settings, prompts)
        self.calls = self.cached = 0

    def verdicts(self, pairs: Sequence[Row]) -> list[PairVerdict | NoVerdict]:
        """See PairJudge."""
        found: list[PairVerdict | NoVerdict] = []
        questions: list[Question] = []
        asked: list[int] = []
        for place, (_, question) in enumerate(opened(pairs, self._question)):
            if isinstance(question, ChatError):
                found.append(NoVerdict(question.reason, question.detail))
                continue
            found.append(NoVerdict("not judged", ""))
            questions.append(question)
            asked.append(place)
        self.calls += len(asked)
        weighed = self._evidence(questions)
        failed = [each.detail for each in weighed if isinstance(each, NoVerdict)]
        if len(failed) == len(weighed) >= _FEW:
            raise LikelihoodError(
                f"the model of the judge {self._settings.name} fails on every pair; on one: {failed[0]}"
            )
        for place, evidence in zip(asked, weighed, strict=True):
            if isinstance(evidence, NoVerdict):
                found[place] = evidence
                continue
            difference = evidence[0] - evidence[1]
            if not math.isfinite(difference):
                found[place] = NoVerdict("likelihood is not a number", str(evidence))
            elif abs(difference) <= self._settings.tie_margin:
                found[place] = PairVerdict(TIE)
            else:
                found[place] = PairVerdict(CHOSEN if difference > 0 else REJECTED)
        return found

    def _question(self, pair: Row) -> Question:
        row, prompt = self._prompts.chat(pair, self._settings)
        return Question(prompt, self._images.for_prompt(row, prompt), (pair["chosen"], pair["rejected"]))

    def _evidence(self, questions: list[Question]) -> list[list[float] | NoVerdict]:
        """Evidence on each question; where a batch cannot be computed, halves find the question that is to blame."""
        if not questions:
            return []
        try:
            return list(self._weigher.evidence(questions))
        except Exception as error:
            if isinstance(error, LikelihoodError) and not isinstance(error, SequenceMemoryError):
                raise  # there is no model
            if len(questions) == 1:
                return [NoVerdict("the judge could not weigh it", f"{type(error).__name__}: {error}"[:_SHOWN])]
        middle = len(questions) // 2
        return self._evidence(questions[:middle]) + self._evidence(questions[middle:])


class AnswerJudge:
    """Answers the question, and votes for the response that agrees with its answer; see `agreement`.

    It judges short factual questions as well as its model answers them. A question that needs prose, or that both
    responses answer alike, is a tie.

    Args:
        settings: of the judge.
        engine: gives the engine behind the judge; asked for it when there is a question without a kept answer.
        prompts: of the pairs.
        replies: where answers are kept, by model and question: a pair that a later round contests again costs nothing.
    """

    def __init__(
        self, settings: PairJudgeSettings, engine: Callable[[], SamplingEngine], prompts: Prompts, replies: ReplyCache
    ) -> None:
        self._settings, self._engine, self._prompts, self._replies = settings, engine, prompts, replies
        how = f" {settings.quantization}" if settings.quantization else ""
        self._model = f"{model_digest(settings.model)}{how}"
        self._images = _OtherImages(settings, prompts)
        self.asked = self.looked_up = self.calls = self.cached = 0

    def verdicts(self, pairs: Sequence[Row]) -> list[PairVerdict | NoVerdict]:
        """See PairJudge. What several pairs ask is answered once; other images are asked about where they matter."""
        prompts = [
            NoVerdict(prompt.reason, prompt.detail) if isinstance(prompt, ChatError) else prompt
            for _, prompt in opened(pairs, lambda pair: self._prompts.chat(pair, self._settings))
        ]
        own = iter(self._answers([each[1] for each in prompts if not isinstance(each, NoVerdict)]))
        given = [(each, False) if isinstance(each, NoVerdict) else next(own) for each in prompts]
        answers, fresh = [text for text, _ in given], [new for _, new in given]
        found = [
            answer if isinstance(answer, NoVerdict) else PairVerdict(TIE, kept_words(answer)) for answer in answers
        ]
        others: list[ChatPrompt] = []
        compared: list[tuple[int, int]] = []  # place of a pair, and how many of `others` are its own
        for place, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            if isinstance(prompt, NoVerdict) or isinstance(answer, NoVerdict):
                continue
            baselines: tuple[tuple[Image.Image, ...], ...] = ()
            if not is_yes_or_no(answer):
                try:
                    baselines = self._images.for_prompt(*prompt)
                except ChatError as error:
                    found[place] = NoVerdict(error.reason, error.detail, kept_words(answer))
                    continue
            others += [prompt[1].with_images(images) for images in baselines]
            compared.append((place, len(baselines)))
        elsewhere = iter(self._answers(others))
        for place, count in compared:
            prompt, answer, pair = prompts[place], answers[place], pairs[place]
            assert not isinstance(prompt, NoVerdict) and not isinstance(answer, NoVerdict)
            others_said = list(islice(elsewhere, count))
            texts = [text for text, _ in others_said if not isinstance(text, NoVerdict)]
            fresh[place] = fresh[place] or any(new for _, new in others_said)
            side = side_that_agrees(question_text(prompt[0]), answer, texts, pair["chosen"], pair["rejected"])
            found[place] = PairVerdict(side, kept_words(answer))
        self.calls += sum(fresh)
        self.cached += sum(not new and isinstance(each, str) for each, new in zip(answers, fresh, strict=True))
        return found

    def _answers(self, prompts: Sequence[ChatPrompt]) -> list[tuple[str | NoVerdict, bool]]:
        """The model's answer to each prompt, and whether it was asked just now.

        Equal prompts are asked once, those with a kept answer not at all.
        """
        keys = [self._key(prompt) for prompt in prompts]
        different = dict(zip(keys, prompts, strict=True))
        replies: dict[str, Reply | EngineError] = dict(self._replies.get(list(different)))
        unknown = [key for key in different if key not in replies]
        self.asked, self.looked_up = self.asked + len(unknown), self.looked_up + len(replies)
        if unknown:
            requests = [SampleRequest(different[key], 1, 0) for key in unknown]
            answered = self._engine().sample(requests, Decoding(0.0, 1.0, self._settings.max_new_tokens))
            for key, result in zip(unknown, answered, strict=True):
                if isinstance(result, EngineError):
                    replies[key] = result
                    continue
                sample = result[0]
                replies[key] = reply = Reply(sample.text, sample.finished, sample.prompt_tokens, sample.tokens)
                self._replies.put(key, reply)
        asked = set(unknown)
        return [(self._answer(replies[key]), key in asked) for key in keys]

    def _answer(self, reply: Reply | EngineError) -> str | NoVerdict:
        if isinstance(reply, EngineError):
            return NoVerdict("the judge could not answer", str(reply))
        if not reply.finished:
            limit = f"{self._settings.max_new_tokens} tokens"
            return NoVerdict("the judge's answer was cut off", limit, kept_words(reply.text))
        return reply.text

    def _key(self, prompt: ChatPrompt) -> str:
        """What an answer depends on, as a hash."""
        images = [(image.size, hashlib.sha256(image.tobytes()).hexdigest()) for image in prompt.images]
        limits = [self._settings.max_new_tokens, self._settings.max_model_len]
        return content_ids.content_hash("answer", _ASKED, self._model, limits, list(prompt.messages), images)


class _OtherImages:
    """Images of other prompts, by their number in a prompt: readable ones, all different, drawn by seed.

    The same few serve every prompt, so that a model encodes them once; one more than asked for, because a prompt is
    never compared with its own image.
    """

    def __init__(self, settings: PairJudgeSettings, prompts: Prompts) -> None:
        self._settings = settings
        self._pool: dict[int, list[tuple[frozenset[str], tuple[Image.Image, ...]]]] = {}
        if settings.baseline == "blank":
            return
        for key in sorted(prompts.rows, key=lambda key: content_ids.content_hash(prompts.seed, settings.name, key)):
            row = prompts.rows[key]
            hashes = frozenset(medium["sha256"] for medium in row["media"])
            lent = self._pool.setdefault(len(row["media"]), [])
            if not hashes or len(lent) > settings.baselines or any(hashes & other for other, _ in lent):
                continue
            try:
                lent.append((hashes, chat_prompt(row, prompts.media_root).images))
            except ChatError:
                continue  # it is reported under its own pairs

    def for_prompt(self, row: Row, prompt: ChatPrompt) -> tuple[tuple[Image.Image, ...], ...]:
        """The images to compare with: a grey set, or sets of other prompts.

        Raises:
            ChatError: the prompt has no image, so there is nothing to compare; or no other image can be found.
        """
        if not prompt.images:
            raise ChatError("prompt without an image", f"a judge of kind {self._settings.kind} compares images")
        if self._settings.baseline == "blank":
            return (tuple(Image.new("RGB", image.size, _GREY) for image in prompt.images),)
        own = {medium["sha256"] for medium in row["media"]}
        found = [images for hashes, images in self._pool.get(len(prompt.images), ()) if not hashes & own]
        if not found:
            raise ChatError("no other image to measure against", f"{len(prompt.images)} images in the prompt")
        return tuple(found[: self._settings.baselines])
