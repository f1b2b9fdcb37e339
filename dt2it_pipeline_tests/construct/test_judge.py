"""Judging a table: orders of presentation, and judges that fail."""

from __future__ import annotations

import json

import pytest

from dt2it_pipeline.config.recipe import JudgingSettings
from dt2it_pipeline.construct.judge import judge_responses, presentation_orders
from dt2it_pipeline.judges.protocol import LISTWISE, POINTWISE, JudgeError, Reply
from dt2it_pipeline.judges.reference import ReferenceJudge
from dt2it_pipeline.storage import schemas
from dt2it_pipeline_tests.support.construct_world import COLORS, prompt_row, response_rows

TEXTS = ("It is red.", "It is blue.", "The shape is red.")


class FaultyJudge(ReferenceJudge):
    """The reference judge, with its replies spoilt by `spoil(request, reply)`."""

    def __init__(self, prompts, spoil):
        super().__init__(prompts)
        self.spoil = spoil

    def judge(self, requests):
        for place, reply in super().judge(requests):
            yield place, self.spoil(requests[place], reply)


@pytest.fixture
def world(tmp_path):
    prompts = [prompt_row(tmp_path, color) for color in COLORS[:3]]
    responses = [row for prompt in prompts for row in response_rows(prompt, *TEXTS)]
    return schemas.table(prompts, "prompts"), schemas.table(responses, "responses")


def _judge(world, spoil=None, orders=1, seed=0):
    prompts, responses = world
    rows = prompts.to_pylist()
    judge = FaultyJudge(rows, spoil) if spoil else ReferenceJudge(rows)
    judged = judge_responses(prompts, responses, [judge], JudgingSettings(orders=orders), seed)
    return judged.judgements.to_pylist(), judged.quarantine.to_pylist()


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("orders", [1, 3, 8])
def test_orders_differ_and_are_never_the_identity(count, orders):
    found = presentation_orders(count, orders, "seed")
    identity = tuple(range(count))
    assert len(set(found)) == len(found)
    assert all(sorted(order) == list(identity) for order in found)
    if count > 1:
        assert identity not in found
        assert len(found) == min(orders, {2: 1, 3: 5}.get(count, orders))
    assert found == presentation_orders(count, orders, "seed")


def test_every_response_is_judged_in_each_list_and_alone(world):
    judgements, aside = _judge(world, orders=2)
    assert aside == []
    by_mode = {mode: [row for row in judgements if row["mode"] == mode] for mode in (LISTWISE, POINTWISE)}
    assert (len(by_mode[LISTWISE]), len(by_mode[POINTWISE])) == (18, 9)
    assert all(row["status"] == "ok" and 0 <= row["score"] <= 10 for row in judgements)
    assert all(row["order"] == [] for row in by_mode[POINTWISE])
    assert all(sorted(row["order"]) == [0, 1, 2] != row["order"] for row in by_mode[LISTWISE])
    criteria = [json.loads(row["criteria"]) for row in judgements]
    assert all(len(item) == 7 and abs(item["Overall"]["difference"]) <= 0.005 for item in criteria)


def test_scores_go_to_the_response_that_was_presented_and_not_to_its_place(world):
    judgements, _ = _judge(world)
    prompts, responses = world
    text = {row["response_id"]: row["text"] for row in responses.to_pylist()}
    gold = {row["prompt_id"]: row["reference"] for row in prompts.to_pylist()}
    for row in judgements:
        assert (row["score"] > 7) == (gold[row["prompt_id"]] in text[row["response_id"]])


