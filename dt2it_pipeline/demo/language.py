"""What can be said about an image that holds one coloured shape.

Questions come from easy-VQA or are made in its format; answers are full sentences in one of two styles. The *plain*
style is one sentence. The *verbose* style says the same fact with headings, bold words, bullets and filler, and nothing
else, so that style and correctness can be varied independently of each other.

Belongs here: words. Images are drawn in `rendering.py`, source files are written in `world.py`.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

SHAPES = ("circle", "rectangle", "triangle")
COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")

Kind = Literal["shape", "color", "yes_no"]
Style = Literal["plain", "verbose"]
KINDS: tuple[Kind, ...] = ("shape", "color", "yes_no")
STYLES: tuple[Style, ...] = ("plain", "verbose")

_SHAPE_QUESTIONS = (
    "what shape is in the image?",
    "what shape does the image contain?",
    "what shape is present?",
    "what is the {color} shape?",
)
_COLOR_QUESTIONS = (
    "what color is the shape?",
    "what is the color of the shape?",
    "what color is the {shape}?",
    "what is the color of the {shape}?",
)
_PRESENCE_QUESTIONS = (
    "is there a {thing}?",
    "is there a {thing} in the image?",
    "does the image contain a {thing}?",
    "is a {thing} present?",
)
_ABSENCE_QUESTIONS = (
    "is there not a {thing}?",
    "is there not a {thing} in the image?",
    "does the image not contain a {thing}?",
    "is no {thing} present?",
)
_NEGATION = re.compile(r"\b(not|no)\b")

_PLAIN_SHAPE = (
    "The shape is a {answer}.",
    "It is a {answer}.",
    "This is a {answer}.",
    "The image shows a {answer}.",
    "The image contains a {answer}.",
    "There is a {answer} in the image.",
    "I can see a {answer}.",
    "The {color} shape is a {answer}.",
)
_PLAIN_COLOR = (
    "The shape is {answer}.",
    "It is {answer}.",
    "The color is {answer}.",
    "Its color is {answer}.",
    "The color of the shape is {answer}.",
    "The image shows a {answer} shape.",
    "The {shape} is {answer}.",
    "The color of the {shape} is {answer}.",
)
_PRESENT = (
    "there is a {thing}",
    "there is a {thing} in the image",
    "the image contains a {thing}",
    "the image shows a {thing}",
    "a {thing} is present",
    "I can see a {thing}",
)
_ABSENT = (
    "there is no {thing}",
    "there is no {thing} in the image",
    "the image does not contain a {thing}",
    "the image shows no {thing}",
    "no {thing} is present",
    "I cannot see a {thing}",
)

_HEADINGS = ("## Answer", "## Analysis", "### What the image shows", "## Visual inspection", "### Result")
_OPENINGS = (
    "Thank you for the question! Let us look at the picture step by step.",
    "To answer this, I examined the whole image carefully.",
    "Here is a careful description of what can be observed.",
    "Great question! A close look at the image gives the following.",
    "After studying the picture in detail, I can share these findings.",
)
_CLOSINGS = (
    "I hope this helps! Feel free to ask for more details.",
    "Please let me know if anything else would be useful.",
    "This conclusion follows directly from the visual evidence.",
    "Overall, the picture is simple and easy to read.",
    "If you need further analysis, I am happy to continue.",
)

_CAPTIONS = (
    "a {color} {shape}",
    "one {color} {shape} on a plain background",
    "a {shape} that is {color}",
    "a picture of a {color} {shape}",
    "an image with a single {color} {shape}",
    "a {color} {shape} on a pale background",
)

IN_DETAIL = ("Answer in detail.", "Explain in detail.", "Give a detailed answer.", "Describe it in detail.")


@dataclass(frozen=True)
class Question:
    """A question of easy-VQA, understood.

    `thing` is what is named: a colour ("what is the red shape?"), a shape ("what color is the circle?"), or for yes/no
    questions "red shape" or "circle"; empty when nothing is named. `negated` yes/no questions ask whether it is absent.
    """

    kind: Kind
    thing: str = ""
    negated: bool = False


@lru_cache(maxsize=4096)
def parse_question(text: str) -> Question:
    """Understand a question in easy-VQA's format; raises ValueError for anything else."""
    words = re.findall(r"[a-z]+", text.lower())
    shape = next((word for word in words if word in SHAPES), "")
    color = next((word for word in words if word in COLORS), "")
    if words[:1] == ["what"]:
        if "color" in words:
            return Question("color", shape)
        if "shape" in words:
            return Question("shape", color)
    elif words[:1] in (["is"], ["does"]) and (shape or color):
        return Question("yes_no", shape or f"{color} shape", bool(_NEGATION.search(text.lower())))
    raise ValueError(f"not a question in easy-VQA's format: {text!r}")


