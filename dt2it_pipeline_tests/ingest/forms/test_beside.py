"""What stands beside a prompt, in whichever form this is written: in the prompt, or the row is quarantined."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest

from dt2it_pipeline.ingest.adapters.auto import read
from dt2it_pipeline.ingest.proposal import propose
from dt2it_pipeline.ingest.rows import Conversation, Item, Quarantined, Row, SourceError
from dt2it_pipeline_tests.support.preference_forms import ASKED, BAD, GOOD, said
from dt2it_pipeline_tests.support.preference_rows import PAIR, read_rows_as_pairs

TEXT = "The cat sat on the mat today."
PROMPTS: dict[str, dict[str, Any]] = {
    "a text": PAIR,
    "a list of turns": PAIR | {"prompt": [ASKED]},
    "a column of messages": {"messages": [ASKED], "chosen": "good", "rejected": "bad"},
    "typed parts": PAIR | {"prompt": [{"role": "user", "content": [{"type": "text", "text": "q?"}]}]},
    "both sides": {"chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
    "one whole side": {"messages": [ASKED, GOOD], "rejected_response": "bad"},
    "two answers": {"prompt": "q?", "response_a": "bad", "response_b": "good", "winner": "B"},
    "a list": {"prompt": "q?", "responses": ["bad", "good"], "ratings": [1, 2]},
}
EARLIER = [said("user", "Who sat there?"), said("assistant", "It was a cat.")]
CONTENT: dict[str, Any] = {
    **dict.fromkeys(("context", "passage", "document", "article", "post", "background", "story", "hint"), TEXT),
    **dict.fromkeys(("scenario", "persona", "transcript", "code", "text", "instructions", "image_caption"), TEXT),
    "documents": [{"title": "Cats", "text": TEXT}],
    "contexts": [TEXT, "Another text of more words."],
    "paragraph": {"text": TEXT},
    "history": [["Who sat there?", "It was a cat."]],
    "chat_history": EARLIER,
    "conversation_history": TEXT,
    "dialogue": EARLIER,
    "options": ["Paris", "Rome"],
    "choices": {"label": ["A", "B"], "text": ["Paris", "Rome"]},
    "answer_choices": "A. Paris B. Rome C. Bonn",
    "tools": [{"name": "search", "description": "It searches."}],
    "audio": "a.wav",
    "second_image": "b.png",
    "image_a": "a.png",
    "system_prompt": TEXT,
}
FOR_JUDGES = (
    "rubric",
    "reference",
    "rationale",
    "explanation",
    "chosen_reason",
    "critique",
    "judge",
    "source",
    "title",
)


def one(row: dict[str, Any], columns: dict[str, str] | None = None) -> Item:
    """The first item of a row."""
    return next(iter(read(iter([Row("0", row, columns or {}, "preferences", "row 0", {})]), promptless=True)))


def seen(item: Conversation) -> str:
    """All that a model is shown of a prompt."""
    return " ".join([item.system, *(turn["text"] for turn in item.turns), *(str(each.value) for each in item.media)])


def words_of(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [word for each in (value.values() if isinstance(value, dict) else value) for word in words_of(each)]


@pytest.mark.parametrize(("form", "name"), product(PROMPTS, CONTENT))
def test_content_of_the_question_is_never_dropped_silently(form: str, name: str) -> None:
    item = one(PROMPTS[form] | {name: CONTENT[name]})
    if isinstance(item, Quarantined):
        assert item.reason in ("two prompts", "not read") and item.detail
        return
    assert isinstance(item, Conversation) and (item.chosen, item.rejected) == ("good", "bad")
    texts = [text for text in words_of(CONTENT[name]) if text not in ("user", "assistant")]
    assert all(text in seen(item) for text in texts) and "q?" in seen(item)


@pytest.mark.parametrize("name", [name for name in CONTENT if name not in ("system_prompt", "second_image", "image_a")])
def test_a_prompt_that_is_mapped_is_as_it_stands(name: str) -> None:
    item = one(PAIR | {name: CONTENT[name]}, {"question": "prompt"})
    assert isinstance(item, Conversation) and seen(item).split() == ["q?"]


@pytest.mark.parametrize(("form", "name"), product(PROMPTS, FOR_JUDGES))
def test_what_is_for_judges_is_not_part_of_the_prompt(form: str, name: str) -> None:
    item = one(PROMPTS[form] | {name: TEXT})
    assert isinstance(item, Conversation) and seen(item).split() == ["q?"]


@pytest.mark.parametrize("form", PROMPTS)
@pytest.mark.parametrize("nothing", [None, "", "  ", [], float("nan")])
def test_empty_columns_cost_no_row(form: str, nothing: Any) -> None:
    names = [name for name in CONTENT if name not in PROMPTS[form]]
    item = one(PROMPTS[form] | dict.fromkeys(names, nothing))
    assert isinstance(item, Conversation), item


def name_of_fault(item: Item) -> str:
    return item.reason if isinstance(item, Quarantined) else ""


@pytest.mark.parametrize("form", ["a text", "a list of turns", "a column of messages", "typed parts", "both sides"])
def test_context_stands_before_the_question_and_history_before_all(form: str) -> None:
    item = one(PROMPTS[form] | {"context": "See <b>.", "history": [["x", "y"]]})
    assert isinstance(item, Conversation) and [turn["text"] for turn in item.turns] == ["x", "y", "See <b>.\n\nq?"]


@pytest.mark.parametrize(
    "more",
    [
        {"context": "q?"},
        {"history": [ASKED]},
        {"dialogue": [ASKED]},
        {"conversation": [ASKED, GOOD]},
        {"text": "### Instruction: q? ### Response: good"},
        {"options": ["good", "bad"]},
        {"options": ["yes", "no"]},
        {"text": "good"},
        {"image_caption": TEXT, "image": "a.png"},
        {"A": "Paris", "B": "Rome"},
    ],
)
@pytest.mark.parametrize("form", ["a text", "a list of turns", "both sides"])
def test_what_repeats_the_row_is_no_fault(form: str, more: dict[str, Any]) -> None:
    item = one(PROMPTS[form] | more)
    assert isinstance(item, Conversation) and [turn["text"] for turn in item.turns] == ["q?"]


def test_a_transcript_of_the_turns_is_no_further_text(tmp_path: Path) -> None:
    turns = [said("user", "Hello there"), said("assistant", "Hi."), said("user", "How are you?")]
    row = PAIR | {"prompt": turns, "dialogue": "User: Hello there\nBot: Hi.\nUser: How are you?"}
    pairs, _ = read_rows_as_pairs(tmp_path, [row, row | {"dialogue": row["dialogue"] + f"\nBot: {TEXT}"}])
    assert pairs["row_id"].tolist() == ["row 1"]


@pytest.mark.parametrize("name", ["context", "input"])
def test_a_text_beside_several_turns_may_belong_to_any_of_them(tmp_path: Path, name: str) -> None:
    row = PAIR | {"prompt": [*EARLIER, ASKED], name: TEXT}
    pairs, quarantine = read_rows_as_pairs(tmp_path, [row])
    assert pairs.empty and quarantine["reason"].tolist() == ["two prompts"]
    pairs, _ = read_rows_as_pairs(tmp_path, [row], columns={"question": "prompt"})
    assert len(pairs["turns"][0]) == 3


@pytest.mark.parametrize(
    ("row", "asked"),
    [
        ({"instruction": "Classify.", "text": "I loved it"}, "Classify.\nI loved it"),
        ({"instruction": "Classify.", "text": ""}, "Classify."),
        ({"text": "Classify it", "input": "I loved it"}, "Classify it\nI loved it"),
        ({"question": "Who is it?", "prompt": "Tom is a cat. Who is it?"}, "Tom is a cat. Who is it?"),
        ({"question": "Who is it?", "prompt": "USER: <image>\nWho is it? ASSISTANT:"}, "Who is it?"),
        ({"question": "q?", "context": ["Tom is a cat."]}, "Tom is a cat.\n\nq?"),
        ({"question": "Paris or Rome?", "options": ["Paris", "Rome"]}, "Paris or Rome?"),
        ({"question": "(A) Paris (B) Rome?", "options": ["A. Paris", "B. Rome"]}, "(A) Paris (B) Rome?"),
        ({"question": "谁?", "context": "汤姆"}, "汤姆\n\n谁?"),
    ],
)
def test_the_whole_question_is_found(row: dict[str, Any], asked: str) -> None:
    item = one(row | {"chosen": "good", "rejected": "bad"})
    assert isinstance(item, Conversation) and item.turns[0]["text"] == asked


@pytest.mark.parametrize(
    "row",
    [
        {"question": "q?", "text": TEXT},
        {"instruction": "Classify.", "text": "A task. Classify. Then go on."},
        {"prompt": [ASKED], "question": "another one"},
        {"prompt": [ASKED], "instruction": "Be brief."},
        {"messages": [ASKED], "conversations": [*EARLIER, ASKED]},
        {"question": "q?", "prompt": "<|im_start|>system You are a bot of few words. q? <|im_end|>"},
        {"question": "q?", "context": ["One passage.", "Another passage."]},
        {"question": "Which?", "option_a": "Paris", "option_b": "Rome", "option_c": "Bonn"},
        {"question": "Which?", "A": "Paris", "B": "Rome", "C": "Bonn", "D": None},
        {"question": "谁?", "passage": "汤姆是一只住在北京的猫，他喜欢吃鱼。"},
        {"question": "ใคร?", "passage": "ทอมเป็นแมวที่ชอบกินปลา"},
    ],
)
def test_prompts_that_may_mean_several_things_are_quarantined(row: dict[str, Any]) -> None:
    assert name_of_fault(one(row | {"chosen": "good", "rejected": "bad"})) == "two prompts"


def test_two_system_prompts_are_quarantined() -> None:
    assert name_of_fault(one(PAIR | {"system": "S", "system_prompt": "T"})) == "two system prompts"
    item = one(PAIR | {"system": "S", "system_prompt": "S ", "system_instruction": None})
    assert isinstance(item, Conversation) and item.system == "S"


def test_history_keeps_its_system_prompt_and_its_images() -> None:
    picture = {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "x"}]}
    asked = {"role": "user", "content": [{"type": "text", "text": "q?"}]}
    history = [said("system", "S"), picture, said("assistant", "y")]
    item = one(PAIR | {"history": history, "prompt": [asked]})
    assert isinstance(item, Conversation) and item.system == "S" and [each.value for each in item.media] == ["a.png"]
    assert name_of_fault(one(PAIR | {"history": history})) == "two prompts"
    item = one(PAIR | {"history": [*EARLIER, ASKED]})  # the history ends with the question
    assert isinstance(item, Conversation) and len(item.turns) == 3


@pytest.mark.parametrize("more", [{"tool_calls": [{"name": "f"}]}, {"images": ["a.png"]}, {"image": "a.png"}])
def test_a_turn_keeps_no_content_beside_its_text(more: dict[str, Any]) -> None:
    for row in (PAIR | {"prompt": [ASKED | more]}, PAIR | {"chosen": GOOD | more}):
        item = one(row)
        assert isinstance(item, Quarantined) and repr(next(iter(more))) in item.detail
    assert isinstance(one(PAIR | {"prompt": [ASKED | dict.fromkeys(more)]}), Conversation)


def test_numbered_images_follow_the_first_one() -> None:
    def images(row: dict[str, Any]) -> list[Any]:
        item = one(PAIR | row)
        assert isinstance(item, Conversation)
        return [each.value for each in item.media]

    assert images({"image": "a.png", "image_2": "b.png", "image_3": None}) == ["a.png", "b.png"]
    assert images({"image": "a.png", "image_1": "a.png", "image_512": "c.png"}) == ["a.png"]
    assert images({"images": ["a.png", "b.png"], "image_a": "a.png", "image_id": "7.jpg"}) == ["a.png", "b.png"]
    assert images({"screenshot": "a.png"}) == ["a.png"]


@pytest.mark.parametrize("name", ["user", "user_message", "request"])
def test_a_prompt_is_asked_for_and_not_left_out(tmp_path: Path, name: str) -> None:
    row = {name: "q?", "response_a": "bad", "response_b": "good", "winner": "B"}
    with pytest.raises(SourceError, match="may hold the prompt"):
        read_rows_as_pairs(tmp_path, [row])
    assert len(read_rows_as_pairs(tmp_path, [row], columns={"question": name})[0]) == 1


@pytest.mark.parametrize("row", [{"instruction": "Sum up:", "input": TEXT}, {"prompt": "Sum up:", "context": TEXT}])
def test_a_proposed_manifest_reads_what_stands_beside_the_question(tmp_path: Path, row: dict[str, Any]) -> None:
    import json

    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row | {"chosen": "good", "rejected": "bad"}))
    proposal = propose(file)
    assert proposal.adapter == "auto" and not {"question", "conversation"} & set(proposal.columns)
    pairs, _ = read_rows_as_pairs(tmp_path, [row | {"chosen": "good", "rejected": "bad"}], columns=proposal.columns)
    assert TEXT in pairs["turns"][0][0]["text"]
