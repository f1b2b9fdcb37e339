import pytest

from dt2it_pipeline.judges.answer_matching.agreement import side_that_agrees

IS_THERE = "is there a circle?"
IS_THERE_NOT = "is there not a circle?"
WHAT = "what shape is in the image?"
COLOR = "what color is it?"
COLORS = ["The color of the shape is blue.", "The color is teal."]
RECTANGLE = "The image shows a rectangle."
SHAPES = ["The image shows a circle.", "The image shows a triangle.", "This is a rectangle."]


@pytest.mark.parametrize(
    ("question", "answer", "elsewhere", "chosen", "rejected", "side"),
    [
        (IS_THERE, "No, no circle is present.", [], "## Answer\n\n- **Answer:** no", "Yes, there is one.", "chosen"),
        (IS_THERE, "No.", [], "I see a circle.", "There is no circle.", "rejected"),
        (IS_THERE, "Yes.", [], "No, there is none.", "No circle is there.", "tie"),
        (IS_THERE_NOT, "Yes, there is no circle.", [], "No, I see a circle.", "There is no circle.", "rejected"),
        # "image" and "shows" stand in one response only, and are what other answers say too.
        (WHAT, RECTANGLE, SHAPES, "## What the image shows\n\nA circle.", "A rectangle.", "rejected"),
        (WHAT, RECTANGLE, SHAPES, "It is not a rectangle.", "It's a rectangle.", "rejected"),
        (WHAT, RECTANGLE, SHAPES, "It is a circle.", "It is a triangle.", "tie"),
        (WHAT, RECTANGLE, SHAPES, "A rectangle!", "I see a rectangle.", "tie"),
        (WHAT, "The image shows a circle.", ["The image shows a circle."] * 3, "A circle.", "A square.", "tie"),
        (COLOR, "The color is red.", COLORS, "It is blue.", "**Red**, which is the color.", "rejected"),
        ("图中是什么形状？", "图中是圆形。", ["图中是方形。", "图中是三角形。"], "这是方形", "这是圆形", "rejected"),
    ],
)
def test_the_side_that_agrees_with_the_answer(question, answer, elsewhere, chosen, rejected, side):
    assert side_that_agrees(question, answer, elsewhere, chosen, rejected) == side
    mirrored = {"chosen": "rejected", "rejected": "chosen", "tie": "tie"}[side]
    assert side_that_agrees(question, answer, elsewhere, rejected, chosen) == mirrored
