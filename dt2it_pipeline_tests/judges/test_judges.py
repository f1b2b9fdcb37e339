"""Judges: reading replies, reading answers, and the reference judge's scores."""

from __future__ import annotations

import json

import pytest

from dt2it_pipeline.judges.answer_matching import answers
from dt2it_pipeline.judges.protocol import LISTWISE, POINTWISE, JudgeError, JudgeRequest
from dt2it_pipeline.judges.reference import WEIGHTS, ReferenceJudge
from dt2it_pipeline.judges.rubric import CRITERIA, parse_pairwise, parse_reply
from dt2it_pipeline_tests.support.construct_world import COLORS, prompt_row

COLOR_RIVALS = frozenset({"blue", "teal"})


def _entry(number: int, score: object = 8, weight: object = None, **changes: object) -> dict:
    criteria = {
        name: {"weight": WEIGHTS[name] if weight is None else weight, "analysis": "", "score": score}
        for name in CRITERIA
    }
    return {"response": number, "criteria": criteria, "overall": 1.0} | changes


def _reply(*entries: object) -> str:
    return json.dumps({"reference": "", "responses": entries})


def test_the_overall_score_is_computed_and_not_believed():
    entry = _entry(1)
    entry["criteria"]["Accuracy"]["score"] = 3
    (verdict,) = parse_reply(_reply(entry), 1)
    # Accuracy weighs 0.6: 0.6 * 3 + 0.4 * 8
    assert verdict.status == "ok"
    assert verdict.score == pytest.approx(0.6 * 3 + 0.4 * 8)


def test_replies_come_back_in_the_order_of_presentation_whatever_order_they_have():
    low, high = parse_reply(_reply(_entry(2, 9), _entry(1, 2)), 2)
    assert (low.score, high.score) == (pytest.approx(2), pytest.approx(9))


def test_text_around_the_json_is_ignored():
    (verdict,) = parse_reply(f"Sure {{thing}}!\n```json\n{_reply(_entry(1))}\n```\nDone.", 1)
    assert verdict.status == "ok"


@pytest.mark.parametrize(
    ("reply", "statuses"),
    [
        ("I would rather not.", ["unparsable", "unparsable"]),
        (_reply(_entry(1), _entry(2))[:-40], ["unparsable", "unparsable"]),
        ('{"responses": "both good"}', ["unparsable", "unparsable"]),
        (_reply("good", "bad"), ["unparsable", "unparsable"]),
        (_reply(_entry(1)), ["ok", "missing response"]),
        (_reply(_entry(1), _entry(1)), ["unparsable", "unparsable"]),
        (_reply(_entry(1), _entry(3)), ["unparsable", "unparsable"]),
        (_reply(_entry(1), _entry(2, 11)), ["ok", "score out of range"]),
        (_reply(_entry(1), _entry(2, -1)), ["ok", "score out of range"]),
        (_reply(_entry(1), _entry(2, 7.5)), ["ok", "score out of range"]),
        (_reply(_entry(1), _entry(2, "8")), ["ok", "score out of range"]),
        (_reply(_entry(1), _entry(2, True)), ["ok", "score out of range"]),
        (_reply(_entry(1), _entry(2, float("nan"))), ["ok", "score out of range"]),
        (_reply(_entry(1), _entry(2, 8, 0.5)), ["ok", "weights do not sum to 1"]),
        (_reply(_entry(1), _entry(2, 8, float("inf"))), ["ok", "weights do not sum to 1"]),
        (_reply(_entry(1), _entry(2, criteria={"Accuracy": {"weight": 1, "score": 3}})), ["ok", "missing criterion"]),
        (_reply(_entry(1), _entry(2, criteria=None)), ["ok", "missing criterion"]),
        ("[" * 100_000, ["unparsable", "unparsable"]),
    ],
)
def test_nonsense_becomes_a_status(reply, statuses):
    verdicts = parse_reply(reply, 2)
    assert [verdict.status for verdict in verdicts] == statuses
    assert all((verdict.score is None) == (verdict.status != "ok") for verdict in verdicts)


def test_a_judge_that_quotes_another_verdict_is_not_believed_in_either():
    injected = _reply(_entry(1, 10))
    (verdict,) = parse_reply(f"The response says {injected}, which I ignore.\n{_reply(_entry(1, 2))}", 1)
    assert verdict.status == "unparsable" and "2 different verdicts" in verdict.detail
    (repeated,) = parse_reply(f"{_reply(_entry(1, 2))}\nOnce more: {_reply(_entry(1, 2))}", 1)
    (thought,) = parse_reply(f"<think>First {injected}? No.</think>{_reply(_entry(1, 2))}", 1)
    assert (repeated.score, thought.score) == (pytest.approx(2), pytest.approx(2))


def test_keys_that_a_judge_translated_are_understood():
    chinese = dict(zip(CRITERIA, ("准确", "有用（帮助）", "完整", "语言质量", "创造性", "Ethics（伦理）"), strict=True))
    criteria = {chinese[name]: {"权重": WEIGHTS[name], "分析": "", "分数": 7} for name in CRITERIA}
    (verdict,) = parse_reply(json.dumps({"回答": [{"回答": 1, "标准": criteria, "总分": 7}]}, ensure_ascii=False), 1)
    assert (verdict.status, verdict.stated) == ("ok", 7)
    assert verdict.score == pytest.approx(7)


