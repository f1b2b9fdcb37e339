"""`dt2it train` and `dt2it score`: a checkpoint from tables, and the scores that the checkpoint itself gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from dt2it_pipeline.storage import atomic, schemas
from dt2it_pipeline_tests.support.commands import dt2it, failing, invoke
from dt2it_pipeline_tests.support.tiny import make_tables, make_tiny
from dt2it_pipeline_tests.support.training_jobs import SMALL


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Small tables, a recipe for a tiny model, and the checkpoint that `dt2it train` makes of them."""
    root = tmp_path_factory.mktemp("world")
    tables = make_tables(root / "tables", 24)
    (root / "base").mkdir()
    training = SMALL | {"base_model": str(make_tiny(root / "base")), "processes": 1, "epochs": 1.0}
    recipe = {"name": "tiny", "seed": 5, "training": training, "annotation": {"judges": [{"name": "a"}, {"name": "b"}]}}
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    given = ["--pairs", tables["pairs"], "--prompts", tables["prompts"], "--media", tables["media_root"]]
    call = ["train", *given, "--recipe", root / "recipe.yaml", "--output"]
    summary = json.loads(dt2it(*call, root / "checkpoint", "--json"))
    return {"root": root, "tables": tables, "call": call, "summary": summary, "checkpoint": root / "checkpoint"}


def test_train_makes_the_checkpoint_that_the_recipe_asks_for(world: dict[str, Any]) -> None:
    assert (world["checkpoint"] / "reward_model.json").is_file()
    assert world["summary"]["checkpoint"] == str(world["checkpoint"])
    assert world["summary"]["weights_sha256"]
    steps = [json.loads(line)["step"] for line in (world["checkpoint"] / "training_log.jsonl").read_text().splitlines()]
    assert steps[-1] == 3  # an epoch of 24 pairs in steps of 8
    assert not world["checkpoint"].with_name("checkpoint.work").exists()


def test_what_training_cannot_do_is_one_line(world: dict[str, Any], tmp_path: Path) -> None:
    assert failing(*world["call"], world["checkpoint"]).endswith("exists already; name a new folder")
    wrong = ["/nowhere.parquet" if part == world["tables"]["pairs"] else part for part in world["call"]]
    assert failing(*wrong, tmp_path / "out") == "there is no file /nowhere.parquet"
    atomic.write_parquet(schemas.table([], "pairs"), tmp_path / "empty.parquet")
    wrong = [tmp_path / "empty.parquet" if part == world["tables"]["pairs"] else part for part in world["call"]]
    message = failing(*wrong, tmp_path / "out")
    assert message.startswith("training failed: ") and "pair" in message and message.endswith("out.work/training.log")
    assert not (tmp_path / "out").exists()


