"""Rows that are easily misread: verdicts in numbers, names instead of answers, texts that look like something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dt2it_pipeline.ingest.manifest import Manifest
from dt2it_pipeline.ingest.rows import SourceError
from dt2it_pipeline.ingest.sources import read_source
from dt2it_pipeline_tests.support.preference_forms import ASKED, BAD, FORMS, GOOD, said
from dt2it_pipeline_tests.support.preference_rows import PAIR, read_rows_as_pairs

NEUTRAL = {"prompt": "q?", "response_a": "bad", "response_b": "good"}


ZERO = {"prompt": "q?", "response_0": "bad", "response_1": "good"}


ONE = {"prompt": "q?", "Output1": "bad", "Output2": "good"}


LISTED = {"prompt": "q?", "responses": ["bad", "good"]}


@pytest.mark.parametrize(
    ("row", "name", "values"),
    [
        (NEUTRAL, "preference", [1, 2]),
        (NEUTRAL, "preference", ["1", "2"]),
        (NEUTRAL, "winner", ["Response 1", "Response 2"]),
        (NEUTRAL, "better_id", [0, 1]),
        (NEUTRAL, "better_id", [1, 2]),
        (ONE, "better_id", [1, 2]),
        (ONE, "winner", ["model_1", "model_2"]),
        (ZERO, "better_response_id", [0, 1]),  # PKU-SafeRLHF
        (ZERO, "winner", ["model_0", "model_1"]),
        (LISTED, "preference", [1, 2]),
        (NEUTRAL, "preferred_answer", ["bad", "good"]),
        (NEUTRAL, "winner", ["left", "right"]),
    ],
)
def test_verdicts_that_can_mean_one_thing_only(
    tmp_path: Path, row: dict[str, Any], name: str, values: list[Any]
) -> None:
    pairs, quarantine = read_rows_as_pairs(tmp_path, [row | {name: value} for value in values])
    assert quarantine.empty and pairs["chosen"].tolist() == ["bad", "good"]


@pytest.mark.parametrize(
    ("row", "name", "values"),
    [
        (ONE, "overall_preference", [-3, -2, -1, 0, 1, 2, 3]),  # HelpSteer3: above 0 is the second
        (NEUTRAL, "preference", [1, 2, 3, 4, 5]),  # a scale
        (ONE, "winner", [0, 1, 2]),
        (ONE, "better_response_id", [1, 1]),
        (ZERO, "winner", [1, 1]),
        (ZERO, "preference", [-1, 1]),
        (ZERO, "preference", [1.0, 0.5, 0.0]),
        (LISTED, "winner", ["response_1", "response_1"]),
        (NEUTRAL, "label", ["right", "wrong"]),
        ({"prompt": "q?", "response_a": "B", "response_b": "A"}, "preferred", ["B"]),
    ],
)
def test_verdicts_that_may_mean_several_things_are_an_error(
    tmp_path: Path, row: dict[str, Any], name: str, values: list[Any]
) -> None:
    with pytest.raises(SourceError, match="say what each value means, under `verdict`"):
        read_rows_as_pairs(tmp_path, [row | {name: value} for value in values])


def test_a_scale_that_is_mapped_gives_the_strength_too(tmp_path: Path) -> None:
    scale = {value: "tie" if value == 0 else "first" if value < 0 else "second" for value in range(-3, 4)}
    pairs, ties = read_rows_as_pairs(tmp_path, [ONE | {"overall_preference": value} for value in scale], verdict=scale)
    assert pairs["strength"].tolist() == [3.0, 2.0, 1.0, 1.0, 2.0, 3.0] and len(ties) == 1
    pairs, _ = read_rows_as_pairs(
        tmp_path, [ONE | {"winner": value} for value in (1, 2)], verdict={1: "second", 2: "first"}
    )
    assert pairs["strength"].isna().all()


def test_numbers_that_mean_something_else_later_end_the_reading(tmp_path: Path) -> None:
    rows = [NEUTRAL | {"preference": 1 + n % 2} for n in range(200)] + [NEUTRAL | {"preference": 0}]
    with pytest.raises(SourceError, match="has '0' behind rows in which 1 and 2 were taken for the sides"):
        read_rows_as_pairs(tmp_path, rows)
    manifest = Manifest(name="s", kind="preferences", path=str(tmp_path / "pairs.json"), licence="x")
    with pytest.raises(SourceError, match="were taken for the sides"):
        read_source(manifest, tmp_path, tmp_path / "media")


@pytest.mark.parametrize(
    "more",
    [
        {"winner": "model_b", "loser": "model_a"},
        {"chosen": "B", "rejected": "A"},
        {"better": "response_b", "worse": "response_a"},
        {"winner": "n", "loser": "m"},
    ],
)
def test_names_of_the_better_side_are_no_answers(tmp_path: Path, more: dict[str, str]) -> None:
    pairs, _ = read_rows_as_pairs(tmp_path, [NEUTRAL | {"model_a": "m", "model_b": "n"} | more])
    assert pairs[["chosen", "rejected"]].to_numpy().tolist() == [["good", "bad"]]


def test_a_number_is_the_place_of_a_side_and_no_answer_that_looks_like_it(tmp_path: Path) -> None:
    rows, better = [], []
    for number in range(60):
        counts = [str(number % 3), str(number % 3 + 1)]
        side = 1 + number // 3 % 2
        rows.append(
            {"prompt": f"How many in {number}?", "response_1": counts[0], "response_2": counts[1], "vote": side}
        )
        better.append(counts[side - 1])
    pairs, quarantine = read_rows_as_pairs(tmp_path, rows)
    assert quarantine.empty and pairs["chosen"].tolist() == better
    for row in (
        {"responses": ["3", "1"], "winner": 1},
        {"response_0": "1", "response_1": "0", "better_response_id": 1},
    ):
        with pytest.raises(SourceError, match="say what each value means"):
            read_rows_as_pairs(tmp_path, [{"prompt": "q?"} | row] * 2)
    said = [{"prompt": "q?", "response_a": "red", "response_b": "3", "preferred": each} for each in ("red", "3")]
    assert read_rows_as_pairs(tmp_path, said)[0]["chosen"].tolist() == ["red", "3"]


@pytest.mark.parametrize(
    ("row", "chosen"),
    [
        ({"response_1": "aa", "response_2": "bb", "chosen": "1", "rejected": "2"}, None),
        ({"response_1": "aa", "response_2": "bb", "winner": "Response 2", "loser": "Response 1"}, None),
        ({"response_a": "aa", "response_b": "bb", "better": "Answer 2", "worse": "Answer 1"}, None),
        (
            {
                "response_a": "aa",
                "response_b": "bb",
                "generator_a": "x",
                "generator_b": "y",
                "winner": "y",
                "loser": "x",
            },
            "bb",
        ),
        ({"response_a": "aa", "response_b": "bb", "by_a": "x", "by_b": "y", "winner": "y", "loser": "x"}, None),
        ({"responses": ["aa", "bb"], "chosen": "B", "rejected": "A"}, "bb"),
        ({"responses": ["aa", "bb"], "chosen": "1", "rejected": "0"}, None),
        ({"response_a": "aa", "response_b": "bb", "chosen": "bb", "rejected": "aa"}, "bb"),
    ],
)
def test_codes_of_the_better_and_the_worse_side_are_no_answers(
    tmp_path: Path, row: dict[str, Any], chosen: str | None
) -> None:
    """They name a side, or it is an error; never are they the texts of a pair."""
    if chosen is None:
        with pytest.raises(SourceError, match="say what each value means"):
            read_rows_as_pairs(tmp_path, [{"prompt": "q?"} | row])
    else:
        assert read_rows_as_pairs(tmp_path, [{"prompt": "q?"} | row])[0]["chosen"].tolist() == [chosen]


@pytest.mark.parametrize(
    ("row", "pair"),
    [
        ({"answers": ["red", "dark red"], "answer": "red"}, ("red", "blue")),
        ({"answers": ["no", "none"], "answer": "no"}, ("no", "yes")),
        ({"answers": ["Bob", "Robert"]}, ("Bob", "None")),
        ({"answers": ["two", "2"]}, ("two", "3")),
        ({"answers": ["Bob", "Robert", "Rob"], "answer": "Bob"}, ("Bob", "Al")),
        ({"response_a": "2", "response_b": "1"}, ("2", "1")),
        ({"response_a": "2", "response_b": "1"}, ("1", "2")),
        ({"responses": ["2", "3", "4", "5"], "answer": "2"}, ("2", "3")),
        ({"text_a": "cat sits", "text_b": "dog runs", "label": "Yes"}, ("Yes", "No")),
        ({"text_1": "a", "text_2": "b"}, ("1", "0")),
        ({"responses": [{"content": "Bob"}, {"content": "Ann"}], "answer": "Bob"}, ("Bob", "Ann")),
        ({"response_a": [{"role": "assistant", "content": "Yes"}], "response_b": "No", "answer": "Yes"}, ("Yes", "No")),
    ],
)
def test_short_answers_stay_answers(tmp_path: Path, row: dict[str, Any], pair: tuple[str, str]) -> None:
    """Beside references, options, texts to classify, and the answers that they repeat."""
    pairs, _ = read_rows_as_pairs(tmp_path, [{"question": "q?", "chosen": pair[0], "rejected": pair[1]} | row])
    assert pairs[["chosen", "rejected"]].to_numpy().tolist() == [list(pair)]


@pytest.mark.parametrize("more", [{"models": ["gpt", "llama"], "responses": ["Cat", "Dog"]}, NEUTRAL])
def test_names_of_unknown_models_are_no_answers(tmp_path: Path, more: dict[str, Any]) -> None:
    with pytest.raises(SourceError):
        read_rows_as_pairs(tmp_path, [{"prompt": "q?", "winner": "llama", "loser": "gpt"} | more])


def test_ones_and_zeros_follow_the_names_of_turned_sides(tmp_path: Path) -> None:
    row = NEUTRAL | {"winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0}
    pairs, _ = read_rows_as_pairs(tmp_path, [row], columns={"first": "response_b", "second": "response_a"})
    assert pairs["chosen"].tolist() == ["bad"]


@pytest.mark.parametrize(
    ("question", "more", "asked"),
    [
        ("Convert from base 10 to base 2.", {"input": "10"}, "Convert from base 10 to base 2.\n10"),
        ("What is 10+10?", {"context": "1"}, "1\n\nWhat is 10+10?"),
        ("The text is this one. Who?", {"context": "The text  is\nthis one."}, "The text is this one. Who?"),
        ("q?", {"input": "q?"}, "q?"),
        ("q?", {"history": "none", "document": "N/A", "post": "t3_abc"}, "q?"),
    ],
)
def test_short_inputs_are_kept_and_whole_texts_stand_once(
    tmp_path: Path, question: str, more: dict[str, str], asked: str
) -> None:
    pairs, _ = read_rows_as_pairs(tmp_path, [{"instruction": question, "chosen": "a", "rejected": "b"} | more])
    assert [turn["text"] for turn in pairs["turns"][0]] == [asked]


@pytest.mark.parametrize("verdict", ["gpt", "A", "model_a", "response_a"])
def test_sides_may_be_mapped_the_other_way_round(tmp_path: Path, verdict: str) -> None:
    row = NEUTRAL | {"model_a": "gpt", "model_b": "vicuna", "winner": verdict}
    pairs, _ = read_rows_as_pairs(tmp_path, [row], columns={"first": "response_b", "second": "response_a"})
    assert pairs[["chosen", "chosen_model"]].to_numpy().tolist() == [["bad", "gpt"]]


def test_a_strength_is_no_code_of_a_side(tmp_path: Path) -> None:
    """HelpSteer2's half above 0 means the second side throughout."""
    with pytest.raises(SourceError, match="say what each value means"):
        read_rows_as_pairs(tmp_path, [ONE | {"preference_strength": 1 + number % 2} for number in range(4)])
    rows = [NEUTRAL | {"preference": side, "preference_strength": 1 + n} for n, side in enumerate(["A", "B", "tie"])]
    pairs, ties = read_rows_as_pairs(tmp_path, rows)
    assert pairs["chosen"].tolist() == ["bad", "good"] and ties["reason"].tolist() == ["tie"]