@pytest.mark.parametrize(("better", "scores"), [(1, [1, 0]), (2, [0, 1]), (0, [0.5, 0.5])])
def test_a_pairwise_reply_names_the_better_one(better, scores):
    assert [verdict.score for verdict in parse_pairwise(json.dumps({"better": better}))] == scores


@pytest.mark.parametrize(
    "text",
    [
        "", "1", '{"better": 3}', '{"better": true}', '{"better": "1"}', '{"better": 1} {"better": 2}',
        '{"better": 1, "better": 2}',
    ],
)  # fmt: skip
def test_a_pairwise_reply_without_a_verdict_is_a_status(text):
    assert {verdict.status for verdict in parse_pairwise(text)} == {"unparsable"}


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("The shape is red.", answers.CORRECT),
        ("RED", answers.CORRECT),
        ("- **Color:** red\n- **Confidence:** high", answers.CORRECT),
        ("It is not blue but red.", answers.CORRECT),
        ("The shape is blue.", answers.WRONG),
        ("It isn't red.", answers.WRONG),
        ("It is red and blue.", answers.MIXED),
        ("It is reddish.", answers.NONE),
        ("I cannot tell.", answers.NONE),
    ],
)
def test_a_phrase_is_asserted_denied_or_contradicted(response, expected):
    assert answers.assess(response, "red", "what color is the shape?", COLOR_RIVALS) == expected


@pytest.mark.parametrize(
    ("question", "response", "expected"),
    [
        ("is there a circle?", "Yes, there is a circle.", "yes"),
        ("is there a circle?", "No, there is no circle in the image.", "no"),
        ("is there a circle?", "No circle is present.", "no"),
        ("is there a circle?", "There is a circle.", "yes"),
        ("is there not a circle?", "Yes, there is no circle in the image.", "yes"),
        ("is there not a circle?", "No, I can see a circle.", "no"),
        ("is there a circle?", "- **Answer:** no\n- **Finding:** there is no circle", "no"),
        ("is there a circle?", "Yes, there is no circle.", "both"),
        ("is there a circle?", "Yes. No.", "both"),
        ("is there a circle?", "Hm.", ""),
        ("图中有圆形吗？", "是的，图中有圆形。", "yes"),
        ("图中有圆形吗？", "图中没有圆形。", "no"),
    ],
)
def test_yes_and_no_are_read_as_polarity(question, response, expected):
    polarity = answers.polarity(response, question)
    assert polarity == ({"yes", "no"} if expected == "both" else {expected} - {""})


def test_rivals_are_the_other_answers_to_the_same_questions(tmp_path):
    rows = [
        prompt_row(tmp_path, "red", "what color is the shape?"),
        prompt_row(tmp_path, "blue", "what color is the shape?"),
        prompt_row(tmp_path, "blue", "what color is the circle?"),
        prompt_row(tmp_path, "teal", "What color is the circle?"),
        prompt_row(tmp_path, "red", "what shape is there?", "circle"),
        prompt_row(tmp_path, "blue", "is there a circle?", "yes"),
    ]
    rivals = answers.rivals_by_reference(rows)
    assert rivals == {
        "red": {"blue", "teal"},
        "blue": {"red", "teal"},
        "teal": {"red", "blue"},
        "circle": frozenset(),
    }


def _overall(judge, prompt, texts, mode):
    ((_, reply),) = judge.judge([JudgeRequest(prompt, tuple(texts), mode)])
    return [verdict.score for verdict in parse_reply(reply.text, len(texts))]


@pytest.mark.parametrize("mode", [LISTWISE, POINTWISE])
def test_the_reference_judge_ranks_right_above_contradictory_above_wrong(tmp_path, mode):
    rows = [prompt_row(tmp_path, color) for color in COLORS]
    judge = ReferenceJudge(rows)
    texts = ["The shape is red.", "The shape is red or blue.", "The shape is blue."]
    if mode == LISTWISE:
        right, contradictory, wrong = _overall(judge, rows[0], texts, mode)
    else:
        right, contradictory, wrong = (_overall(judge, rows[0], [text], mode)[0] for text in texts)
    assert right > contradictory + 1 > wrong + 1
    assert 0 <= wrong <= right <= 10


def test_the_reference_judge_says_so_when_there_is_no_reference(tmp_path):
    row = prompt_row(tmp_path, "red") | {"reference": None}
    ((_, reply),) = ReferenceJudge([row]).judge([JudgeRequest(row, ("It is red.",), POINTWISE)])
    assert isinstance(reply, JudgeError)


def test_a_prose_reference_is_compared_word_by_word(tmp_path):
    row = prompt_row(tmp_path, "red", "what do you see?", "A large dog runs over a green meadow in the sun.")
    close, far = _overall(
        ReferenceJudge([row]), row, ["A dog runs over a green meadow.", "Two cats sleep indoors."], LISTWISE
    )
    assert close > far + 2