def lines_of(world: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows with and without images, in every form, and three that cannot be used."""
    image = sorted(Path(world["tables"]["media_root"]).glob("*.png"))[0].name
    return [
        {"id": 7, "prompt": "<image>what colour is the shape", "images": [image], "responses": ["red", "it is blue"]},
        {"prompt": "what is the shape", "images": [image], "responses": ["a circle"]},
        {"turns": [{"role": "user", "text": "is it red"}], "system": "You judge.", "responses": ["yes", "no", "to me"]},
        {"prompt": "what", "images": ["gone.png"], "responses": ["a"]},
        {"prompt": "what <image> <image>", "images": [image], "responses": ["a"]},
        {"prompt": "what", "responses": []},
    ]


def test_scores_of_lines_are_those_of_the_checkpoint(world: dict[str, Any], tmp_path: Path) -> None:
    from dt2it_pipeline.reward.reward_model import RewardModel

    rows = lines_of(world)
    file = tmp_path / "responses.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) + "\nno JSON\n")
    call = [
        "score",
        file,
        "--model",
        world["checkpoint"],
        "--media",
        world["tables"]["media_root"],
        "--max-length",
        512,
    ]
    result = invoke(*map(str, call), "--output", str(tmp_path / "scores.jsonl"))
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        f"{tmp_path / 'scores.jsonl'}: 6 of 6 responses scored",
        "images: scaled down to at most 65,536 pixels, as in training",
    ]
    for fault in (
        "line 4: missing image",
        "line 5: markers do not fit",
        "line 6: no responses",
        "line 7: malformed JSON",
    ):
        assert f"not scored: {fault}" in result.stderr
    made = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [{key: value for key, value in row.items() if key != "scores"} for row in made] == [*rows, {}]
    model = RewardModel.from_pretrained(world["checkpoint"])
    prompts = [
        {"turns": [{"role": "user", "text": rows[0]["prompt"]}], "images": rows[0]["images"]},
        {"turns": [{"role": "user", "text": "<image>\n" + rows[1]["prompt"]}], "images": rows[1]["images"]},
        {"turns": rows[2]["turns"], "system": rows[2]["system"]},
    ]
    responses = [row["responses"] for row in rows[:3]]
    own = model.score(prompts, responses, media_root=world["tables"]["media_root"])
    for row, expected in zip(made[:3], own, strict=True):
        assert row["scores"] == pytest.approx(expected.tolist(), abs=1e-5)
    assert [row["scores"] for row in made[3:]] == [[], [], [], []]
    dt2it(*call, "--output", tmp_path / "scores.parquet")
    table = pd.read_parquet(tmp_path / "scores.parquet")
    assert table["row_id"].tolist() == ["7", "7", "line 2", *["line 3"] * 3, "line 4", "line 5", "line 6", "line 7"]
    assert table["score"].dropna().tolist() == pytest.approx([score for row in made for score in row["scores"]])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["responses.jsonl", "scores.jsonl", "scores.parquet"]


def test_pairs_are_scored_side_by_side_with_their_one_image(world: dict[str, Any], tmp_path: Path) -> None:
    """`image` counts as `images` does, and what comes out is what `dt2it clean` takes."""
    image = sorted(Path(world["tables"]["media_root"]).glob("*.png"))[0].name
    sides = {"chosen": "red", "rejected": "it is blue"}
    rows: list[dict[str, Any]] = [
        {"prompt": "what colour is the shape", "image": image, **sides},
        {"prompt": "what colour is the shape", "images": [image], "responses": list(sides.values())},
        {"prompt": "what colour is the shape", **sides},
        {"prompt": "what", "image": image, "images": ["other.png"], **sides},
        {"prompt": "what", "chosen": "red", "rejected": None},
    ]
    file, out = tmp_path / "pairs.jsonl", tmp_path / "scored.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    call = ["score", file, "--model", world["checkpoint"], "--media", world["tables"]["media_root"], "--output", out]
    result = invoke(*map(str, call))
    assert result.exit_code == 0, result.output
    assert "line 4: images given twice" in result.stderr
    assert "line 5, response 1: empty response (None)" in result.stderr
    made = [json.loads(line) for line in out.read_text().splitlines()]
    assert made[0]["scores"] == made[1]["scores"] != made[2]["scores"] and "chosen_score" not in made[1]
    assert [made[0]["chosen_score"], made[0]["rejected_score"]] == made[0]["scores"]
    columns = ["--chosen-score", "chosen_score", "--rejected-score", "rejected_score"]
    assert "5 pairs" in dt2it("clean", out, *columns, "--output", tmp_path / "cleaned")


def test_sides_of_pairs_may_have_other_names(world: dict[str, Any], tmp_path: Path) -> None:
    pair = {"prompt": "what colour is the shape", "chosen": "red", "rejected": "it is blue"}
    named = {"prompt": pair["prompt"], "good": pair["chosen"], "bad": pair["rejected"]}
    made = []
    for row, options in ((pair, ()), (named, ("--column", "chosen=good", "--column", "rejected=bad"))):
        (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n")
        call = ["score", tmp_path / "pairs.jsonl", "--model", world["checkpoint"], "--output", tmp_path / "out.jsonl"]
        dt2it(*call, *options)
        made.append(json.loads((tmp_path / "out.jsonl").read_text()))
    assert made[1] == {**named, **{key: made[0][key] for key in ("scores", "chosen_score", "rejected_score")}}


def test_an_empty_answer_costs_itself_alone_and_is_counted(world: dict[str, Any], other: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": "what is the shape", "responses": ["a circle", "", "red"]},
        {"prompt": "is it red", "responses": ["yes", " ", 3, "no"]},
        {"prompt": "what", "chosen": "red", "rejected": ""},
    ]
    file, out = tmp_path / "responses.jsonl", tmp_path / "scores.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    several = ["--model", f"two={other}"]
    for models, known in (([], None), (several, None)):
        result = invoke(*map(str, ["score", file, "--model", world["checkpoint"], *models, "--output", out]))
        assert result.exit_code == 0, result.output
        assert "5 of 9 responses scored" in result.stdout
        assert "line 1, response 1: empty response ('')" in result.stderr
        assert "line 2, response 1: empty response (' ')" in result.stderr
        assert "line 2, response 2: not text (a response: 3)" in result.stderr
        made = [json.loads(line) for line in out.read_text().splitlines()]
        assert [[score is None for score in row["scores"]] for row in made] == [
            *([False, True, False], [False, True, True, False], [False, True])
        ]
        assert isinstance(made[2]["chosen_score"], float) and made[2]["rejected_score"] is known
        assert "replaced in" not in result.stderr
        dt2it("score", file, "--model", world["checkpoint"], *models, "--output", tmp_path / "scores.parquet")
        table = pd.read_parquet(tmp_path / "scores.parquet")
        reasons = ["", "empty response", "", "", "empty response", "not text", "", "", "empty response"]
        assert table["reason"].tolist() == reasons and table["score"].isna().sum() == 4
    dt2it("best-of", file, "--model", f"one={world['checkpoint']}", "--output", tmp_path / "best.parquet")
    best = pd.read_parquet(tmp_path / "best.parquet")
    assert best["answers"].tolist() == [3, 4, 2] and best["unscored"].tolist() == [1, 2, 1]
    file.write_text(json.dumps({"prompt": "what", "responses": ["", None]}))
    message = failing("score", file, "--model", world["checkpoint"], "--output", out)
    assert "can be used; the first: line 1: empty response ('')" in message


def test_a_prompt_that_contradicts_the_turns_costs_its_row(world: dict[str, Any], tmp_path: Path) -> None:
    image = sorted(Path(world["tables"]["media_root"]).glob("*.png"))[0].name
    turns = [{"role": "user", "text": "<image>is it red"}]
    same = {"images": [image], "responses": ["yes"]}
    rows: list[dict[str, Any]] = [
        {"turns": turns, "prompt": "is it blue", **same},
        {"turns": turns, "prompt": 3, **same},
        {"turns": turns, "prompt": "is it red ", **same},
        {"turns": turns, "prompt": None, **same},
        {"turns": None, "prompt": "<image>is it red", **same},
    ]
    file, out = tmp_path / "responses.jsonl", tmp_path / "scores.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    media = world["tables"]["media_root"]
    result = invoke(*map(str, ["score", file, "--model", world["checkpoint"], "--media", media, "--output", out]))
    assert "3 of 3 responses scored" in result.stdout
    assert result.stderr.count("prompt given twice (the row has `prompt`, and `turns` that do not end with it") == 2
    made = [json.loads(line)["scores"] for line in out.read_text().splitlines()]
    assert made[0] == made[1] == [] and len(made[2]) == 1 and made[2] == made[3] == made[4]


def test_keys_that_are_replaced_are_named_once(world: dict[str, Any], other: Path, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "what", "responses": ["red"], "scores": [1], "best": 0, "chosen_score": 1},
        {"prompt": "what", "responses": ["red"], "scores": [2], "spread": 1},
        {"prompt": "what", "chosen": "red", "rejected": "blue", "chosen_score": 5},
    ]
    file, out = tmp_path / "responses.jsonl", tmp_path / "scores.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    one = ["--model", f"one={world['checkpoint']}"]
    two = [*one, "--model", f"two={other}"]
    scores, sides = "`scores` (in 2 of 3 rows)", "`chosen_score` (in 1 of 3 rows)"
    for command, models, expected in (
        ("score", one, f"{scores}, {sides}"),
        ("score", two, f"{scores}, `spread` (in 1 of 3 rows), {sides}"),
        ("best-of", one, f"{scores}, `best` (in 1 of 3 rows)"),
    ):
        found = invoke(*map(str, [command, file, *models, "--output", out])).stderr
        note = f"replaced in {out}, since the rows have them already: {expected}\n"
        assert found.count("replaced in") == 1 and note in found.replace("note: ", ""), found
    assert "replaced in" not in invoke(*map(str, ["score", file, *one, "--output", tmp_path / "a.parquet"])).stderr


def test_what_is_too_long_is_counted_in_one_line(world: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "responses.jsonl"
    rows = [{"prompt": "is it red", "responses": ["yes", "red " * 600, "blue " * 700]}]
    file.write_text("\n".join(map(json.dumps, rows)))
    call = [
        str(part) for part in ("score", file, "--model", world["checkpoint"], "--output", tmp_path / "scores.parquet")
    ]
    whole = invoke(*call)
    assert whole.exit_code == 0 and "3 of 3 responses scored" in whole.stdout and "left out" not in whole.stderr
    cut = invoke(*call, "--max-length", "512")
    assert "1 of 3 responses scored" in cut.stdout and "not scored" not in cut.stderr
    assert cut.stderr.count("2 of 3 responses are left out: longer than --max-length (512 tokens; the longest has") == 1
    table = pd.read_parquet(tmp_path / "scores.parquet")
    assert table["reason"].tolist() == ["", "longer than max_length", "longer than max_length"]


@pytest.fixture(scope="module")
def other(world: dict[str, Any]) -> Path:
    """Another checkpoint: that of the world with its scores turned round and ten times as large."""
    from dt2it_pipeline.reward.reward_model import RewardModel

    model = RewardModel.from_pretrained(world["checkpoint"])
    model.head.weight.data *= -10
    folder: Path = world["root"] / "other"
    with atomic.atomic_directory(folder) as made:
        model.save_pretrained(made)
    return folder


def test_several_models_score_as_one(world: dict[str, Any], other: Path, tmp_path: Path) -> None:
    rows = lines_of(world)
    rows[0]["responses"].append("red " * 700)  # too long for all
    file = tmp_path / "responses.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    call = ["score", file, "--media", world["tables"]["media_root"], "--max-length", 512]
    call += ["--model", f"a={world['checkpoint']}", "--model", other, "--output"]
    result = invoke(*map(str, call), str(tmp_path / "both.jsonl"))
    assert result.exit_code == 0, result.output
    said = result.stdout.splitlines()
    assert said[0] == f"{tmp_path / 'both.jsonl'}: 6 of 7 responses scored"
    assert said[1].startswith("a: images: ") and said[2].startswith("other: images: ")
    assert said[3].startswith("combined: the mean of the models' standardised scores; they are ")
    assert said[4].startswith("unsure: for 2 of 2 prompts the models are further apart than the best response is")
    assert result.stderr.count("1 of 7 responses are left out: longer than --max-length") == 2  # in one line per model
    assert "line 5: markers do not fit" in result.stderr and "response 2" not in result.stderr
    made = [json.loads(line) for line in (tmp_path / "both.jsonl").read_text().splitlines()]
    for row, lines in zip(made[:3], rows, strict=False):
        one, two = (np.array(row["scores_by_model"][name], dtype=float) for name in ("a", "other"))
        assert two == pytest.approx(-10 * one, abs=1e-4, nan_ok=True)
        assert np.array(row["scores"], dtype=float) == pytest.approx(0 * one, abs=1e-4, nan_ok=True)  # they cancel
        assert len(row["spread"]) == len(lines["responses"])
    assert made[0]["scores"][-1] is made[0]["spread"][-1] is made[0]["scores_by_model"]["a"][-1] is None
    counts = json.loads(dt2it(*call, tmp_path / "both.parquet", "--ensemble", "worst", "--json"))
    assert counts["ensemble"] == "worst" and counts["models"] == ["a", "other"] and counts["prompts_compared"] == 2
    table = pd.read_parquet(tmp_path / "both.parquet")
    assert list(table)[3:7] == ["score", "spread", "score a", "score other"]
    known = table.dropna(subset="score")
    assert len(known) == 6 and known["score"].to_numpy() == pytest.approx(-known["spread"].to_numpy(), abs=1e-4)
    assert table["reason"][2] == "a: longer than max_length; other: longer than max_length"
    assert table["reason"].tolist()[-3:] == ["missing image", "markers do not fit", "no responses"]


def test_several_models_score_a_table(world: dict[str, Any], other: Path, tmp_path: Path) -> None:
    tables = world["tables"]
    call = ["score", tables["responses"], "--prompts", tables["prompts"], "--media", tables["media_root"]]
    call += ["--model", world["checkpoint"], "--model", other, "--output", tmp_path / "s.parquet"]
    counts = json.loads(dt2it(*call, "--json"))
    table = pd.read_parquet(tmp_path / "s.parquet")
    responses = atomic.read_parquet(tables["responses"], "responses").to_pandas().set_index("response_id")
    assert counts["scored"] == len(table) == len(responses) and table["score"].notna().all()
    assert responses.loc[table["response_id"], "prompt_id"].tolist() == table["row_id"].tolist()


def test_calls_with_models_that_do_not_fit_are_one_line(world: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text('{"prompt": "what", "responses": ["a"]}\n')
    call = ["score", tmp_path / "r.jsonl", "--output", tmp_path / "s.jsonl", "--model", world["checkpoint"]]
    assert "--ensemble needs several --model" in failing(*call, "--ensemble", "mean", code=2)
    assert "the name 'checkpoint' is taken" in failing(*call, "--model", world["checkpoint"], code=2)


def test_a_table_of_responses_is_scored_as_the_pipeline_scores_it(world: dict[str, Any], tmp_path: Path) -> None:
    tables = world["tables"]
    call = ["score", tables["responses"], "--model", world["checkpoint"], "--prompts", tables["prompts"], "--output"]
    counts = json.loads(dt2it(*call, tmp_path / "s.parquet", "--media", tables["media_root"], "--json"))
    scores = atomic.read_parquet(tmp_path / "s.parquet", "scores")
    wanted = atomic.read_parquet(tables["responses"], "responses")["response_id"].to_pylist()
    assert scores["response_id"].to_pylist() == wanted and counts["scored"] == counts["responses"] == len(wanted)
    assert "needs --prompts and --media" in failing(*call, tmp_path / "s.parquet", code=2)
    assert "name a .parquet file" in failing(*call, tmp_path / "s.jsonl", code=2)


def test_files_that_are_of_no_use_are_one_line(world: dict[str, Any], tmp_path: Path) -> None:
    call = ["score", tmp_path / "r.jsonl", "--model", world["checkpoint"], "--output", tmp_path / "out.jsonl"]
    assert failing(*call) == f"there is no file {tmp_path / 'r.jsonl'}"
    (tmp_path / "r.jsonl").write_bytes(b"\xff")
    assert "r.jsonl cannot be read: " in failing(*call)
    (tmp_path / "r.jsonl").write_text('{"question": "what"}\n')
    message = failing(*call)
    assert "no row of" in message and "`responses` (a list of texts)" in message
    assert "line 1: no prompt (the row has neither `prompt` nor `turns`; its columns: question. Name " in message
    assert "--column prompt=COLUMN" in message
    (tmp_path / "r.jsonl").write_text('{"prompt": "what", "image": "none.png", "responses": ["a"]}\n')
    message = failing(*call)
    assert "none.png" in message and "should hold" not in message
    (tmp_path / "r.jsonl").write_text('{"prompt": "what", "responses": ["a"]}\n')
    call[3] = "/nowhere"
    assert failing(*call).startswith("there is no model folder /nowhere")
    call[3] = "demo"
    assert "The model `demo` of recipes is a base model" in failing(*call)


@pytest.mark.parametrize("command", ["score", "best-of"])
def test_a_work_folder_stays_after_an_error_only_with_scores_in_it(
    world: dict[str, Any], tmp_path: Path, command: str
) -> None:
    (tmp_path / "r.jsonl").write_text('{"prompt": "what", "responses": ["a", "b"]}\n')
    work = tmp_path / "out.jsonl.work"
    call = [command, tmp_path / "r.jsonl", "--ensemble", "mean", "--output", tmp_path / "out.jsonl"]
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/config.json").write_text("{}")
    for wrong in ("nowhere", "broken"):
        failing(*call[:2], *call[4:], "--model", tmp_path / wrong)
        assert not work.exists()
    failing(*call, "--model", world["checkpoint"], "--model", tmp_path / "nowhere")
    assert list(work.glob("*/shard-*.parquet"))
