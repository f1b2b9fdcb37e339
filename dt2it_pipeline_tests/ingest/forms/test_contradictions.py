"""Rows whose columns contradict each other, codes among more than two answers, and numbers without an end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dt2it_pipeline import read_preferences
from dt2it_pipeline.ingest.adapters import ADAPTERS
from dt2it_pipeline.ingest.rows import Conversation, Row, SourceError
from dt2it_pipeline_tests.support.preference_forms import said
from dt2it_pipeline_tests.support.preference_rows import PAIR, read_rows_as_pairs

NEUTRAL = {"prompt": "q?", "response_a": "bad", "response_b": "good"}
THREE = {"response_a": "Paris", "response_b": "Rome", "response_c": "Bonn"}


def battle(letter: str, *more: str) -> list[dict[str, str]]:
    turns = [said("user", "q1"), said("assistant", f"{letter}1"), said("user", "q2"), said("assistant", f"{letter}2")]
    return turns + [said("user" if n % 2 == 0 else "assistant", text) for n, text in enumerate(more)]


@pytest.mark.parametrize("turn", [1, 1.0, "1"])
def test_of_a_battle_the_turns_that_were_judged_are_kept(tmp_path: Path, turn: Any) -> None:
    row = {"conversation_a": battle("a"), "conversation_b": battle("b"), "winner": "model_b"}
    lists = {"prompt": ["q1", "q2"], "response_a": ["a1", "a2"], "response_b": ["b1", "b2"], "winner": "B"}
    pairs, _ = read_rows_as_pairs(tmp_path, [row | {"turn": turn}, lists | {"turn": turn}, row | {"turn": 2}, row])
    assert pairs["chosen"].tolist()[:2] == ["b1", "b1"] and pairs["rejected"].tolist()[:2] == ["a1", "a1"]
    assert pairs["chosen"].tolist()[2:] == ["b1\n\nUser: q2\n\nAssistant: b2"] * 2
    assert read_rows_as_pairs(tmp_path, [row | {"turn": 0}])[1]["reason"].tolist() == ["turn not understood"]
    item = next(iter(ADAPTERS["wildvision"].items([Row("0", row | {"turn": turn})])))
    assert isinstance(item, Conversation) and (item.chosen, item.rejected) == ("b1", "a1")


def test_images_of_turns_that_were_not_judged_are_left_out(tmp_path: Path) -> None:
    def seen(name: str) -> dict[str, Any]:
        return {"role": "user", "content": [{"type": "image", "image": name}, {"type": "text", "text": "q"}]}

    sides = {
        f"conversation_{side}": [seen("a.png"), said("assistant", side), seen("b.png"), said("assistant", "x")]
        for side in "ab"
    }
    pairs, _ = read_rows_as_pairs(tmp_path, [sides | {"winner": "A", "turn": 1}])
    assert pairs["images"].tolist() == [["a.png"]] and pairs["chosen"].tolist() == ["a"]


@pytest.mark.parametrize(
    "text",
    [
        '{"prompt": "q?", "responses": ["a", "b"], "ratings": [1e400, 2]}',
        '{"prompt": "q?", "responses": ["a", "b"], "ranks": [-1e400, 2]}',
        '{"prompt": "q?", "responses": ["a", "b"], "ratings": [1e308, -1e308]}',
        '{"prompt": "q?", "responses": [{"text": "a", "score": 1e400}, {"text": "b", "score": 1}]}',
        '{"prompt": "q?", "chosen": "a", "rejected": "b", "margin": 1e400}',
        '{"prompt": "q?", "chosen": "a", "rejected": "b", "chosen_rating": 1e400, "rejected_rating": 2}',
        '{"prompt": "q?", "chosen": {"text": "a", "score": 1e400}, "rejected": {"text": "b", "score": 2}}',
    ],
)
def test_a_strength_has_an_end(tmp_path: Path, text: str) -> None:
    (tmp_path / "rows.jsonl").write_text(text)
    pairs, quarantine = read_preferences(tmp_path / "rows.jsonl")
    assert pairs.empty and quarantine["reason"].str.contains("not finite").all()


def test_an_answer_says_itself_who_wrote_it(tmp_path: Path) -> None:
    answers = [{"response": "bad", "rating": 1, "model": "m"}, {"response": "good", "rating": 2, "model": None}]
    pairs, _ = read_rows_as_pairs(tmp_path, [{"prompt": "q?", "models": ["x", "n"], "completions": answers}])
    assert pairs[["chosen_model", "rejected_model"]].to_numpy().tolist() == [["n", "m"]]


@pytest.mark.parametrize(
    "row",
    [
        NEUTRAL | {"winner": "A", "loser": "A"},
        NEUTRAL | {"winner": "A", "loser": "model_a"},
        NEUTRAL | {"winner": "A", "loser": "tie"},
        NEUTRAL | {"model_a": "m", "model_b": "n", "winner": "m", "loser": "response_a"},
        {"prompt": "q?", "responses": ["aa", "bb"], "winner": "A", "loser": "A"},
        NEUTRAL | {"winner": "A", "chosen": "good", "rejected": "bad"},
        {"prompt": "q?", "responses": ["aa", "bb"], "ratings": [5, 1], "winner": "B"},
        NEUTRAL | {"winner_model_a": 0, "winner_model_b": 1, "winner_tie": 0, "model_a_score": 2, "model_b_score": 1},
    ],
)
def test_verdicts_that_contradict_each_other_give_no_pair(tmp_path: Path, row: dict[str, Any]) -> None:
    agreeing = PAIR | {"prompt": "another"}
    pairs, quarantine = read_rows_as_pairs(tmp_path, [row, agreeing])
    assert pairs["row_id"].tolist() == ["row 2"] and quarantine["reason"].tolist() == ["verdicts differ"]


def test_verdicts_that_agree_are_no_fault(tmp_path: Path) -> None:
    rows = [
        NEUTRAL | {"winner": "B", "loser": "A"},
        NEUTRAL | {"winner": "B", "chosen": "good", "rejected": "bad"},
        {"prompt": "q?", "responses": ["bad", "good"], "ratings": [1, 5], "winner": "B", "label": 7},
        {"prompt": "q?", "responses": ["bad", "good"], "ratings": [1, 5], "ranks": [2, 1]},
    ]
    for row in rows:
        pairs, quarantine = read_rows_as_pairs(tmp_path, [row])
        assert quarantine.empty and pairs["chosen"].tolist() == ["good"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"responses": ["a", "b"], "ratings": [5, 1], "ranks": [2, 1]}, "ranks contradict ratings"),
        (
            {"responses": [{"text": "a", "rank": 2, "score": 5}, {"text": "b", "rank": 1, "score": 1}]},
            "ranks contradict ratings",
        ),
        (
            {"chosen": {"text": "a", "score": 1}, "rejected": {"text": "b", "score": 5}},
            "ratings contradict the sides",
        ),
        ({"chosen": {"text": "a", "score": 1}, "rejected": {"text": "b", "score": 1}}, "tie"),
    ],
)
def test_numbers_that_contradict_the_order_give_no_pair(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    pairs, quarantine = read_rows_as_pairs(tmp_path, [{"prompt": "q?"} | row])
    assert pairs.empty and quarantine["reason"].tolist() == [reason]


def test_ranks_that_are_mapped_count_before_ratings(tmp_path: Path) -> None:
    row = {"prompt": "q?", "responses": ["a", "b"], "ratings": [5, 1], "place": [2, 1]}
    pairs, _ = read_rows_as_pairs(tmp_path, [row], columns={"ranks": "place", "answers": "responses"})
    assert pairs["chosen"].tolist() == ["b"]
    rated = {"prompt": "q?", "chosen": {"text": "a", "score": 4}, "rejected": {"text": "b", "score": 1.5}}
    assert read_rows_as_pairs(tmp_path, [rated])[0]["strength"].tolist() == [2.5]


@pytest.mark.parametrize(
    ("row", "pair"),
    [
        (THREE | {"chosen": "A", "rejected": "C"}, ("Paris", "Bonn")),
        (THREE | {"chosen": "A", "rejected": "B"}, ("Paris", "Rome")),
        ({"responses": ["Paris", "Rome", "Bonn"], "chosen": "B", "rejected": "C"}, ("Rome", "Bonn")),
        (THREE | {"chosen": "Paris", "rejected": "Bonn"}, ("Paris", "Bonn")),
        (THREE | {"question": "Paris, Rome or Bonn?", "chosen": "A", "rejected": "C"}, ("A", "C")),
        ({"question": "Paris (A), Rome (B) or Bonn (C)?", "A": "Paris", "B": "Rome", "C": "Bonn"}, ("A", "C")),
        (THREE | {"chosen": "A longer answer.", "rejected": "C"}, ("A longer answer.", "C")),
    ],
)
def test_letters_name_one_of_several_answers(tmp_path: Path, row: dict[str, Any], pair: tuple[str, str]) -> None:
    """Where the question has the options, a letter is the answer."""
    pairs, _ = read_rows_as_pairs(tmp_path, [{"question": "q?", "chosen": pair[0], "rejected": pair[1]} | row])
    assert pairs[["chosen", "rejected"]].to_numpy().tolist() == [list(pair)]


@pytest.mark.parametrize(
    "row",
    [
        THREE | {"chosen": "1", "rejected": "2"},
        THREE | {"winner": "gpt", "loser": "llama"},
        {"responses": ["Paris", "Rome", "Bonn"], "winner": "gpt", "loser": "llama"},
    ],
)
def test_codes_that_may_mean_several_answers_are_no_texts(tmp_path: Path, row: dict[str, Any]) -> None:
    pairs, quarantine = read_rows_as_pairs(tmp_path, [{"prompt": "q?"} | row])
    assert pairs.empty and quarantine["reason"].tolist() == ["codes for answers"]


def test_winner_and_loser_may_be_any_of_several_answers(tmp_path: Path) -> None:
    rows = [{"prompt": "q?"} | THREE | each for each in ({"winner": "C", "loser": "A"}, {"better": "A", "worse": "B"})]
    for row, pair in zip(rows, (["Bonn", "Paris"], ["Paris", "Rome"]), strict=True):
        pairs, _ = read_rows_as_pairs(tmp_path, [row])
        assert pairs[["chosen", "rejected"]].to_numpy().tolist() == [pair]


def test_a_verdict_on_more_than_two_answers_is_refused(tmp_path: Path) -> None:
    rows = [{"prompt": "q?"} | THREE | {"winner": winner} for winner in "AB"]
    with pytest.raises(SourceError, match="or map two to `first` and `second`"):
        read_rows_as_pairs(tmp_path, rows)
    pairs, _ = read_rows_as_pairs(tmp_path, rows, columns={"first": "response_a", "second": "response_b"})
    assert pairs["chosen"].tolist() == ["Paris", "Rome"]
    pairs, _ = read_rows_as_pairs(tmp_path, [row | {"response_c": None} for row in rows])
    assert json.loads(pairs["chosen"].to_json()) == {"0": "Paris", "1": "Rome"}
