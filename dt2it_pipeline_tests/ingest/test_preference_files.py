"""Published forms of preference rows, and `dt2it style` on them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from dt2it_pipeline.export import export_pairs
from dt2it_pipeline.ingest.preference_files import FORMS, Columns, PreferenceFileError, read_preferences
from dt2it_pipeline.style import style_probe
from dt2it_pipeline_tests.support.commands import dt2it, failing
from dt2it_pipeline_tests.support.export_world import world

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "real_data"


def _read(tmp_path, rows, name="pairs.json"):
    path = tmp_path / name
    path.write_text(json.dumps(rows) if name.endswith(".json") else "\n".join(map(json.dumps, rows)), encoding="utf-8")
    return read_preferences(path)


@pytest.mark.parametrize(
    ("row", "models"),
    [
        ({"question": "q", "chosen": "good", "rejected": "bad"}, (None, None)),
        ({"prompt": "q", "chosen": {"value": "good"}, "rejected": {"value": "bad"}}, (None, None)),
        ({"query": "q", "response": ["bad", "good"], "human_ranking": [1, 0], "models": ["m", "n"]}, ("n", "m")),
        ({"Text": "q", "Output1": "bad", "Output2": "good", "Better": "Output2"}, (None, None)),
        (
            {
                "conversations": [{"value": "q"}, {"value": "good"}],
                "rejected_conversations": [{"value": "q"}, {"value": "bad"}],
            },
            (None, None),
        ),
        (
            {"question": "q", "chosen": "good", "rejected": "bad", "chosen_model": "m", "rejected_model": "n"},
            ("m", "n"),
        ),
        ({"question": "q", "chosen": "good", "rejected": "bad", "rejected_model": "n"}, (None, "n")),
    ],
)
def test_forms_of_rows(tmp_path, row, models):
    pairs, left_out = _read(tmp_path, [row])
    assert (pairs.loc[0, "chosen"], pairs.loc[0, "rejected"], not left_out) == ("good", "bad", True)
    found = tuple(None if pd.isna(value) else value for value in pairs.loc[0, ["chosen_model", "rejected_model"]])
    assert found == models


def test_rows_that_hold_no_pair_are_counted(tmp_path):
    rows = [
        {"question": "q", "chosen": "good", "rejected": "bad"},
        {"question": "q", "chosen": "same", "rejected": "same"},
        {"question": "q", "chosen": "", "rejected": "bad"},
        {"query": "q", "response": ["a", "b"], "human_ranking": [0, 0]},
        "not an object",
    ]
    pairs, left_out = _read(tmp_path, rows, "pairs.jsonl")
    assert len(pairs) == 1
    assert left_out == {"identical sides": 1, "no chosen and rejected text": 2, "not an object": 1}


@pytest.mark.parametrize(
    "change",
    [
        {"chosen": "half \ud800"},
        {"prompt_id": "\ud800"},
        {"chosen_model": "\ud800", "rejected_model": "n"},
        {"response": 5, "human_ranking": [0, 1]},
        {"response": ["a", "b"], "human_ranking": [0, "1"]},
        {"response": ["a", "b"], "human_ranking": [0, 1], "models": 7},
        {"conversations": {"value": "q"}, "rejected_conversations": []},
    ],
)
def test_an_odd_row_costs_that_row_alone(tmp_path, change):
    good = {"question": "q", "chosen": "good", "rejected": "bad"}
    pairs, left_out = _read(tmp_path, [good | change, good], "pairs.jsonl")
    assert (len(pairs), left_out.total()) == (1, 1)


@pytest.mark.parametrize("text", ["[" * 10**5, "1" * 5000])
def test_a_file_that_no_reader_takes_is_one_error(tmp_path, text):
    (tmp_path / "pairs.jsonl").write_text(text)
    with pytest.raises(PreferenceFileError, match=r"pairs\.jsonl"):
        read_preferences(tmp_path / "pairs.jsonl")


def test_the_prompt_is_its_words_and_its_image(tmp_path):
    rows = [{"question": q, "image": i, "chosen": "a", "rejected": "b"} for q, i in ("xy", "xy", "xz", "wy")]
    pairs, _ = _read(tmp_path, rows)
    assert pairs["prompt_id"].nunique() == 3


def test_an_empty_key_is_no_prompt_that_all_pairs_share(tmp_path):
    (tmp_path / "pairs.csv").write_text("prompt_id,question,chosen,rejected\n,q,a,b\n,q,c,d\n,,e,f\n,,g,h\n7,q,i,j\n")
    assert read_preferences(tmp_path / "pairs.csv")[0]["prompt_id"].nunique() == 4
    rows = [{"prompt_id": None, "question": q, "chosen": "a", "rejected": "b"} for q in "xxy"]
    assert _read(tmp_path, rows)[0]["prompt_id"].nunique() == 2


def test_turns_that_hold_the_question_tell_prompts_apart(tmp_path):
    def turns(*texts):
        return [{"role": role, "content": text} for role, text in zip(("user", "assistant"), texts, strict=True)]

    rows = [{"chosen": turns(q, f"good {n}"), "rejected": turns(q, "bad")} for n, q in enumerate("xxy")]
    pairs, _ = _read(tmp_path, rows)
    assert pairs["prompt_id"].nunique() == 2 and pairs["chosen"].tolist() == ["good 0", "good 1", "good 2"]
    parts = [[{"type": "text", "text": "the same"}, {"type": "text", "text": f" {n}"}] for n in range(2)]
    pairs, _ = _read(tmp_path, [{"chosen": part, "rejected": "bad"} for part in parts])
    assert pairs["prompt_id"].nunique() == 2  # parts of an answer are no question


def test_a_parquet_pairs_table_is_read(tmp_path):
    frame = pd.DataFrame({"prompt_id": ["p", "q"], "chosen": ["a", "b"], "rejected": ["c", "d"]})
    frame.to_parquet(tmp_path / "pairs.parquet")
    assert read_preferences(tmp_path / "pairs.parquet")[0]["prompt_id"].tolist() == ["p", "q"]


def test_files_that_are_of_no_use_are_one_clear_error(tmp_path):
    with pytest.raises(PreferenceFileError, match=r"gone\.json"):
        read_preferences(tmp_path / "gone.json")
    with pytest.raises(PreferenceFileError, match="columns found: answer"):
        _read(tmp_path, [{"answer": "a"}])
    (tmp_path / "half.jsonl").write_text('{"chosen": "a", "rejected": "b"}\n{"chosen')
    pairs, left_out = read_preferences(tmp_path / "half.jsonl")
    assert (len(pairs), dict(left_out)) == (1, {"malformed JSON": 1})
    (tmp_path / "not.jsonl").write_text("name: mine\nkind: preferences\n")
    with pytest.raises(PreferenceFileError, match=r"not\.jsonl, line 1: .*; JSON \(a list\)"):
        read_preferences(tmp_path / "not.jsonl")
    assert "gone.json" in failing("style", tmp_path / "gone.json")


def test_columns_may_have_any_name(tmp_path):
    rows = [{"q": f"q{i // 2}", "photo": "p", "better": f"good {i}", "worse": f"bad {i}"} for i in range(40)]
    path = tmp_path / "own.json"
    path.write_text(json.dumps([*rows, {"q": "x", "better": "same", "worse": "same"}]))
    sides = ["--chosen", "better", "--rejected", "worse"]
    pairs, _ = read_preferences(path, Columns("better", "worse", "q", "photo"))
    assert (pairs.loc[3, "chosen"], pairs.loc[3, "rejected"]) == ("good 3", "bad 3")
    shown = dt2it("style", path, *sides, "--prompt", "q", "--image", "photo")
    assert shown.startswith("40 pairs of 20 prompts; 1 rows left out: identical sides\nstyle: area")
    message = failing("style", path)
    assert "columns found: better, photo, q, worse\nName the columns of the two sides" in message and FORMS in message
    message = failing("style", path, "--chosen", "better", "--rejected", "wrose")
    assert message.endswith("there is no column 'wrose'; columns found: better, photo, q, worse")
    message = failing("style", path, "--chosen", "better", code=2)
    assert "--chosen and --rejected are given together" in message
    shown = dt2it("style", "--help")
    assert FORMS in shown and re.search(r"--rejected +COLUMN", shown)


@pytest.mark.parametrize(
    ("name", "count", "least"),
    [("vl_rewardbench/data.json", 1250, 0.7), ("mm_rlhf_rewardbench/mm_reward_bench.jsonl", 170, 0.7)],
)
def test_published_benchmarks_leak_style(name, count, least):
    if not (REAL / name).is_file():
        pytest.skip(f"{name} of the published data does not lie beside the project")
    pairs, _ = read_preferences(REAL / name)
    found = style_probe(pairs)
    assert (found.n, found.auc >= least) == (count, True)
    shown = dt2it("style", REAL / name)
    assert f"{count} pairs" in shown and f"{found.auc:.3f}" in shown and found.leaks[0][0] in shown


def test_csv_and_exports_are_read(tmp_path, capsys):
    rows = [{"question": f"q {n}", "chosen": f"good\n{n}", "rejected": "bad, so"} for n in range(3)]
    pd.DataFrame(rows).to_csv(tmp_path / "pairs.csv", index=False)
    pairs, left_out = read_preferences(tmp_path / "pairs.csv")
    assert pairs["chosen"].tolist() == ["good\n0", "good\n1", "good\n2"] and not left_out
    assert pairs["prompt_id"].nunique() == 3

    pairs, prompts = world(tmp_path / "media")
    for name in ("trl", "huggingface", "llamafactory"):
        export_pairs(pairs, prompts, tmp_path / "media", tmp_path / name, name)
        file = tmp_path / name / "pairs.json" if name == "llamafactory" else tmp_path / name
        read, left_out = read_preferences(file)
        assert (read["chosen"].tolist(), read["rejected"].tolist()) == (
            pairs["chosen"].to_pylist(),
            pairs["rejected"].to_pylist(),
        )
        assert read["prompt_id"].nunique() == 4 and not left_out
    with pytest.raises(PreferenceFileError, match=r"name one of its files: .*pairs\.json"):
        read_preferences(tmp_path / "llamafactory")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PreferenceFileError, match="a folder without Parquet files"):
        read_preferences(tmp_path / "empty")


def test_an_image_in_the_row_distinguishes_prompts(tmp_path):
    row = {"question": "q", "chosen": "a", "rejected": "b"}
    images = [{"bytes": b"one", "path": None}, {"bytes": b"two", "path": None}, {"bytes": b"one", "path": "x"}]
    pd.DataFrame([row | {"image": image} for image in images]).to_parquet(tmp_path / "pairs.parquet")
    pairs, _ = read_preferences(tmp_path / "pairs.parquet")
    assert pairs["prompt_id"].nunique() == 2
