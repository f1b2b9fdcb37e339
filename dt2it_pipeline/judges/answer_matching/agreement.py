"""Which of two responses agrees with a short answer.

Yes and no are compared as what they assert (`answers.polarity`). Otherwise the words of the answer
that tell this image from others decide: those that answers to the same question about other images lack. The more
of these lack a word, the more specific it is; "the shape is red" differs from "the shape is blue" by "red".
"""

from __future__ import annotations

from collections.abc import Sequence

from dt2it_pipeline.judges.answer_matching.answers import CORRECT, assess, polarity, polarity_word, words


def is_yes_or_no(answer: str) -> bool:
    """Whether an answer opens with yes or no; then answers about other images have no part in the comparison."""
    return bool(polarity_word(words(answer)[:1]))


def side_that_agrees(question: str, answer: str, elsewhere: Sequence[str], chosen: str, rejected: str) -> str:
    """`chosen` or `rejected`, whichever agrees with `answer`; `tie` where both do or neither does.

    Args:
        question: words of the question.
        answer: a short answer to it, about the right image.
        elsewhere: answers to the same question about other images, which show what of an answer is mere form.
        chosen: one response.
        rejected: the other.
    """
    answered = words(answer)
    if is_yes_or_no(answer):
        own = polarity(answer, question)
        return _side(int(polarity(chosen, question) == own) - int(polarity(rejected, question) == own))
    by_specificity: dict[int, list[str]] = {}
    others = [set(words(other)) for other in elsewhere]
    for word in sorted(set(answered) - set(words(question))):
        lacking = sum(word not in other for other in others)
        if lacking or not others:
            by_specificity.setdefault(lacking, []).append(word)
    for _, level in sorted(by_specificity.items(), reverse=True):
        difference = sum(_asserts(chosen, word, question) - _asserts(rejected, word, question) for word in level)
        if difference:
            return _side(difference)
    return "tie"


def _asserts(response: str, word: str, question: str) -> int:
    return int(assess(response, word, question, ()) == CORRECT)


def _side(difference: int) -> str:
    return "chosen" if difference > 0 else "rejected" if difference < 0 else "tie"