def test_a_faulty_listwise_reply_costs_the_prompt_and_a_pointwise_one_the_response(world):
    prompts, responses = world
    first, second = (row["prompt_id"] for row in prompts.to_pylist()[:2])

    def spoil(request, reply):
        if request.prompt["prompt_id"] == first and request.mode == LISTWISE:
            return Reply("no comment")
        if request.prompt["prompt_id"] == second and request.mode == POINTWISE and request.responses == (TEXTS[1],):
            return JudgeError("timed out")
        return reply

    judgements, aside = _judge(world, spoil)
    ids = {(row["prompt_id"], row["text"]): row["response_id"] for row in responses.to_pylist()}
    expected = {ids[first, text]: "unparsable" for text in TEXTS} | {ids[second, TEXTS[1]]: "no reply"}
    assert {row["row_id"]: row["reason"] for row in aside} == expected
    assert len(judgements) == 18  # faulty judgements are on record too
    assert {row["status"] for row in judgements} == {"ok", "unparsable", "no reply"}


def test_a_judge_that_raises_costs_only_the_requests_it_raises_on(world):
    def spoil(request, reply):
        if request.responses == (TEXTS[0],):
            raise ConnectionError("reset by peer")
        return reply

    judgements, aside = _judge(world, spoil)
    assert len(aside) == 3
    assert all(row["reason"] == "no reply" and "reset by peer" in row["detail"] for row in aside)
    assert sum(row["status"] == "ok" for row in judgements) == 15


def test_a_response_without_its_prompt_is_quarantined(world):
    prompts, responses = world
    judge = ReferenceJudge(prompts.to_pylist())
    judged = judge_responses(prompts.slice(1), responses, [judge], JudgingSettings(), 0)
    assert [row["reason"] for row in judged.quarantine.to_pylist()] == ["unknown prompt"] * 3
    assert (judged.judgements.num_rows, judged.responses.num_rows) == (12, 6)


def _with_reserve(tmp_path, own, corrupted):
    """What is judged of answers to the true image (red) and to another one, where reserves are kept."""
    prompt = prompt_row(tmp_path, "red")
    others = [prompt_row(tmp_path, color) for color in COLORS[1:]]  # they teach the judge the rivals of red
    rows = response_rows(prompt, *own)
    rows += [row | {"generator": "m|mismatched_image"} for row in response_rows(prompt, *corrupted)]
    judged = judge_responses(
        schemas.table([prompt, *others], "prompts"),
        schemas.table(rows, "responses"),
        [ReferenceJudge([prompt, *others])],
        JudgingSettings(diversity="uniform"),
        0,
    )
    texts = {row["response_id"]: row["text"] for row in judged.responses.to_pylist()}
    assert {row["response_id"] for row in judged.judgements.to_pylist()} == set(texts)
    # every response once: judged, or quarantined with the reason
    added = sum(row["generator"] == "reference" for row in judged.responses.to_pylist())
    assert judged.responses.num_rows + judged.quarantine.num_rows == len(rows) + added
    return judged, sorted(texts.values())


def test_corrupted_answers_are_added_where_all_are_good(tmp_path):
    judged, texts = _with_reserve(tmp_path, ["It is red.", "The shape is red."], ["It is blue."])
    assert texts == ["It is blue.", "It is red.", "The shape is red."]
    assert judged.enhanced == {"corrupted": 1, "reference": 0, "nothing": 0}
    assert all(len(row["order"]) == 3 for row in judged.judgements.to_pylist() if row["mode"] == LISTWISE)


def test_the_reference_is_added_where_all_are_bad(tmp_path):
    judged, texts = _with_reserve(tmp_path, ["It is blue.", "The shape is teal."], ["It is green."])
    assert texts == ["It is blue.", "The shape is teal.", "red"]
    assert judged.enhanced == {"corrupted": 0, "reference": 1, "nothing": 0}
    assert {row["generator"] for row in judged.responses.to_pylist()} == {"test", "reference"}
    assert [row["reason"] for row in judged.quarantine.to_pylist()] == ["kept in reserve and not needed"]


def test_nothing_is_added_where_answers_differ(tmp_path):
    judged, texts = _with_reserve(tmp_path, ["It is red.", "It is blue."], ["It is green."])
    assert texts == ["It is blue.", "It is red."]
    assert sum(judged.enhanced.values()) == 0
