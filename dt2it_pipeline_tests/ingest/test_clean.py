"""Cleaning: what counts as the same pair, and as its contradiction."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pytest

from dt2it_pipeline.ingest.clean import clean_pairs, faulty_pairs, language_of, normalised, similarity
from dt2it_pipeline.storage import content_ids, records, schemas
from dt2it_pipeline_tests.support.ingest_world import LONG


def tables(rows: Sequence[tuple[str, str, str]], media: str = "m") -> tuple[pa.Table, pa.Table]:
    """Pairs and prompts of (question, chosen, rejected)."""
    prompts, pairs = {}, []
    for number, (question, chosen, rejected) in enumerate(rows):
        turns = [{"role": "user", "text": question}]
        key = content_ids.prompt_id("", turns, [media])
        prompts[key] = {
            "prompt_id": key,
            "source": "s",
            "system": "",
            "turns": turns,
            "reference": None,
            "language": "en",
            "meta": "{}",
            "media": [{"kind": "image", "sha256": media, "path": media}],
        }
        pairs.append(records.make_pair(key, chosen, rejected, source=f"s{number}"))
    return schemas.table(pairs, "pairs"), schemas.table(prompts.values(), "prompts")


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([("q", "a", "b"), ("q", "a", "c")], {}),
        ([("q", "a", "b"), ("other", "a", "b")], {}),
        ([("q", "a", "b"), ("<image>\nQ", " A", "b")], {1: "duplicate pair"}),
        ([("q", "a", "b"), ("q", "b", "a")], {0: "contradictory pair", 1: "contradictory pair"}),
        ([("q", "a", "b"), ("q", "a", "b"), ("q", "b", "A")], dict.fromkeys(range(3), "contradictory pair")),
        ([("q", "Same  text", "same text")], {0: "identical sides"}),
        ([("q", f"{LONG} {LONG}", f"{LONG}\t{LONG.upper()}"), ("other", "so", "not so")], {0: "identical sides"}),
        ([("q", "ﬁne  <image>words", "FINE words"), ("other", "\\<image>", "<image>")], {0: "identical sides"}),
        ([("q", LONG, "b"), ("q", LONG.replace("two", "three"), "b")], {1: "near-duplicate pair"}),
        ([("q", LONG, LONG.replace("red", "blue"))], {}),  # sides of one pair may be alike
        ([("q", LONG, "b"), ("q", LONG + LONG.upper()[::-1], "b")], {}),
        ([("q", LONG, "b"), ("q", LONG, "c")], {}),
    ],
)
def test_what_is_quarantined(rows: list[tuple[str, str, str]], expected: dict[int, str]) -> None:
    pairs, prompts = tables(rows)
    assert {row: fault.reason for row, fault in faulty_pairs(pairs, prompts, 0.9).items()} == expected
    kept, aside = clean_pairs(pairs, prompts, 0.9, "ingest")
    assert kept.num_rows + aside.num_rows == len(rows)
    assert aside["reason"].to_pylist() == list(expected.values())


def test_near_duplicates_are_looked_for_on_request_only() -> None:
    pairs, prompts = tables([("q", LONG, "b"), ("q", LONG.replace("two", "three"), "b")])
    assert faulty_pairs(pairs, prompts, None) == {}
    assert faulty_pairs(pairs, prompts, 0.999) == {}


def test_other_images_make_another_question() -> None:
    first, second = tables([("q", "a", "b")], "m"), tables([("q", "b", "a")], "n")
    pairs, prompts = (pa.concat_tables(both) for both in zip(first, second, strict=True))
    assert faulty_pairs(pairs, prompts, 0.9) == {}


def test_similarity_is_jaccard_over_shingles() -> None:
    assert similarity("abcdef", "abcdef") == 1
    assert similarity("abcdef", "abcdeg") == pytest.approx(1 / 3)  # abcde of abcde, bcdef, bcdeg
    assert similarity("abcdef", "uvwxyz") == 0
    assert normalised("<image>\nＡ  b") == "a b"


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("What is it?", "en"),
        ("图中的形状是什么颜色？", "zh"),
        ("这张 PNG 图片里有什么？", "zh"),
        ("The sign says 出口 in red letters", "en"),
        ("図の形は何ですか", "en"),  # kana: not Chinese, and nothing here tells more
        ("그림에 무엇이 있습니까 圖", "en"),
        ("¿Qué es?", "en"),
        ("!?", "en"),
        ("……", "en"),
    ],
)
def test_language_by_script(text: str, language: str) -> None:
    assert language_of(text, "en") == language