@pytest.mark.parametrize("side", ["[null]", '[""]', '["b", ""]'])
def test_an_arena_row_with_an_empty_turn_is_no_text(tmp_path: Path, side: str) -> None:
    row = {"prompt": '["q"]', "response_a": '["a"]', "response_b": side, "winner_model_a": 1, "winner_model_b": 0}
    pairs, quarantine = read_rows_as_pairs(tmp_path, [row | {"winner_tie": 0}])
    assert pairs.empty and quarantine["reason"].tolist() == ["missing value"]


def test_a_mapping_counts_however_its_values_are_spelled(tmp_path: Path) -> None:
    turned = {"a": "second", "b": "first"}
    assert read_rows_as_pairs(tmp_path, [NEUTRAL | {"verdict": "A"}], verdict=turned)[0]["chosen"].tolist() == ["good"]
    scale = {"-1.00": "first", "N/A": "tie", 1: "second"}
    pairs, _ = read_rows_as_pairs(tmp_path, [NEUTRAL | {"verdict": each} for each in (-1, "+1", "n/a")], verdict=scale)
    assert pairs["chosen"].tolist() == ["bad", "good"] and pairs["strength"].tolist() == [1.0, 1.0]


def test_several_chosen_answers_are_not_glued_together(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "q", "chosen": ["a", "b"], "rejected": ["c", "d"]},
        {"prompt": "q", "chosen": [GOOD, GOOD], "rejected": [BAD]},
    ]
    assert set(read_rows_as_pairs(tmp_path, rows)[1]["reason"]) == {"several answers"}


