"""The language of the world: every text says what it should, and nothing that it should not."""

import random

import pytest

from dt2it_pipeline.demo import language
from dt2it_pipeline.demo.easyvqa import load_split

LOOKS = [(color, shape) for color in language.COLORS for shape in language.SHAPES]


def every_question() -> dict[str, str]:
    return {question: answer for image in load_split("test") for question, answer in image.questions}


@pytest.mark.parametrize("style", ["plain", "verbose"])
def test_answers_in_both_styles_say_what_was_asked_for(style):
    rng = random.Random(0)
    for question, answer in every_question().items():
        for _ in range(20):
            assert language.read_answer(question, language.answer_in_style(style, question, answer, rng)) == answer
            wrong = language.wrong_answer(question, answer, rng)
            assert wrong != answer
            assert language.read_answer(question, language.answer_in_style(style, question, wrong, rng)) == wrong


def test_made_questions_are_those_of_easy_vqa():
    rng = random.Random(0)
    made = {language.make_question(kind, *rng.choice(LOOKS), rng)[0] for _ in range(10_000) for kind in language.KINDS}
    assert made == set(every_question())


def test_negation_turns_the_answer_around():
    assert language.parse_question("is no red shape present?") == language.Question("yes_no", "red shape", negated=True)
    rng = random.Random(0)
    replies = {language.plain_answer("is there not a red shape?", "no", rng) for _ in range(100)}
    assert "No, there is a red shape." in replies
    assert not any("not" in reply or "no " in reply.lower().removeprefix("no, ") for reply in replies)


@pytest.mark.parametrize(
    ("question", "text"),
    [
        ("is there a circle?", "No, there is a circle."),
        ("is there a circle?", "Yes, there is no circle."),
        ("is there a circle?", "Yes, there is a triangle."),
        ("is there a circle?", "Yes and no, there is a circle"),
        ("what color is the shape?", "The shape is red or blue."),
        ("what shape is present?", "The shape is red."),
        ("what shape is present?", ""),
    ],
)
def test_contradictions_are_no_answer(question, text):
    assert language.read_answer(question, text) is None


def test_other_questions_are_refused():
    with pytest.raises(ValueError, match="not a question in easy-VQA's format"):
        language.parse_question("how many shapes are there?")


def test_what_images_show_agrees_with_their_questions():
    images = load_split("test")
    known = [image for image in images if image.color and image.shape]
    assert (len(images), len(known)) == (1000, 880)
    for image in known:
        for question, answer in image.questions:
            parsed = language.parse_question(question)
            if parsed.kind == "yes_no":
                present = parsed.thing in (image.shape, f"{image.color} shape")
                assert answer == ("yes" if present != parsed.negated else "no")
            else:
                assert answer == (image.shape if parsed.kind == "shape" else image.color)
