"""Every adapter on rows of its published schema, and on what is wrong with such rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dt2it_pipeline.config.sections.t2i import T2ISettings
from dt2it_pipeline.ingest.adapters import ADAPTERS, UnknownAdapterError, adapter
from dt2it_pipeline.ingest.adapters.llava_critic import verdict
from dt2it_pipeline.ingest.reading import SourceError
from dt2it_pipeline.ingest.rows import Conversation, ImagePair, Medium, Quarantined
from dt2it_pipeline.ingest.sources import read_source
from dt2it_pipeline.reformulate.t2i import reformulate
from dt2it_pipeline_tests.support.ingest_world import image, items, source
from dt2it_pipeline_tests.support.published_rows import (
    CRITIC,
    GPT,
    HUMAN,
    IMAGES,
    JUDGE,
    ROWS,
    message,
    rated,
    turn,
)


@pytest.mark.parametrize("name", sorted(ROWS))
def test_a_row_of_each_preference_schema(tmp_path: Path, name: str) -> None:
    (made,) = items(tmp_path, [ROWS[name]], name)
    assert isinstance(made, Conversation), made
    assert (made.turns, made.chosen, made.rejected) == (({"role": "user", "text": "What is it?"},), "good", "bad")
    assert made.media == (Medium("image", "a.png"),)


@pytest.mark.parametrize("name", sorted(ROWS))
def test_a_renamed_column_is_named_with_its_row_and_what_was_found(tmp_path: Path, name: str) -> None:
    gone = next(c for c in ("question", "prompt", "text", "conversations", "conversation_a") if c in ROWS[name])
    renamed = {("renamed" if key == gone else key): value for key, value in ROWS[name].items()}
    with pytest.raises(SourceError, match=rf"source 's': column '{gone}'( or .*)? is not in line 1.*'renamed'"):
        items(tmp_path, [renamed], name)
    (made,) = items(tmp_path, [renamed], name, columns={gone: "renamed"})
    assert isinstance(made, Conversation)
    broken, whole = items(tmp_path, [renamed, ROWS[name]], name)  # one bad row does not end the source
    assert isinstance(broken, Quarantined) and broken.reason == "missing column" and gone in broken.detail
    assert isinstance(whole, Conversation)


def test_every_adapter_is_tested_on_its_schema() -> None:
    images = {"hpdv2", "hpdv3", "pick_a_pic", "image_reward", "image_reward_db"}
    benchmarks = {"vl_rewardbench", "multimodal_rewardbench", "mm_rlhf_rewardbench"}
    assert set(ADAPTERS) == {*ROWS, *images, *benchmarks, "vlfeedback"}


def test_an_unknown_adapter_is_reported_with_those_there_are() -> None:
    with pytest.raises(UnknownAdapterError, match=r"no adapter 'rlaif'; there are auto, hpdv2.*wildvision"):
        adapter("rlaif")


@pytest.mark.parametrize("as_lists", [False, True])
@pytest.mark.parametrize("column", ["img_path", "image"])
def test_ratings_become_pairs_with_strength(tmp_path: Path, as_lists: bool, column: str) -> None:
    completions: Any = [
        rated("a", "5", "5", "4"),
        rated("b", "3", "5", "4"),
        rated("c", "4", "5", "5"),
        rated("d", "N/A", "5", "5"),
    ]
    if as_lists:  # as `datasets` gives a sequence of objects
        completions = {key: [entry[key] for entry in completions] for key in completions[0]}
    made = items(
        tmp_path, [{"id": "1", "prompt": "q", "models": [], "completions": completions, column: "a.png"}], "vlfeedback"
    )
    pairs = [(m.chosen, m.rejected, m.strength) for m in made if isinstance(m, Conversation)]
    assert pairs == [("a", "b", 0.666667), ("c", "b", 0.666667)]
    assert [(m.row_id, m.part) for m in made if isinstance(m, Conversation)] == [("1", "0-1"), ("1", "1-2")]
    assert [m.ranks for m in made if isinstance(m, Conversation)] == [(1.5, 3), (1.5, 3)]
    aside = [(m.row_id, m.reason, m.detail.partition(":")[0]) for m in made if isinstance(m, Quarantined)]
    assert aside == [
        ("1", "rating is not a number", "answer 3"), ("1", "tie", "answers 0 and 2 are both rated 4.67")
    ]  # fmt: skip


def test_pairs_of_one_row_name_that_row(tmp_path: Path) -> None:
    completions = [rated("a", "5", "5", "4"), rated("b", "3", "5", "4"), rated("c", "4", "5", "5")]
    image(tmp_path / "root/a.png")
    rows = [{"id": name, "prompt": f"q {name}", "completions": completions, "image": "a.png"} for name in "xy"]
    artifact = read_source(source(tmp_path, rows, "vlfeedback"), tmp_path, tmp_path / "media")
    assert artifact["pairs"]["row_id"].to_pylist() == ["x", "x", "y", "y"]
    name = artifact["pairs"]["source"][0].as_py()
    assert artifact["pairs"]["list_id"].to_pylist() == [f"{name}/{row}" for row in ("x", "x", "y", "y")]
    assert artifact["quarantine"].select(["row_id", "reason"]).to_pylist() == [
        {"row_id": "x", "reason": "tie"},
        {"row_id": "y", "reason": "tie"},
    ]
    assert "repeated_ids" not in artifact.metadata
    ranked = [{"id": "r", "prompt": "c", "generations": ["a.png", "b.png", "c.png"], "ranking": [1, 2, 2]}]
    for name, colour in (("b", "blue"), ("c", "green")):
        image(tmp_path / f"root/{name}.png", colour)
    artifact = read_source(source(tmp_path, ranked, "image_reward", "t2i"), tmp_path, tmp_path / "media")
    pairs = reformulate(artifact["t2i_preferences"], T2ISettings(), seed=0)["pairs"]
    assert pairs["row_id"].to_pylist() == ["r", "r"] == artifact["quarantine"]["row_id"].to_pylist() * 2


def test_conversations_keep_all_their_turns(tmp_path: Path) -> None:
    first = [
        message("user", "q1"),
        message("assistant", "same"),
        message("user", "q2"),
        message("assistant", "good"),
    ]
    second = [
        message("user", "q1"),
        message("assistant", "same"),
        message("user", "q2"),
        message("assistant", "bad"),
    ]
    other = [
        message("user", "q1"),
        message("assistant", "else"),
        message("user", "q2"),
        message("assistant", "bad"),
    ]
    row = ROWS["wildvision"] | {"conversation_b": first, "conversation_a": second}
    same, parted = items(tmp_path, [row, row | {"conversation_a": other}], "wildvision")
    assert isinstance(same, Conversation) and isinstance(parted, Conversation)
    assert [turn["text"] for turn in same.turns] == ["q1", "same", "q2"]
    assert (same.chosen, same.rejected) == ("good", "bad")
    assert [turn["text"] for turn in parted.turns] == ["q1"]
    assert parted.rejected == "else\n\nUser: q2\n\nAssistant: bad"


def test_a_battle_is_won_by_side_or_by_name(tmp_path: Path) -> None:
    made = items(tmp_path, [ROWS["wildvision"] | {"winner": winner} for winner in ("Y", "model_a")], "wildvision")
    assert [item.chosen for item in made if isinstance(item, Conversation)] == ["good", "bad"]


TIES = [
    ("auto", {"tie": True}),
    ("mm_rlhf", {"is_tie": True}),
    ("wildvision", {"winner": "tie"}),
    ("wildvision", {"winner": "tie (bothbad)"}),
    ("wildvision", {"winner": "bothbad"}),
    ("llava_critic", {"conversations": [turn(HUMAN, CRITIC), turn(GPT, "Both are equally good.")]}),
]


@pytest.mark.parametrize(("name", "change"), TIES)
def test_ties_are_quarantined_as_ties(tmp_path: Path, name: str, change: dict[str, Any]) -> None:
    (made,) = items(tmp_path, [ROWS[name] | change], name)
    assert isinstance(made, Quarantined) and made.reason == "tie"


FAULTS = [
    ("mm_rlhf", {"mixed_up_image": True}, "mixed-up image"),
    ("mm_rlhf", {"video": "clip"}, "not one of image and video"),
    ("rlhf_v", {"text": "{"}, "malformed JSON"),
    ("rlhf_v", {"text": "[]"}, "malformed JSON"),
    ("rlhf_v", {"text": '{"question": "q", "chosen": "a"}'}, "missing value"),
    ("llava_human_preference", {"preference": 0}, "verdict unclear"),
    ("wildvision", {"winner": "nobody"}, "verdict unclear"),
    ("wildvision", {"winner": "x", "model_b": "x"}, "verdict unclear"),
    ("r1_reward", {"answer": ["<answer>3</answer>"]}, "verdict unclear"),
    ("r1_reward", {"answer": ["<answer>1</answer>", "<answer>2</answer>"]}, "verdict unclear"),
    ("r1_reward", {"message": "[]"}, "answers not found"),
    ("r1_reward", {"message": '[{"role": "user", "content": [5]}]'}, "row cannot be read"),
    (
        "llava_critic",
        {"conversations": [turn(HUMAN, CRITIC), turn(GPT, "Nice images.")]},
        "verdict unclear",
    ),
    (
        "llava_critic",
        {"conversations": [turn(HUMAN, "Hi"), turn(GPT, "The first response is better.")]},
        "answers not found",
    ),
    ("povid", {"conversations": [turn("robot", "?")]}, "not a conversation"),
    (
        "povid",
        {"rejected_conversations": [turn(HUMAN, "Who?"), turn(GPT, "bad")]},
        "conversations do not begin alike",
    ),
    ("spa_vl", {"image": 7}, "image paths are not text"),
    ("spa_vl", {"chosen": None}, "missing value"),
    ("auto", {"strength": "high"}, "not a number"),
]


@pytest.mark.parametrize(("name", "change", "reason"), FAULTS)
def test_a_bad_row_is_quarantined_with_its_reason(
    tmp_path: Path, name: str, change: dict[str, Any], reason: str
) -> None:
    bad, good = items(tmp_path, [ROWS[name] | change, ROWS[name]], name)
    assert isinstance(bad, Quarantined) and bad.reason == reason and isinstance(good, Conversation)


@pytest.mark.parametrize(
    ("words", "expected_verdict"),
    [
        ("The first response is better. It names the cat.", 1),
        ("Response 2 is clearly superior.", 2),
        ("The second response is worse, for it guesses.", 1),
        ("All told, the better response is: Response B", 2),
        ("Answer 1 is slightly better than answer 2.", 1),
        ("Both responses are equally accurate, so it is a tie.", 0),
        ("Neither response is better.", 0),
        ("Both name the cat.\n\nThe better response: [second].", 2),
        ("The second response is better in style alone. The better response: [A]", 1),
        ("**The better response:** [1]", 1),
        ("The better response: [first]. The better response: [second].", None),
        ("The better response: a clear one, so the first response is better.", 1),
        ("The better response: [neither], both responses are equally good.", 0),
        ("The first response is better. No, the second response is better.", None),
        ("The first response is longer.", None),
        ("", None),
    ],
)
def test_verdicts_in_words(words: str, expected_verdict: int | None) -> None:
    assert verdict(words) == expected_verdict


def test_the_form_of_the_reply_behind_a_judges_task_is_no_part_of_an_answer(tmp_path: Path) -> None:
    form = "  \n\n###### **Output Format (strictly follow):**  \n<think>Your reasons</think><answer>1/2</answer>"
    own = "\n# Output Format\nA table."
    messages = json.dumps([message("user", JUDGE + own + form)])
    (made,) = items(tmp_path, [ROWS["r1_reward"] | {"message": messages}], "r1_reward")
    assert isinstance(made, Conversation) and (made.chosen, made.rejected) == ("good" + own, "bad")


def test_mmpr_takes_one_several_or_no_images_below_the_root_of_the_part(tmp_path: Path) -> None:
    part = {"root": "images/M3CoT", "annotation": "annotations/m3cot.jsonl", "repeat_time": 2, "length": 3}
    rows = [
        {"image": image, "question": "q", "chosen": "a", "rejected": f"b{n}"}
        for n, image in enumerate(["a.png", ["a.png", "b.png"], None])
    ]
    del rows[2]["image"]
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/m3cot.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "meta.json").write_text(json.dumps({"m3cot": part}))
    more: dict[str, Any] = {"path": str(tmp_path / "meta.json"), "media_root": str(tmp_path), "format": "parts"}
    made = items(tmp_path, [], "mmpr", **more)
    found = [[medium.value for medium in item.media] for item in made if isinstance(item, Conversation)]
    assert found == [["images/M3CoT/a.png"], ["images/M3CoT/a.png", "images/M3CoT/b.png"], []]
    (tmp_path / "meta.json").write_text(json.dumps({"m3cot": part | {"annotation": "../elsewhere.jsonl"}}))
    with pytest.raises(SourceError, match=r"part 'm3cot' of meta.json: path outside the media root"):
        items(tmp_path, [], "mmpr", **more)


@pytest.mark.parametrize(("name", "row", "strength"), IMAGES)
def test_a_row_of_each_image_schema(tmp_path: Path, name: str, row: dict[str, Any], strength: float | None) -> None:
    (made,) = items(tmp_path, [row], name, kind="t2i")
    assert isinstance(made, ImagePair), made
    assert (made.caption, made.preferred.value, made.other.value, made.strength) == ("c", "a", "b", strength)


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("hpdv2", {"prompt": "c", "file_path": ["a", "b"], "human_preference": [1, 1]}, "tie"),
        ("hpdv2", {"prompt": "c", "file_path": ["a"], "human_preference": [1]}, "not two marked images"),
        ("pick_a_pic", {"caption": "c", "jpg_0": "a", "jpg_1": "b", "label_0": 0.5, "label_1": 0.5}, "tie"),
        (
            "pick_a_pic",
            {"caption": "c", "jpg_0": "a", "jpg_1": "b", "label_0": 0.7, "label_1": 0.3},
            "verdict unclear",
        ),
        ("pick_a_pic", {"caption": "c", "has_label": False}, "no label"),
        ("image_reward", {"prompt": "c", "generations": ["a", "b"], "ranking": [1]}, "ranks and images differ"),
        ("image_reward", {"prompt": "c", "generations": ["a", "b"], "ranking": [1, "second"]}, "not a number"),
    ],
)
def test_images_without_a_preference_are_quarantined(
    tmp_path: Path, name: str, row: dict[str, Any], reason: str
) -> None:
    (made,) = items(tmp_path, [row], name, kind="t2i")
    assert isinstance(made, Quarantined) and made.reason == reason


def test_rows_of_one_image_each_are_ranked_within_their_prompt(tmp_path: Path) -> None:
    rows = [
        {"image_path": path, "prompt_id": prompt, "prompt": f"caption {prompt}", "rank": rank}
        for path, prompt, rank in (("a", "p", 2), ("x", "q", 1), ("b", "p", 1), ("c", "p", 2), ("y", "q", 1))
    ]
    made = items(tmp_path, [*rows, {"prompt_id": "p"}], "image_reward_db", kind="t2i")
    pairs = [(m.caption, m.preferred.value, m.other.value) for m in made if isinstance(m, ImagePair)]
    assert pairs == [("caption p", "b", "a"), ("caption p", "b", "c")]
    aside = [(m.row_id, m.reason) for m in made if isinstance(m, Quarantined)]
    assert aside == [("line 6", "missing column"), ("p", "tie"), ("q", "tie")]


@pytest.mark.parametrize(
    ("change", "group"),
    [
        ({"Category": "open_generation/correctness_task"}, "general_correctness"),
        ({"Category": "open_generation/preference_task"}, "general_preference"),
        ({"Category": "knowledge"}, "knowledge"),
        ({"Category": "reasoning", "ID": "mathvista-1"}, "math"),
        ({"Category": "reasoning", "ID": "EMMA-Coding-1"}, "coding"),
        ({"Category": "safety", "ID": "PAIRS-1"}, "safety"),
        ({"Meta.Category": "vqa"}, "vqa"),
        ({"Meta": {"Category": "vqa"}}, "vqa"),
    ],
)
def test_groups_of_multimodal_rewardbench(tmp_path: Path, change: dict[str, Any], group: str) -> None:
    row = {"ID": "1", "Text": "q", "Image": "a.png", "Output1": "bad", "Output2": "good", "Better": "Output2"}
    (made,) = items(tmp_path, [row | change], "multimodal_rewardbench", kind="benchmark")
    assert isinstance(made, Conversation)
    assert (made.group, made.chosen, made.rejected) == (group, "good", "bad")


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"Category": "else"}, "unknown category"), ({"Category": "vqa", "Better": "both"}, "verdict unclear")],
)
def test_what_multimodal_rewardbench_does_not_have(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    row = {"ID": "1", "Text": "q", "Image": "a.png", "Output1": "bad", "Output2": "good", "Better": "Output2"}
    (made,) = items(tmp_path, [row | change], "multimodal_rewardbench", kind="benchmark")
    assert isinstance(made, Quarantined) and made.reason == reason
