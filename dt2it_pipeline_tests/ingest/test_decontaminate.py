"""Decontamination: every way in which a benchmark may be in training data, and what only looks like one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from dt2it_pipeline.config.sections.cleaning import DecontaminationSettings
from dt2it_pipeline.ingest.decontaminate import (
    benchmark_content,
    contaminated_pairs,
    decontaminate,
    nearest,
    plain_words,
)
from dt2it_pipeline.media.index import MediaIndex
from dt2it_pipeline.media.store import store_image
from dt2it_pipeline.orchestrate.assets.rounds import joined_pairs, no_contamination
from dt2it_pipeline.storage import records, schemas
from dt2it_pipeline.storage.artifacts import Artifact
from dt2it_pipeline_tests.support.real_data import real_file

EQUAL_ONLY = DecontaminationSettings(perceptual_distance=None, response_characters=None)
ANSWER = "The boat in the foreground is red, and two people are standing in it, waving at the camera."


def prompt(key: str, text: str, *images: str) -> dict[str, Any]:
    return {
        "prompt_id": key,
        "source": "s",
        "system": "",
        "turns": [{"role": "user", "text": text}],
        "media": [{"kind": "image", "sha256": sha, "path": sha} for sha in images],
        "reference": None,
        "language": "en",
        "meta": "{}",
    }


def pairs_of(prompts: list[dict[str, Any]], chosen: str = "a") -> pa.Table:
    return schemas.table([records.make_pair(p["prompt_id"], chosen, "b", source="s") for p in prompts], "pairs")


def items_of(prompts: list[dict[str, Any]], chosen: str = "x") -> pa.Table:
    rows = [records.make_pair(p["prompt_id"], chosen, "y") for p in prompts]
    kept = ("pair_id", "prompt_id", "chosen_id", "rejected_id", "chosen", "rejected")
    named = [{"item_id": "i", "benchmark": "bench", "group": "g"} | {k: row[k] for k in kept} for row in rows]
    return schemas.table(named, "benchmark_items")


def test_shared_images_and_shared_text_only_questions_are_removed_and_counted() -> None:
    prompts = [
        prompt("same image", "q1", "m1", "m9"),
        prompt("other image", "q2", "m2"),
        prompt("text", "What  IS it"),
    ]
    benchmark = [prompt("b1", "q2", "m9"), prompt("b2", "what is it?")]
    content = benchmark_content(items_of(benchmark), schemas.table(benchmark, "prompts"))
    clean, removed, report = decontaminate(
        pairs_of(prompts), schemas.table(prompts, "prompts"), content, EQUAL_ONLY, {}
    )
    assert clean["prompt_id"].to_pylist() == ["other image"]
    assert removed["reason"].to_pylist() == ["image is in a benchmark", "question is in a benchmark"]
    assert removed["detail"].to_pylist() == ["bench: m9", "bench: what is it"]
    assert report == [
        {"reason": reason, "benchmark": "bench", "source": "s", "pairs": 1} for reason in removed["reason"].to_pylist()
    ]


@pytest.mark.parametrize(
    ("distance", "bits", "found"), [(None, 0, False), (0, 0, True), (4, 4, True), (4, 5, False), (6, 6, True)]
)
def test_images_that_look_alike(distance: int | None, bits: int, found: bool) -> None:
    ours, theirs = [prompt("p", "q", "m1")], [prompt("b", "other", "m2")]
    content = benchmark_content(items_of(theirs), schemas.table(theirs, "prompts"))
    hashes = {"m1": 0xF0F0_F0F0_F0F0_F0F0, "m2": 0xF0F0_F0F0_F0F0_F0F0 ^ ((1 << bits) - 1)}
    settings = DecontaminationSettings(perceptual_distance=distance)
    faults = contaminated_pairs(pairs_of(ours), schemas.table(ours, "prompts"), content, settings, hashes)
    assert [fault.reason for fault in faults.values()] == ["image looks like one of a benchmark"] * found
    # An image without structure has no hash, and looks like nothing.
    assert not contaminated_pairs(pairs_of(ours), schemas.table(ours, "prompts"), content, settings, {"m2": 0})


@pytest.mark.parametrize(
    ("question", "answer", "least", "found"),
    [
        ("<image>\nDescribe it!", ANSWER.upper().replace(",", " ,"), 64, True),
        ("Describe it", ANSWER, None, False),
        ("Describe it", ANSWER, 500, False),
        ("Describe something else", ANSWER, 64, False),
        ("Describe it", ANSWER + " So they are.", 64, False),
    ],
)
def test_an_answer_of_a_benchmark_whatever_the_image(
    question: str, answer: str, least: int | None, found: bool
) -> None:
    ours, theirs = [prompt("p", question, "m1")], [prompt("b", "Describe it.", "m2")]
    content = benchmark_content(items_of(theirs, ANSWER), schemas.table(theirs, "prompts"))
    settings = DecontaminationSettings(perceptual_distance=None, response_characters=least)
    faults = contaminated_pairs(pairs_of(ours, answer), schemas.table(ours, "prompts"), content, settings, {})
    assert [fault.reason for fault in faults.values()] == ["question and response are in a benchmark"] * found


def test_words_without_words_are_their_characters() -> None:
    assert plain_words("<image>\nWhat's THAT — a 猫?") == "what s that a 猫"
    assert plain_words("?!") == "?!"
    assert plain_words("It is \"so\" (or not): well; it's 5.5, isn't it_?") == "it is so or not well it s 5 5 isn t it_"
    assert plain_words("f(x), g(x)") == "f x g x" and plain_words("f(x) * g(x)") == "f x * g x"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("What is 3+5?", "What is 3-5?", False),
        ("What is 3 * 5?", "What is 3 / 5?", False),
        ("What is (3+5)*2?", "What is (3+5)-2?", False),
        ("Is x > 5?", "Is x < 5?", False),
        ("Simplify x - y", "Simplify x + y", False),
        ("What does C++ offer?", "What does C# offer?", False),
        ("It is -5 here", "It is 5 here", False),
        ("What is 3 + 5 ?", "what is 3+5", True),
        ("What is 3 \N{MINUS SIGN} 5", "What is 3-5?", True),
        ("# A **bold**, well-known boat - red", "a bold well known boat red", True),
        ("- one\n- two", "one, two", True),
    ],
)
def test_operators_are_words_and_punctuation_is_none(one: str, other: str, same: bool) -> None:
    assert (plain_words(one) == plain_words(other)) == same


@pytest.mark.parametrize("answer", ["a", ANSWER])
def test_a_question_of_a_benchmark_that_ends_a_conversation(answer: str) -> None:
    talk = [("user", "hello"), ("assistant", "hi"), ("user", "What is  the capital of France")]
    ours = [prompt("p", "") | {"turns": [{"role": role, "text": text} for role, text in talk]}]
    theirs = [prompt("b", "what is the capital of France?", *["m1"] * (answer == ANSWER))]
    content = benchmark_content(items_of(theirs, answer), schemas.table(theirs, "prompts"))
    faults = contaminated_pairs(
        pairs_of(ours, answer), schemas.table(ours, "prompts"), content, DecontaminationSettings(), {}
    )
    reason = "question and response are in a benchmark" if answer == ANSWER else "question is in a benchmark"
    assert [fault.reason for fault in faults.values()] == [reason]


def test_nearest_is_what_counting_bits_one_by_one_gives() -> None:
    rng = np.random.default_rng(0)
    theirs = [int(value) for value in rng.integers(0, 2**63, 50)]
    ours = [value ^ (1 << (n % 7)) for n, value in enumerate(theirs[:20])] + [
        int(v) for v in rng.integers(0, 2**63, 30)
    ]
    found = nearest(ours, theirs, 20)
    for position, value in enumerate(ours):
        distances = [(value ^ other).bit_count() for other in theirs]
        assert (position in found) == (min(distances) <= 20)
        if position in found:
            assert found[position][1] == min(distances) == distances[found[position][0]]
    assert nearest([], theirs, 6) == nearest(ours, [], 6) == {}


def test_a_scaled_and_recompressed_photograph_of_a_benchmark_is_found_and_others_stay(tmp_path: Path) -> None:
    """The whole way: imported media, hashes from the index, the training set's check."""
    photos = sorted(real_file("photos").glob("*.jpg"))
    media, root = tmp_path / "media", tmp_path / "root"
    root.mkdir()
    with Image.open(photos[0]) as image:
        image.convert("RGB").resize((image.width // 2, image.height // 2)).save(root / "copy.jpg", quality=40)
    stored = [store_image(photo.name, photo.parent, media) for photo in photos]
    copy = store_image("copy.jpg", root, media)
    assert copy.row["sha256"] != stored[0].row["sha256"]

    def prompt_with(key: str, row: dict[str, str]) -> dict[str, Any]:
        return prompt(key, f"question {key}") | {"media": [row]}

    benchmark = [prompt_with("b", stored[0].row)]
    ours = [prompt_with("copy", copy.row), *(prompt_with(photo.row["sha256"], photo.row) for photo in stored[1:])]
    parts = {"part": Artifact({"pairs": pairs_of(ours), "prompts": schemas.table(ours, "prompts")})}
    benchmarks = Artifact({"benchmark_items": items_of(benchmark), "prompts": schemas.table(benchmark, "prompts")})
    settings = DecontaminationSettings()
    made = joined_pairs(parts, benchmarks, settings, media)
    assert made["pairs"].num_rows == len(photos) - 1
    assert made["quarantine"]["reason"].to_pylist() == ["image looks like one of a benchmark"]
    assert made.metadata["decontamination"] == [
        {"reason": "image looks like one of a benchmark", "benchmark": "bench", "source": "s", "pairs": 1}
    ]
    assert no_contamination(made, benchmarks, settings, media).passed
    unclean = Artifact({"pairs": pairs_of(ours), "prompts": schemas.table(ours, "prompts")})
    assert not no_contamination(unclean, benchmarks, settings, media).passed
    known = MediaIndex(media).known([], [copy.row["sha256"]])[1]  # computed once, and remembered
    assert known[copy.row["sha256"]].perceptual == copy.perceptual