def test_texts_that_look_like_conversations_stay_texts(tmp_path: Path) -> None:
    script = "Human: Hi\n\nAssistant: Hello"
    rows = [
        {"prompt": "Write a dialogue", "chosen": script, "rejected": "No."},
        {"prompt": "JSON?", "chosen": json.dumps([ASKED, GOOD]), "rejected": "no"},
        {"prompt": "JSON?", "chosen": '{"role": "user", "text": "x", "id": 7}', "rejected": '{"from": "a"}'},
    ]
    pairs, quarantine = read_rows_as_pairs(tmp_path, rows)
    assert quarantine.empty
    assert pairs["chosen"].tolist() == [row["chosen"] for row in rows]
    assert [turns[0]["text"] for turns in pairs["turns"]] == ["Write a dialogue", "JSON?", "JSON?"]
    empty = {"chosen": "\n\nHuman: q?\n\nAssistant: good", "rejected": "\n\nHuman: q?\n\nAssistant:"}
    assert read_rows_as_pairs(tmp_path, [empty])[1]["reason"].tolist() == ["missing value"]


def test_python_texts_of_lists_and_arena_lists_are_read(tmp_path: Path) -> None:
    rows = [
        {"prompt": str([ASKED]), "chosen": str([GOOD]), "rejected": str([BAD]), "images": "['a.jpg', 'b.jpg']"},
        {
            "prompt": '["q?", "more?"]',
            "response_a": '["bad", "b"]',
            "response_b": '["good", "g"]',
            "winner_model_a": 0,
            "winner_model_b": 1,
            "winner_tie": 0,
        },
    ]
    pairs, quarantine = read_rows_as_pairs(tmp_path, rows)
    assert quarantine.empty and pairs["images"].tolist() == [["a.jpg", "b.jpg"], []]
    assert pairs["chosen"].tolist() == ["good", "good\n\nUser: more?\n\nAssistant: g"]
    assert pairs["turns"][1] == [{"role": "user", "text": "q?"}]


