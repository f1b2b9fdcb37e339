"""The conversations that the small base model learns from: questions, captions, two-image verdicts and answer checks.

A conversation is a list of (role, text) turns in which `<image>` stands for an image, and the numbers of its images.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dt2it_pipeline.demo import language

IMAGE = "<image>"
TWO_IMAGE_QUESTION = (
    'Here are two images generated for the caption "{caption}".\nImage 1: <image>\nImage 2: <image>\n'
    "Which image is better, judged first by how well it matches the caption and then by its quality?"
)
_OTHER_TWO_IMAGE_QUESTIONS = (
    '<image><image>Here are two images generated for the caption "{caption}". Which image is better, judged first by '
    "how well it matches the caption and then by its quality?",
    'Image 1: <image>\nImage 2: <image>\nWhich image matches the caption "{caption}"?',
    'The caption is "{caption}". Which of the two images is better?\nImage 1: <image>\nImage 2: <image>',
)
_VERDICTS = ("Image {best} is better than image {worst}.",) * 4 + (
    "Image {best} is the better one.",
    "Image {best} matches the caption better than image {worst}.",
)
_SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are an impartial evaluator. Judge how well the assistant answers the question about the picture.",
    "You are an impartial judge of the assistant's answers to the user's questions.",
)
_CAPTION_REQUESTS = ("Describe the image.", "Write a caption for the image.", "What does the picture show?")
_CHECKS = ("Is that answer correct?", "Check the answer. Is it right?", "Is this right?")
_SINGLE_TURN_CHECK = "Question: {question}\nAnswer: {answer}\nIs the answer correct?"
_IN_SHORT = ("Answer briefly.", "Answer in one sentence.", "Give a short answer.")


@dataclass(frozen=True)
class Conversation:
    """Turns of (role, text) and, for every `<image>` marker in order, the number of its image."""

    turns: list[tuple[str, str]]
    images: list[int]


class ConversationMaker:
    """Draws conversations about given images, whose colours and shapes are known."""

    def __init__(self, colors: Sequence[str], shapes: Sequence[str], rng: random.Random) -> None:
        self.colors, self.shapes, self.rng = colors, shapes, rng
        self._by_look: dict[tuple[str, str], list[int]] = {}
        for image, look in enumerate(zip(colors, shapes, strict=True)):
            self._by_look.setdefault(look, []).append(image)
        makers: list[tuple[Callable[[], Conversation], float]] = [
            (self._answer, 0.40),
            (self._detailed_answer, 0.12),
            (self._several_questions, 0.07),
            (self._caption, 0.05),
            (self._two_images, 0.24),
            (self._check, 0.12),
        ]
        self._makers, self._weights = zip(*makers, strict=True)

    def draw(self) -> Conversation:
        """Draw one conversation of a random kind; a quarter of them open with a system turn."""
        found: Conversation = self.rng.choices(self._makers, self._weights)[0]()
        if self.rng.random() < 0.25:
            return Conversation([("system", self.rng.choice(_SYSTEM_PROMPTS)), *found.turns], found.images)
        return found

    def two_images(self, images: Sequence[int], question: str = TWO_IMAGE_QUESTION) -> tuple[Conversation, int]:
        """Ask which of two images matches a caption that fits only one; returns it with the number, 1 or 2."""
        best = self.rng.randint(1, 2)
        matching = images[best - 1]
        caption = language.caption(self.colors[matching], self.shapes[matching], self.rng)
        verdict = self.rng.choice(_VERDICTS).format(best=best, worst=3 - best)
        turns = [("user", question.format(caption=caption)), ("assistant", verdict)]
        return Conversation(turns, list(images)), best

    def different_image(self, image: int) -> int:
        """Another image that differs in colour, in shape or in both, each about equally often."""
        color, shape = self.colors[image], self.shapes[image]
        ways = [(True, False), (False, True), (True, True)]
        self.rng.shuffle(ways)
        for wanted in ways:
            looks = [look for look in self._by_look if (look[0] != color, look[1] != shape) == wanted]
            if looks:
                return self.rng.choice(self._by_look[self.rng.choice(looks)])
        raise ValueError("all pictures show the same shape in the same color")

    def _image(self) -> int:
        return self.rng.randrange(len(self.colors))

    def _question(self, image: int) -> tuple[str, str]:
        # Yes/no questions ask for most: a negation, a colour or a shape, and a comparison.
        kind = self.rng.choices(language.KINDS, (0.25, 0.2, 0.55))[0]
        question, answer = language.make_question(kind, self.colors[image], self.shapes[image], self.rng)
        return (question.capitalize() if self.rng.random() < 0.1 else question), answer

    def _with_image(self, text: str) -> str:
        return self.rng.choice((IMAGE + text,) * 4 + (f"{IMAGE}\n{text}",) * 4 + (f"{text}\n{IMAGE}",))

    def _answer(self) -> Conversation:
        image = self._image()
        question, answer = self._question(image)
        asked = f"{question} {self.rng.choice(_IN_SHORT)}" if self.rng.random() < 0.1 else question
        reply = language.plain_answer(question, answer, self.rng)
        return Conversation([("user", self._with_image(asked)), ("assistant", reply)], [image])

    def _detailed_answer(self) -> Conversation:
        image = self._image()
        question, answer = self._question(image)
        asked = question + self.rng.choice((" ", "\n")) + self.rng.choice(language.IN_DETAIL)
        reply = language.verbose_answer(question, answer, self.rng)
        return Conversation([("user", self._with_image(asked)), ("assistant", reply)], [image])

    def _several_questions(self) -> Conversation:
        image = self._image()
        turns: list[tuple[str, str]] = []
        for number in range(self.rng.randint(2, 3)):
            question, answer = self._question(image)
            turns.append(("user", question if number else self._with_image(question)))
            turns.append(("assistant", language.plain_answer(question, answer, self.rng)))
        return Conversation(turns, [image])

    def _caption(self) -> Conversation:
        image = self._image()
        request = self._with_image(self.rng.choice(_CAPTION_REQUESTS))
        caption = language.caption(self.colors[image], self.shapes[image], self.rng)
        return Conversation([("user", request), ("assistant", caption.capitalize() + ".")], [image])

    def _two_images(self) -> Conversation:
        image = self._image()
        images = [image, self.different_image(image)]
        question = self.rng.choice((TWO_IMAGE_QUESTION,) * 5 + _OTHER_TWO_IMAGE_QUESTIONS)
        return self.two_images(images, question)[0]

    def _check(self) -> Conversation:
        """A right or wrong answer in either style, and whether it is right; the model is not taught to write it."""
        image = self._image()
        question, answer = self._question(image)
        right = self.rng.random() < 0.5
        style = self.rng.choice(language.STYLES)
        claimed = answer if right else language.wrong_answer(question, answer, self.rng)
        claim = language.answer_in_style(style, question, claimed, self.rng)
        verdict = "Yes, that is right." if right else "No, that is wrong."
        if self.rng.random() < 0.5:
            asked = self._with_image(_SINGLE_TURN_CHECK.format(question=question, answer=claim))
            return Conversation([("user", asked), ("assistant", verdict)], [image])
        turns = [("user", self._with_image(question)), ("assistant", claim), ("user", self.rng.choice(_CHECKS))]
        return Conversation([*turns, ("assistant", verdict)], [image])
