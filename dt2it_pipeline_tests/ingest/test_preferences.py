"""Preference pairs from files of every public form, as DataFrames, and `dt2it style` on them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dt2it_pipeline import read_preferences
from dt2it_pipeline.ingest.manifest import ManifestError
from dt2it_pipeline.ingest.preferences import FORMS as HELP
from dt2it_pipeline.ingest.rows import SourceError
from dt2it_pipeline.style import style_probe
from dt2it_pipeline_tests.support.commands import dt2it, failing
from dt2it_pipeline_tests.support.preference_forms import FORMS, TIES, VERDICTS
from dt2it_pipeline_tests.support.preference_rows import read_rows_as_pairs

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "real_data"


NEUTRAL = {"prompt": "q?", "response_a": "bad", "response_b": "good"}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_rows(tmp_path: Path, form: str) -> None:
    pairs, quarantine = read_rows_as_pairs(tmp_path, [FORMS[form]])
    assert quarantine.empty
    (pair,) = pairs.to_dict("records")
    assert (pair["chosen"], pair["rejected"]) == ("good", "bad")
    assert pair["turns"] == [{"role": "user", "text": "q?"}]
    models = {name for name in (pair["chosen_model"], pair["rejected_model"]) if name is not None}
    assert models in (set(), {"m", "n"}) and (not models or pair["chosen_model"] == "m")


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_rows_survive_parquet(tmp_path: Path, form: str) -> None:
    pd.DataFrame([FORMS[form], FORMS[form]]).to_parquet(tmp_path / "pairs.parquet")
    pairs, quarantine = read_preferences(tmp_path / "pairs.parquet")
    assert quarantine.empty and pairs["chosen"].tolist() == ["good", "good"] and pairs["prompt_id"].nunique() == 1
    assert pairs["turns"].tolist() == [[{"role": "user", "text": "q?"}]] * 2


@pytest.mark.parametrize("value", VERDICTS)
def test_verdicts_in_words(tmp_path: Path, value: str) -> None:
    pairs, quarantine = read_rows_as_pairs(tmp_path, [NEUTRAL | {"winner": value}])
    assert quarantine.empty and pairs["chosen"].tolist() == ["good"]


def test_ties_are_quarantined(tmp_path: Path) -> None:
    pairs, quarantine = read_rows_as_pairs(tmp_path, [NEUTRAL | {"winner": value} for value in (*TIES, "B")])
    assert len(pairs) == 1 and quarantine["reason"].tolist() == ["tie"] * len(TIES)


@pytest.mark.parametrize("values", [[0, 1], [1, 1], [0, 1, 2], [-1, 1], ["x", "y"], [0.25, 0.75]])
def test_a_verdict_that_may_mean_several_things_is_an_error(tmp_path: Path, values: list[Any]) -> None:
    rows = [NEUTRAL | {"preference": value} for value in values]
    with pytest.raises(SourceError, match=r"column 'preference' is .*say what each value means, under `verdict`"):
        read_rows_as_pairs(tmp_path, rows)


def test_a_mapping_says_what_a_verdict_means(tmp_path: Path) -> None:
    rows = [NEUTRAL | {"who": value} for value in (0, 1, 2, 0.0, 7, None)]
    verdict = {"0": "first", "1": "second", "2": "tie"}
    pairs, quarantine = read_rows_as_pairs(tmp_path, rows, columns={"verdict": "who"}, verdict=verdict)
    assert pairs["chosen"].tolist() == ["bad", "good", "bad"]
    assert quarantine["reason"].tolist() == ["tie", "verdict not understood", "no verdict"]
    assert "'7'" in quarantine["detail"][1]
    with pytest.raises(ManifestError, match=r"'first', 'second' or 'tie'"):
        read_rows_as_pairs(tmp_path, rows, verdict={"0": "left"})
    with pytest.raises(ManifestError, match="unknown fields"):
        read_rows_as_pairs(tmp_path, rows, columns={"verdikt": "who"})
    for partial in ({"0": "first"}, {"0": "first", "1": "first"}, {"2": "tie"}):
        with pytest.raises(ManifestError, match="which values mean `first` and which mean `second`"):
            read_rows_as_pairs(tmp_path, rows, columns={"verdict": "who"}, verdict=partial)


def test_a_verdict_is_never_ignored(tmp_path: Path) -> None:
    rows = [NEUTRAL | {"winner": "B"}]
    with pytest.raises(SourceError, match="'winner' may say which is better"):
        read_rows_as_pairs(tmp_path, rows, columns={"chosen": "response_a", "rejected": "response_b"})
    with pytest.raises(SourceError, match="no column says which is better"):
        read_rows_as_pairs(tmp_path, [NEUTRAL])
    with pytest.raises(SourceError, match="name the column that counts"):
        read_rows_as_pairs(tmp_path, [NEUTRAL | {"winner": "A", "human_vote": "B"}])
    pairs, _ = read_rows_as_pairs(
        tmp_path, [NEUTRAL | {"winner": "A", "human_vote": "B"}], columns={"verdict": "human_vote"}
    )
    assert pairs["chosen"].tolist() == ["good"]


SCORES = [
    (NEUTRAL, ("score_a", "score_b")),
    (NEUTRAL, ("Score A", "Score B")),
    (NEUTRAL, ("response_a_rating", "response_b_rating")),
    (NEUTRAL, ("model_a_score", "model_b_score")),
    ({"prompt": "q?", "Output1": "bad", "Output2": "good"}, ("score1", "score2")),
    ({"prompt": "q?", "answer_0": "bad", "answer_1": "good"}, ("0_reward", "1_reward")),
]


@pytest.mark.parametrize(("row", "names"), SCORES)
@pytest.mark.parametrize("as_text", [False, True])
def test_two_scores_without_a_verdict(
    tmp_path: Path, row: dict[str, Any], names: tuple[str, str], as_text: bool
) -> None:
    values: list[tuple[Any, Any]] = [(2, 4.5), (3, 3.0), (5, 1), (1, None), (float("nan"), 1)]
    if as_text:
        values = [(str(one), "" if other is None else str(other)) for one, other in values[:4]]
    pairs, quarantine = read_rows_as_pairs(tmp_path, [row | dict(zip(names, both, strict=True)) for both in values])
    assert pairs[["chosen", "rejected", "strength"]].values.tolist() == [["good", "bad", 2.5], ["bad", "good", 4.0]]
    assert quarantine["reason"].tolist() == ["tie", "no verdict"] + ([] if as_text else ["no verdict"])
    assert names[1] in quarantine["detail"][1] and "equal scores" in quarantine["detail"][0]


@pytest.mark.parametrize(
    "more",
    [
        {"score_a": 1},  # of one side
        {"score_a": 1, "score_2": 2},  # not alike
        {"score_1": 1, "score_2": 2},
        {"score_a": 1, "score_b": 2, "rating_a": 2, "rating_b": 1},
        {"score_a": "low", "score_b": "high"},
        {"score_a": 1, "score_b": "inf"},
        {"rank_a": 1, "rank_b": 2},
    ],
)
def test_scores_that_are_not_clear_are_no_verdict(tmp_path: Path, more: dict[str, Any]) -> None:
    with pytest.raises(SourceError, match="no column says which is better"):
        read_rows_as_pairs(tmp_path, [NEUTRAL | more])


def test_scores_beside_a_verdict(tmp_path: Path) -> None:
    def scored(one: Any, other: Any, winner: Any = "B") -> dict[str, Any]:
        return NEUTRAL | {"prompt": f"q {one} {other} {winner}?", "score_a": one, "score_b": other, "winner": winner}

    agreeing = [scored(1, 9), scored(5, 5), scored(None, 1), scored("low", "high")]
    differing = [scored(9, 1), scored(1, 9, "A"), scored("3.5", "2")]
    others = [scored(9, 1, None), scored(9, 1, "tie"), NEUTRAL | {"score_a": 9, "score_b": 1}]
    pairs, quarantine = read_rows_as_pairs(tmp_path, agreeing + differing + others)
    assert pairs["chosen"].tolist() == ["good"] * 4 and pairs["strength"].isna().all()
    reasons = ["verdicts differ"] * 3 + ["no verdict", "tie", "no verdict column"]
    assert quarantine["reason"].tolist() == reasons
    assert "prefers 'response_b', columns 'score_a' and 'score_b' the other answer, by 8" in quarantine["detail"][0]
    # What the manifest maps counts alone.
    mapped, quarantine = read_rows_as_pairs(tmp_path, differing, columns={"verdict": "winner"})
    assert mapped["chosen"].tolist() == ["good", "bad", "good"] and quarantine.empty


def test_a_file_whose_lower_scores_are_better_is_no_source_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="map `verdict` under `columns`"):
        read_rows_as_pairs(tmp_path, [NEUTRAL | {"score_a": 9, "score_b": 1, "winner": "B"}])


def test_scores_of_mapped_sides(tmp_path: Path) -> None:
    scored = NEUTRAL | {"score_a": 9, "score_b": 1}
    mapped, _ = read_rows_as_pairs(tmp_path, [scored], columns={"first": "response_a", "second": "response_b"})
    assert mapped["chosen"].tolist() == ["bad"]
    turned, _ = read_rows_as_pairs(tmp_path, [scored], columns={"first": "response_b", "second": "response_a"})
    assert turned["chosen"].tolist() == ["bad"]  # `a` goes with response_a, whatever comes first
    other = {"prompt": "q?", "mine": "bad", "theirs": "good", "mine_score": 1, "theirs_score": 2}
    mapped, _ = read_rows_as_pairs(tmp_path, [other], columns={"first": "mine", "second": "theirs"})
    assert mapped["chosen"].tolist() == ["good"]


def test_lists_give_every_pair_with_its_ranks(tmp_path: Path) -> None:
    row = {"id": "r", "prompt": "q?", "responses": ["c", "a", "b", "b2", "?"], "ratings": [1, 5, 3, 3, None]}
    pairs, quarantine = read_rows_as_pairs(tmp_path, [row])
    assert list(zip(pairs["chosen"], pairs["rejected"], pairs["strength"], strict=True)) == [
        ("a", "c", 4.0), ("b", "c", 2.0), ("b2", "c", 2.0), ("a", "b", 2.0), ("a", "b2", 2.0)
    ]  # fmt: skip
    assert set(pairs["list_id"]) == {"r"} and pairs["prompt_id"].nunique() == 1
    assert pairs[["chosen_rank", "rejected_rank"]].to_numpy().tolist() == [
        [1.0, 4.0], [2.5, 4.0], [2.5, 4.0], [1.0, 2.5], [1.0, 2.5]
    ]  # fmt: skip
    assert quarantine["reason"].tolist() == ["answers without a rank", "tie"]


def test_an_order_is_not_taken_for_ranks(tmp_path: Path) -> None:
    row = {"prompt": "q?", "responses": ["a", "b", "c"], "ranking": [2, 0, 1]}
    with pytest.raises(SourceError, match="map `ranks` or `order` to it"):
        read_rows_as_pairs(tmp_path, [row])
    pairs, _ = read_rows_as_pairs(tmp_path, [row], columns={"ranks": "ranking"})
    assert pairs["chosen"].tolist()[0] == "b" and set(pairs["chosen"]) == {"b", "c"}
    pairs, _ = read_rows_as_pairs(tmp_path, [row], columns={"order": "ranking"})
    assert pairs.loc[pairs["chosen_rank"] == 1, "chosen"].tolist() == ["c", "c"]
    pairs, _ = read_rows_as_pairs(tmp_path, [{"prompt": "q?", "responses": ["a", "b"], "ranking": [2, 1]}])
    assert pairs["chosen"].tolist() == ["b"]


def test_several_rejected_answers_are_a_list(tmp_path: Path) -> None:
    row = {"prompt": "q?", "chosen": "good", "rejected": ["bad", "worse"], "chosen_score": 3, "rejected_score": [2, 1]}
    pairs, _ = read_rows_as_pairs(tmp_path, [row])
    assert pairs["rejected"].tolist() == ["bad", "worse"] and pairs["strength"].tolist() == [1.0, 2.0]
    assert pairs["chosen_rank"].tolist() == [1.0, 1.0] and pairs["list_id"].nunique() == 1


def test_ratings_that_contradict_the_sides_are_quarantined(tmp_path: Path) -> None:
    row = {"prompt": "q?", "chosen": "good", "rejected": "bad"}
    rows = [row | {"score_chosen": a, "score_rejected": b} for a, b in ((2, 1), (1, 1), (1, 2), (None, 2))]
    pairs, quarantine = read_rows_as_pairs(tmp_path, rows)
    assert quarantine["reason"].tolist() == ["tie", "ratings contradict the sides"]
    assert pairs["strength"].fillna(-1).tolist() == [1.0, -1.0]


def test_conversations_keep_all_their_turns(tmp_path: Path) -> None:
    def chat(*texts: str) -> list[dict[str, str]]:
        return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]

    rows = [
        {"chosen": chat("a", "b", "c", "good"), "rejected": chat("a", "b", "c", "bad")},
        {"messages": chat("a", "b", "c", "good"), "rejected_response": "bad"},
        {"prompt": chat("a", "b", "c"), "chosen": "good", "rejected": "bad"},
        {"instruction": "c", "history": [["a", "b"]], "chosen": "good", "rejected": "bad"},
    ]
    pairs, quarantine = read_rows_as_pairs(tmp_path, rows)
    assert quarantine.empty and pairs["prompt_id"].nunique() == 1
    assert [turn["text"] for turn in pairs["turns"][3]] == ["a", "b", "c"]
    parted = {"chosen": chat("a", "b", "c", "good"), "rejected": chat("a", "x", "y", "bad")}
    pairs, _ = read_rows_as_pairs(tmp_path, [parted])
    assert pairs["chosen"].tolist() == ["b\n\nUser: c\n\nAssistant: good"]


@pytest.mark.parametrize("text", ["[1, 2]", '{"a": "b"}', "[]", '["a", "b"]', "[image]", '[{"a": 1}]'])
def test_an_answer_that_is_json_is_a_text(tmp_path: Path, text: str) -> None:
    pairs, quarantine = read_rows_as_pairs(tmp_path, [{"prompt": text, "chosen": text, "rejected": "bad"}])
    assert quarantine.empty and pairs["chosen"].tolist() == [text]
    assert pairs["turns"][0] == [{"role": "user", "text": text}]


def test_images_stand_in_parts_and_in_columns(tmp_path: Path) -> None:
    part = {"type": "image"}
    text = {"type": "text", "text": "What is in <image>?"}
    answers = {"chosen": "good", "rejected": "bad"}
    rows = [
        {"prompt": [{"role": "user", "content": [part, text]}], "images": ["a.png"]},
        {"prompt": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a.png"}}, text]}]},
        {"prompt": [{"role": "user", "content": [{"type": "image", "image": "a.png"}, text]}]},
    ]
    pairs, quarantine = read_rows_as_pairs(tmp_path, [row | answers for row in rows])
    assert quarantine.empty and pairs["prompt_id"].nunique() == 1
    assert pairs["turns"][0] == [{"role": "user", "text": r"<image>What is in \<image>?"}]
    assert pairs["images"].tolist() == [["a.png"]] * 3
    both = rows[1] | {"images": ["b.png"]} | answers
    assert read_rows_as_pairs(tmp_path, [both])[1]["reason"].tolist() == ["image markers and images differ"]


def test_rows_that_hold_no_pair_are_quarantined(tmp_path: Path) -> None:
    rows = [
        {"question": "q", "chosen": "good", "rejected": "bad"},
        {"question": "q", "chosen": "same", "rejected": "same"},
        {"question": "q", "chosen": "", "rejected": "bad"},
        {"query": "q", "response": ["a", "b"], "human_ranking": [0, 0]},
        "not an object",
    ]
    pairs, quarantine = read_rows_as_pairs(tmp_path, rows, "pairs.jsonl")
    assert len(pairs) == 1
    reasons = {"identical sides", "missing value", "tie", "malformed JSON"}
    assert set(quarantine["reason"]) == reasons and len(quarantine) == 4


@pytest.mark.parametrize(
    "change",
    [
        {"chosen": "half \ud800"},
        {"prompt_id": "\ud800"},
        {"chosen_model": "\ud800", "rejected_model": "n"},
        {"chosen": {"role": "user"}},
        {"rejected": [{"role": "assistant", "content": [{"type": "audio"}]}]},
        {"margin": "wide"},
        {"tie": "perhaps"},
        {"question": {"a": 1}},
    ],
)
def test_an_odd_row_costs_that_row_alone(tmp_path: Path, change: dict[str, Any]) -> None:
    good = {"question": "q", "chosen": "good", "rejected": "bad"}
    pairs, quarantine = read_rows_as_pairs(tmp_path, [good | change, good], "pairs.jsonl")
    assert (len(pairs), len(quarantine)) == (1, 1)


@pytest.mark.parametrize("text", ["[" * 10**5, "1" * 5000])
def test_a_file_that_no_reader_takes_is_quarantined_whole(tmp_path: Path, text: str) -> None:
    (tmp_path / "pairs.jsonl").write_text(text)
    pairs, quarantine = read_preferences(tmp_path / "pairs.jsonl")
    assert pairs.empty and len(quarantine) == 1


def test_the_prompt_is_its_words_and_its_image(tmp_path: Path) -> None:
    rows = [{"question": q, "image": i, "chosen": "a", "rejected": "b"} for q, i in ("xy", "xy", "xz", "wy")]
    pairs, _ = read_rows_as_pairs(tmp_path, rows)
    assert pairs["prompt_id"].nunique() == 3


def test_pairs_without_a_prompt_share_none(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("prompt_id,question,chosen,rejected\n,q,a,b\n,q,c,d\n7,q,i,j\n")
    assert read_preferences(tmp_path / "pairs.csv")[0]["prompt_id"].nunique() == 2
    pairs, _ = read_rows_as_pairs(tmp_path, [{"chosen": a, "rejected": b} for a, b in ("ab", "cd")])
    assert pairs["prompt_id"].nunique() == 2 and pairs["turns"].tolist() == [[], []]


def test_files_that_are_of_no_use_are_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"gone\.json"):
        read_preferences(tmp_path / "gone.json")
    with pytest.raises(SourceError, match=r"column 'chosen' or 'rejected' is not in .*which has \['answer'\]"):
        read_rows_as_pairs(tmp_path, [{"answer": "a"}])
    (tmp_path / "half.jsonl").write_text('{"question": "q", "chosen": "a", "rejected": "b"}\n{"chosen')
    pairs, quarantine = read_preferences(tmp_path / "half.jsonl")
    assert (len(pairs), quarantine["reason"].tolist()) == (1, ["malformed JSON"])
    assert failing("style", tmp_path / "gone.json") == f"there is no file {tmp_path / 'gone.json'}"


def test_columns_may_have_any_name(tmp_path: Path) -> None:
    rows = [{"q": f"q{i // 2}", "foto": "p", "nice": f"good {i}", "poor": f"bad {i}"} for i in range(40)]
    path = tmp_path / "own.json"
    path.write_text(json.dumps([*rows, {"q": "x", "nice": "same", "poor": "same", "foto": "p"}]))
    columns = ["--column", "chosen=nice", "--column", "rejected=poor", "--column", "question=q"]
    shown = dt2it("style", path, *columns, "--column", "image=foto")
    assert shown.startswith("40 pairs of 20 prompts; 1 rows quarantined: identical sides\nstyle: area")
    message = failing("style", path)
    assert "which has ['foto', 'nice', 'poor', 'q']" in message and HELP in message
    message = failing("style", path, "--column", "chosen=nice", "--column", "rejected=wrose")
    assert "column 'wrose' is not in" in message
    assert "two parts with = between them" in failing("style", path, "--column", "chosen", code=2)
    assert HELP in dt2it("style", "--help")


@pytest.mark.parametrize(
    ("name", "count", "least"),
    [("vl_rewardbench/data.json", 1250, 0.7), ("mm_rlhf_rewardbench/mm_reward_bench.jsonl", 170, 0.7)],
)
def test_published_benchmarks_leak_style(name: str, count: int, least: float) -> None:
    if not (REAL / name).is_file():
        pytest.skip(f"{name} of the published data does not lie beside the project")
    pairs, _ = read_preferences(REAL / name)
    found = style_probe(pairs)
    assert (found.n, (found.auc or 0) >= least) == (count, True)
    shown = dt2it("style", REAL / name)
    assert f"{count} pairs" in shown and f"{found.auc:.3f}" in shown and found.leaks[0][0] in shown


def test_an_image_in_the_row_distinguishes_prompts(tmp_path: Path) -> None:
    row = {"question": "q", "chosen": "a", "rejected": "b"}
    images = [{"bytes": b"one", "path": None}, {"bytes": b"two", "path": None}, {"bytes": b"one", "path": "x"}]
    pd.DataFrame([row | {"image": image} for image in images]).to_parquet(tmp_path / "pairs.parquet")
    pairs, _ = read_preferences(tmp_path / "pairs.parquet")
    assert pairs["prompt_id"].nunique() == 2


def test_the_rows_of_the_page_on_formats_are_read(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/reference/formats.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    rows = [json.loads(line) for block in blocks for line in block.splitlines()]
    assert len(rows) > 10
    for block in blocks:
        pairs, quarantine = read_rows_as_pairs(tmp_path, [json.loads(line) for line in block.splitlines()])
        assert quarantine.empty and {*zip(pairs["chosen"], pairs["rejected"], strict=True)} == {("good", "bad")}, block
        assert {turns[0]["text"] for turns in pairs["turns"]} == {"q?"}
