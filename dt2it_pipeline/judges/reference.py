"""A judge that knows the reference answer and scores by rules instead of a model.

It stands where DT2IT-MRM has a strong MLLM (part 1, steps 2 and 3): it sees the question, the reference answer and the
responses, and returns the rubric's JSON. It judges short factual answers (a word, a number, a choice, yes or no) well
and prose roughly; it never sees the image, so a prompt without a reference is beyond it.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from dt2it_pipeline.judges.answer_matching import answers
from dt2it_pipeline.judges.protocol import LISTWISE, PAIRWISE, POINTWISE, JudgeError, JudgeRequest, Reply
from dt2it_pipeline.judges.rubric import CRITERIA, MAX_SCORE, overall
from dt2it_pipeline.storage import content_ids

_RULES = 1  # raise when the rules below change: it enters the template hash
WEIGHTS = dict(zip(CRITERIA, (0.6, 0.1, 0.1, 0.1, 0.05, 0.05), strict=True))
_ACCURACY = {answers.CORRECT: 10, answers.MIXED: 4, answers.NONE: 2, answers.WRONG: 1}
_HELPFULNESS = {answers.CORRECT: 9, answers.MIXED: 4, answers.NONE: 2, answers.WRONG: 3}
_ETHICS = re.compile(r"(?i)\b(?:kill yourself|idiots?|stupid|hate you)\b")


class ReferenceJudge:
    """Scores responses against the reference answers of one prompts table, from which it also learns their rivals."""

    modes = frozenset({LISTWISE, POINTWISE, PAIRWISE})
    attempts = max_runs = 1  # it would give the same reply again

    def __init__(self, prompts: Iterable[Mapping[str, Any]], name: str = "reference") -> None:
        self.name = name
        self._rivals = answers.rivals_by_reference(prompts)

    def template_hash(self, mode: str, language: str) -> str:
        """Hash of the rules' version and weights; they are the same for every language."""
        return content_ids.content_hash("reference judge", _RULES, mode, WEIGHTS)

    def fingerprint(self) -> None:
        """See Judge. Replies are not kept: asking again costs less than looking them up."""

    def judge(self, requests: Sequence[JudgeRequest]) -> Iterator[tuple[int, Reply | JudgeError]]:
        """See Judge. A prompt without a reference answer is an error of its own request."""
        return enumerate(self._judge(request) for request in requests)

    def _judge(self, request: JudgeRequest) -> Reply | JudgeError:
        reference = request.prompt["reference"]
        if not reference or not answers.words(reference):
            return JudgeError("the prompt has no reference answer")
        question = answers.question_text(request.prompt)
        covered = [_coverage(text, f"{question} {reference}") for text in request.responses]
        # A list is judged in itself: the fullest response sets the measure. Alone, all of the question is the measure.
        fullest = (max(covered) or 1.0) if request.mode != POINTWISE else 1.0
        entries: list[dict[str, Any]] = []
        for number, text in enumerate(request.responses, start=1):
            scores = self._scores(text, reference, question, covered[number - 1] / fullest)
            criteria = {name: {"weight": WEIGHTS[name], "analysis": "", "score": scores[name]} for name in CRITERIA}
            plain = {name: {"weight": WEIGHTS[name], "score": float(scores[name])} for name in CRITERIA}
            entries.append({"response": number, "criteria": criteria, "overall": round(overall(plain), 2)})
        if request.mode == PAIRWISE:
            first, second = (entry["overall"] for entry in entries)
            return Reply(json.dumps({"better": 0 if first == second else 1 if first > second else 2}))
        return Reply(json.dumps({"reference": reference, "responses": entries}, ensure_ascii=False))

    def _scores(self, text: str, reference: str, question: str, completeness: float) -> dict[str, int]:
        gold = answers.words(reference)
        if len(gold) > answers.MAX_PHRASE_WORDS:
            agreement = answers.overlap(text, reference)
            accuracy, helpfulness = round(MAX_SCORE * agreement), round(MAX_SCORE * agreement)
        else:
            verdict = answers.assess(text, reference, question, self._rivals.get(" ".join(gold), ()))
            accuracy, helpfulness = _ACCURACY[verdict], _HELPFULNESS[verdict]
        return {
            "Accuracy": accuracy,
            "Helpfulness": helpfulness,
            "Completeness": round(MAX_SCORE * completeness),
            "Language Quality": _language_quality(text),
            "Creativity": 5,  # a short factual answer has no room for it
            "Ethics": 0 if _ETHICS.search(text) else MAX_SCORE,
        }


def _coverage(text: str, wanted: str) -> float:
    """Share of the wanted words (question and reference, longer than two letters) that the text takes up, 0 to 1."""
    target = {word for word in answers.words(wanted) if len(word) > 2 or not word.isascii()}
    return len(target & set(answers.words(text))) / len(target) if target else 1.0


def _language_quality(text: str) -> int:
    """Rough form of a sentence: capital, closing stop, no word twice in a row, letters rather than debris; 0 to 10."""
    content = answers.words(text)
    score = MAX_SCORE
    score -= 2 * (text[:1].islower())
    score -= 2 * (not re.search(r"[.!?。！？][\"'”’)]*$", text.strip()))
    score -= 3 * any(a == b and not a.isdigit() and a.isascii() for a, b in itertools.pairwise(content))
    readable = sum(character.isalnum() or character.isspace() for character in text) / max(len(text), 1)
    return max(0, score - 3 * (readable < 0.7))