def make_question(kind: Kind, color: str, shape: str, rng: random.Random, negations: float = 0.5) -> tuple[str, str]:
    """A question of `kind` about an image of a `color` `shape`, and its answer word; yes and no are equally likely.

    `negations` is the share of yes/no questions that ask whether something is absent.
    """
    if kind == "shape":
        return rng.choice(_SHAPE_QUESTIONS).format(color=color), shape
    if kind == "color":
        return rng.choice(_COLOR_QUESTIONS).format(shape=shape), color
    negated, present = rng.random() < negations, rng.random() < 0.5
    if rng.random() < 0.5:
        thing = shape if present else rng.choice([other for other in SHAPES if other != shape])
    else:
        thing = (color if present else rng.choice([other for other in COLORS if other != color])) + " shape"
    question = rng.choice(_ABSENCE_QUESTIONS if negated else _PRESENCE_QUESTIONS).format(thing=thing)
    return question, "yes" if present != negated else "no"


def wrong_answer(question: str, answer: str, rng: random.Random) -> str:
    """A wrong answer word of the right kind; for yes/no the opposite."""
    kind = parse_question(question).kind
    if kind == "yes_no":
        return "no" if answer == "yes" else "yes"
    return rng.choice([word for word in (SHAPES if kind == "shape" else COLORS) if word != answer])


def plain_answer(question: str, answer: str, rng: random.Random) -> str:
    """One sentence that gives `answer` to `question`."""
    parsed = parse_question(question)
    if parsed.kind == "yes_no":
        return f"{answer.capitalize()}, {_presence(parsed, answer, rng)}."
    templates, named = (_PLAIN_SHAPE, "{color}") if parsed.kind == "shape" else (_PLAIN_COLOR, "{shape}")
    usable = [template for template in templates if parsed.thing or named not in template]
    return rng.choice(usable).format(answer=answer, color=parsed.thing, shape=parsed.thing)


def verbose_answer(question: str, answer: str, rng: random.Random) -> str:
    """The same fact as `plain_answer`, with markdown and filler around it."""
    parsed = parse_question(question)
    if parsed.kind == "yes_no":
        fact = _presence(parsed, answer, rng)
        body = rng.choice(
            (
                f"**{answer.capitalize()}**, {fact}.",
                f"- **Answer:** {answer}\n- **Finding:** {fact}",
                f"1. **Finding:** {fact}\n2. **Conclusion:** {answer}",
            )
        )
    else:
        label = "Shape" if parsed.kind == "shape" else "Color"
        article = "a " if parsed.kind == "shape" else ""
        body = rng.choice(
            (
                f"- **{label}:** {answer}\n- **Confidence:** high",
                f"The {label.lower()} that can be observed is **{answer}**.",
                f"1. **{label}:** {answer}\n2. **Conclusion:** it is {article}{answer}",
                f"**Finding:** it is {article}**{answer}**.",
            )
        )
    return "\n\n".join((rng.choice(_HEADINGS), rng.choice(_OPENINGS), body, rng.choice(_CLOSINGS)))


def answer_in_style(style: Style, question: str, answer: str, rng: random.Random) -> str:
    """`plain_answer` or `verbose_answer`."""
    return (plain_answer if style == "plain" else verbose_answer)(question, answer, rng)


def caption(color: str, shape: str, rng: random.Random) -> str:
    """A text-to-image caption for an image of a `color` `shape`."""
    return rng.choice(_CAPTIONS).format(color=color, shape=shape)


def read_answer(question: str, text: str) -> str | None:
    """The answer word that `text` gives to `question`, or None when it gives none or contradicts itself.

    A yes/no answer must agree with the sentence that follows it: "No, there is a red shape." does not answer whether
    there is one.
    """
    parsed = parse_question(question)
    words = re.findall(r"[a-z]+", text.lower())
    if parsed.kind != "yes_no":
        found = {word for word in words if word in (SHAPES if parsed.kind == "shape" else COLORS)}
        return found.pop() if len(found) == 1 else None
    said = {word for word in words if word == "yes"}
    # In "no circle is present" the word belongs to the sentence; as an answer it stands alone.
    if re.search(r"\bno(\*\*|,|$)", text.lower(), re.MULTILINE):
        said.add("no")
    if len(said) != 1 or parsed.thing not in " ".join(words):
        return None
    answer = said.pop()
    absent = re.search(rf"\bno {parsed.thing}\b|\bdoes not contain a {parsed.thing}\b|\bcannot see\b", text.lower())
    return answer if _is_present(parsed, answer) == (absent is None) else None


def _is_present(question: Question, answer: str) -> bool:
    return (answer == "yes") != question.negated


def _presence(question: Question, answer: str, rng: random.Random) -> str:
    return rng.choice(_PRESENT if _is_present(question, answer) else _ABSENT).format(thing=question.thing)