def test_sides_with_other_images_or_system_prompts_are_quarantined(tmp_path: Path) -> None:
    def seen(name: str) -> dict[str, Any]:
        return {"role": "user", "content": [{"type": "image", "image": name}, {"type": "text", "text": "q?"}]}

    rows: list[dict[str, Any]] = [
        {"chosen": [seen("a.png"), GOOD], "rejected": [seen("b.png"), BAD]},
        {"messages": [ASKED, GOOD], "rejected_response": "bad", "images": ["a"], "rejected_images": ["b"]},
        {"chosen": [said("system", "x"), ASKED, GOOD], "rejected": [said("system", "y"), ASKED, BAD]},
        {"system": "x", "chosen": [said("system", "y"), ASKED, GOOD], "rejected": [said("system", "y"), ASKED, BAD]},
    ]
    pairs, quarantine = read_rows_as_pairs(tmp_path, rows)
    assert pairs.empty and quarantine["reason"].tolist() == ["sides differ"] * 3 + ["two system prompts"]


def test_tables_of_several_forms_are_read_row_by_row(tmp_path: Path) -> None:
    forms = [FORMS[name] for name in ("TRL, standard", "distilabel", "ms-swift, rejected_response", "VL-RewardBench")]
    columns = {name for row in forms for name in row}
    pairs, quarantine = read_rows_as_pairs(tmp_path, [dict.fromkeys(columns) | row for row in forms])
    assert quarantine.empty and pairs["chosen"].tolist() == ["good"] * 4


