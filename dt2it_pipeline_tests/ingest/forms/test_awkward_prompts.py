"""Prompts that stand in unusual places or forms: found, kept whole, or asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dt2it_pipeline.ingest.rows import SourceError
from dt2it_pipeline_tests.support.preference_forms import ASKED, BAD, GOOD, said
from dt2it_pipeline_tests.support.preference_rows import PAIR, read_rows_as_pairs


@pytest.mark.parametrize(
    "more",
    [
        {"messages": [{"role": "user", "content": "I am Tom."}, {"role": "assistant", "content": "Nice."}]},
        {"passage": "Tom is a cat."},
        {"history": "I am Tom the cat."},
    ],
)
def test_what_stands_before_a_question_is_not_dropped(tmp_path: Path, more: dict[str, Any]) -> None:
    pairs, quarantine = read_rows_as_pairs(tmp_path, [PAIR | more])
    assert pairs.empty and quarantine["reason"].tolist() == ["two prompts"]
    pairs, _ = read_rows_as_pairs(tmp_path, [PAIR | more | {"prompt": "I am Tom the cat.  Tom is\na cat. Who?"}])
    assert len(pairs) == 1 or "messages" in more
    if "messages" in more:
        pairs, _ = read_rows_as_pairs(
            tmp_path, [PAIR | more], columns={"conversation": "messages", "question": "prompt"}
        )
        assert [turn["text"] for turn in pairs["turns"][0]] == ["I am Tom.", "Nice.", "q?"]


def test_texts_with_headings_keep_no_prompt_in_their_answers(tmp_path: Path) -> None:
    row = {side: f"\n\nHuman: q\n\nAssistant: {side}" for side in ("chosen", "rejected")}
    pairs, _ = read_rows_as_pairs(tmp_path, [row | {"prompt": "\n\nHuman: q\n\nAssistant:"}])
    assert (pairs["chosen"][0], pairs["turns"][0][0]["text"]) == ("chosen", "q")


def test_a_prompt_that_is_a_transcript_is_taken_apart(tmp_path: Path) -> None:
    prompt = "\n\nHuman: q1\n\nAssistant: a1\n\nHuman: q2\n\nAssistant:"
    pairs, _ = read_rows_as_pairs(tmp_path, [{"prompt": prompt, "chosen": " good", "rejected": " bad"}])
    assert [turn["text"] for turn in pairs["turns"][0]] == ["q1", "a1", "q2"]


@pytest.mark.parametrize("more", [{"post": "Text."}, {"asked": [ASKED]}])
def test_a_prompt_under_an_unknown_name_is_asked_for(tmp_path: Path, more: dict[str, Any]) -> None:
    with pytest.raises(SourceError, match="may hold the prompt"):
        read_rows_as_pairs(tmp_path, [{"chosen": "good", "rejected": "bad", **more}])


def test_the_longer_prompt_counts_and_different_ones_are_quarantined(tmp_path: Path) -> None:
    sides = {"chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]}
    earlier = [said("system", "S"), said("user", "q0"), said("assistant", "a0"), ASKED]
    image = [{"role": "user", "content": [{"type": "image", "image": "a.jpg"}, {"type": "text", "text": "q?"}]}]
    rows = [sides | {"prompt": earlier}, sides | {"prompt": image}, sides | {"prompt": "another"}]
    rows.append(PAIR | {"question": "another"})
    pairs, quarantine = read_rows_as_pairs(tmp_path, rows)
    assert pairs["system"].tolist() == ["S", ""] and len(pairs["turns"][0]) == 3
    assert pairs["images"].tolist() == [[], ["a.jpg"]] and quarantine["reason"].tolist() == ["two prompts"] * 2


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"instruction": "Summarise:", "input": "TEXT"}, "Summarise:\nTEXT"),
        ({"question": "q?", "context": "passage"}, "passage\n\nq?"),
        ({"messages": [said("developer", ""), ASKED]}, "q?"),
        ({"prompt": "q?", "messages": [ASKED, said("assistant", "another")]}, "q?"),
    ],
)
def test_what_stands_beside_the_question_is_part_of_it(tmp_path: Path, row: dict[str, Any], text: str) -> None:
    pairs, quarantine = read_rows_as_pairs(tmp_path, [row | {"chosen": "good", "rejected": "bad"}])
    assert quarantine.empty and pairs["turns"][0] == [{"role": "user", "text": text}]