@pytest.mark.parametrize(
    "more",
    [
        {"image": ""},
        {"images": [None]},
        {"image": {"bytes": None, "path": None}},
        {"filename": "shard-01.json"},
        {"order": 17},
        {"history": []},
        {"messages": None},
        {"prompt_id": float("nan")},
    ],
)
def test_columns_that_hold_nothing_of_use_are_no_fault(tmp_path: Path, more: dict[str, Any]) -> None:
    pairs, quarantine = read_rows_as_pairs(tmp_path, [PAIR | more])
    assert quarantine.empty and pairs["images"].tolist() == [[]] and pairs["prompt_id"][0] != "nan"


def test_markers_that_repeat_parts_are_left_out(tmp_path: Path) -> None:
    content = [{"type": "image", "image": "a.jpg"}, {"type": "text", "text": "<image>\nq"}]
    pairs, _ = read_rows_as_pairs(tmp_path, [PAIR | {"prompt": [{"role": "user", "content": content}]}])
    assert pairs["turns"][0] == [{"role": "user", "text": "<image>q"}]


def test_the_spelling_of_a_field_counts_before_another(tmp_path: Path) -> None:
    assert read_rows_as_pairs(tmp_path, [{"Chosen": "X", **PAIR}])[0]["chosen"].tolist() == ["good"]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"margin": -1.2}, "strength contradicts the sides"),
        ({"margin": 3, "chosen_rating": 1, "rejected_rating": 5}, "ratings contradict the sides"),
        ({"margin": 0, "chosen_rating": 5, "rejected_rating": 5}, "tie"),
        ({"chosen": 4, "rejected": 5}, "not text"),
    ],
)
def test_what_contradicts_the_sides_is_quarantined(tmp_path: Path, more: dict[str, Any], reason: str) -> None:
    assert read_rows_as_pairs(tmp_path, [PAIR | more])[1]["reason"].tolist() == [reason]


def test_a_list_of_overall_scores_rates_the_answers() -> None:
    from dt2it_pipeline.ingest.adapters.auto import read
    from dt2it_pipeline.ingest.rows import Row

    for column in ("overall_score", "overall_scores", "overall_rating"):
        values = {"prompt": "hi?", "responses": ["a", "b", "c"], column: [1, 3, 2]}
        found = list(read(iter([Row("0", values, {}, "preferences", "f", {})])))
        assert sorted(item.strength for item in found) == [1.0, 1.0, 2.0]  # type: ignore[union-attr]
