"""`dt2it best-of`, `dt2it calibrate` and `dt2it card` on a tiny checkpoint with random weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from dt2it_pipeline.storage import atomic, content_ids, records, schemas
from dt2it_pipeline.storage.artifacts import model_digest
from dt2it_pipeline_tests.support.commands import dt2it, failing, invoke
from dt2it_pipeline_tests.support.tiny import WORDS, make_images, make_tables, make_tiny
from dt2it_pipeline_tests.support.training_jobs import SMALL


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two checkpoints of one tiny model with heads that differ."""
    from dt2it_pipeline.reward.checkpoints.model_card import write_card
    from dt2it_pipeline.reward.reward_model import RewardModel

    root = tmp_path_factory.mktemp("models")
    (root / "base").mkdir()
    base = make_tiny(root / "base")
    found = {}
    for seed, name in enumerate(("one", "two")):
        model = RewardModel.from_pretrained(base, new_head_seed=seed)
        model.head.weight.data *= 40
        model.card |= {"name": name, "system_prompt": "You judge.", "max_pixels": 4096, "image_newlines": True}
        with atomic.atomic_directory(root / name) as folder:
            model.save_pretrained(folder)
            write_card(folder, base_model=base)
        found[name] = root / name
    return found


@pytest.fixture
def answers(tmp_path: Path) -> list[dict[str, Any]]:
    """Four prompts with answers and their quality, and a row that cannot be used, in answers.jsonl."""
    image = make_images(tmp_path, 1)[0]["path"]
    texts = ["red", "a blue circle", "it is red", "red"]
    rows: list[dict[str, Any]] = [
        {
            "id": n,
            "prompt": f"what is the shape {word}",
            "images": [image],
            "responses": texts,
            "quality": [1, 0, 0.5, 1],
        }
        for n, word in enumerate(("red", "green", "blue", "circle"))
    ]
    rows[3]["quality"] = [1, 0]
    rows.append({"prompt": "what", "responses": []})
    (tmp_path / "answers.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return rows


def test_the_best_answers_of_one_model_with_their_scores(
    models: dict[str, Path], answers: list[dict[str, Any]], tmp_path: Path
) -> None:
    from dt2it_pipeline import RewardModel, best_of

    call = ["best-of", tmp_path / "answers.jsonl", "--model", models["one"], "--output"]
    result = invoke(*call, tmp_path / "best.jsonl", "--curve", tmp_path / "curve")
    assert result.exit_code == 0, result.output
    assert "one chose for 4 of 4 prompts among 16 answers; ties, where the first was chosen: 0" in result.stdout
    assert "no choice: line 5: no responses" in result.stderr
    assert "not in the curve: 3: `quality` is no list with one number for each of the 4 responses" in result.stderr
    made = [json.loads(line) for line in (tmp_path / "best.jsonl").read_text().splitlines()]
    model = RewardModel.from_pretrained(models["one"])
    prompts = [
        {"turns": [{"role": "user", "text": "<image>\n" + row["prompt"]}], "images": row["images"]}
        for row in answers[:4]
    ]
    expected = best_of(model, prompts, [row["responses"] for row in answers[:4]], media_root=tmp_path)
    for row, best, given in zip(made[:4], expected, answers[:4], strict=True):
        assert {key: row[key] for key in given} == given
        assert (row["best"]["place"], row["best"]["text"]) == (best.place, best.text)
        assert row["best"]["score"] == max(row["scores"]) == pytest.approx(best.score, abs=1e-4)
    assert made[4]["best"] is None and made[4]["scores"] == []
    curve = pd.read_parquet(tmp_path / "curve" / "curve.parquet")
    assert curve["model"].unique().tolist() == ["one", "oracle"] and curve["n"].max() == 4
    chosen = [row["quality"][best.place] for row, best in zip(answers[:3], expected[:3], strict=True)]
    at_four = curve[(curve["model"] == "one") & (curve["n"] == 4)]["quality"].item()
    assert at_four == pytest.approx(np.mean(chosen))
    assert (tmp_path / "curve" / "curve.svg").read_text().count("<svg") == 1
    assert "3 prompts" in (tmp_path / "curve" / "curve.md").read_text()
    assert not (tmp_path / "best.jsonl.work").exists()


OTHER_NAMES = {"prompt": "question", "responses": "answers", "images": "files", "quality": "right", "id": "key"}


def test_fields_may_have_other_names(models: dict[str, Path], answers: list[dict[str, Any]], tmp_path: Path) -> None:
    other = [{OTHER_NAMES[key]: value for key, value in row.items()} | {"prompt": "a template"} for row in answers]
    (tmp_path / "other.jsonl").write_text("\n".join(map(json.dumps, other)))
    columns = [part for field, key in OTHER_NAMES.items() for part in ("--column", f"{field}={key}")]
    call = ["--model", models["one"], "--json", "--output"]
    known = json.loads(dt2it("best-of", tmp_path / "answers.jsonl", *call, tmp_path / "known.jsonl"))
    found = json.loads(dt2it("best-of", tmp_path / "other.jsonl", *columns, *call, tmp_path / "found.jsonl"))
    assert found["curve"] and {**found, "output": ""} == {**known, "output": ""}
    made = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    wanted = [json.loads(line) for line in (tmp_path / "known.jsonl").read_text().splitlines()]
    for row, given, like in zip(made, other, wanted, strict=True):
        assert row == {**given, "scores": like["scores"], "best": like["best"]}


def test_columns_that_cannot_be_are_one_line(
    models: dict[str, Path], answers: list[dict[str, Any]], tmp_path: Path
) -> None:
    call = ["best-of", tmp_path / "answers.jsonl", "--model", models["one"], "--output", tmp_path / "best.jsonl"]
    assert failing(*call, "--column", "prompt=question").endswith(
        "answers.jsonl has 'question'; there are: id, prompt, images, responses, quality"
    )
    assert "there is no such field; the fields are prompt, turns" in failing(*call, "--column", "pompt=prompt", code=2)
    assert "no such field" in failing(*call, "--sample", "demo", "--column", "responses=prompt", code=2)
    table = ["score", tmp_path / "r.parquet", "--model", models["one"], "--output", tmp_path / "s.parquet"]
    assert "--column is for JSON Lines" in failing(*table, "--column", "prompt=question", code=2)


def test_a_version_of_an_artifact_is_named_after_the_artifact(
    models: dict[str, Path], answers: list[dict[str, Any]], tmp_path: Path
) -> None:
    version = tmp_path / "home/artifacts/reward_model/1" / ("0a" * 16)
    version.parent.mkdir(parents=True)
    version.symlink_to(models["one"])
    call = ["best-of", tmp_path / "answers.jsonl", "--model", version, "--model", models["two"], "--json", "--output"]
    assert list(json.loads(dt2it(*call, tmp_path / "both.parquet"))["models"]) == ["reward_model/1", "two"]


def test_several_models_choose_apart_or_together(
    models: dict[str, Path], answers: list[dict[str, Any]], tmp_path: Path
) -> None:
    call = [
        "best-of",
        tmp_path / "answers.jsonl",
        "--model",
        f"a={models['one']}",
        "--model",
        models["two"],
        "--output",
    ]
    found = json.loads(dt2it(*call, tmp_path / "apart.parquet", "--json"))
    assert list(found["models"]) == ["a", "two"] and found["rows_quarantined"] == 1
    apart = pd.read_parquet(tmp_path / "apart.parquet")
    assert apart["model"].tolist() == ["a"] * 5 + ["two"] * 5
    assert apart["reason"].tolist() == ["", "", "", "", "no responses"] * 2 and apart["place"].isna().sum() == 2
    found = json.loads(dt2it(*call, tmp_path / "both.jsonl", "--ensemble", "worst", "--json"))
    assert list(found["models"]) == ["worst of 2"] and found["spread"] > 0
    assert {row["model"] for row in found["curve"]} == {"a", "two", "worst of 2", "oracle"}
    scores = [json.loads(line)["scores"] for line in (tmp_path / "both.jsonl").read_text().splitlines()]
    assert len(scores) == 5 and all(np.isfinite(row).all() for row in scores[:4])


def test_a_table_of_responses_gives_a_choice_per_prompt(models: dict[str, Path], tmp_path: Path) -> None:
    tables = make_tables(tmp_path / "tables", 6)
    call = ["best-of", tables["responses"], "--model", models["one"], "--prompts", tables["prompts"]]
    dt2it(*call, "--media", tables["media_root"], "--output", tmp_path / "best.parquet")
    best = pd.read_parquet(tmp_path / "best.parquet")
    responses = pd.read_parquet(tables["responses"])
    assert set(best["row_id"]) == set(responses["prompt_id"])
    assert best.set_index("row_id")["answers"].to_dict() == responses.groupby("prompt_id").size().to_dict()
    assert set(best["response_id"]) <= set(responses["response_id"])
    assert "needs --prompts and --media" in failing(*call, "--output", tmp_path / "x.parquet", code=2)


def test_calls_that_cannot_be_are_one_line(
    models: dict[str, Path], answers: list[dict[str, Any]], tmp_path: Path
) -> None:
    call = ["best-of", tmp_path / "answers.jsonl", "--model", models["one"]]
    out = ["--output", tmp_path / "o.parquet"]
    assert "name a .parquet file" in failing(*call, "--output", tmp_path / "o.csv", code=2)
    assert "the name 'one' is taken; give another as NAME=MODEL" in failing(*call, "--model", "one=x", *out, code=2)
    assert "--ensemble needs several --model" in failing(*call, "--ensemble", "mean", *out, code=2)
    several = [*call, "--model", models["two"], "--output", tmp_path / "o.jsonl"]
    assert "one model's choices" in failing(*several, code=2)
    bare = [{key: value for key, value in row.items() if key != "quality"} for row in answers]
    (tmp_path / "answers.jsonl").write_text("\n".join(map(json.dumps, bare)))
    message = failing(*call, *out, "--curve", tmp_path / "curve")
    assert "no row has `quality` or `truth`" in message
    assert "expected quality" not in dt2it(*call, *out)


def pairs_file(model: Path, folder: Path, temperature: float, count: int = 160) -> Path:
    """Pairs whose labels are drawn with sigmoid(margin / T) of the model's own margins."""
    from dt2it_pipeline.reward.reward_model import RewardModel

    rng = np.random.default_rng(1)
    made: list[tuple[str, list[str]]] = []
    for number in range(count):
        question = " ".join(rng.choice(WORDS, size=5)) + f" {number}"
        made.append((question, [" ".join(rng.choice(WORDS, size=size)) for size in (2, 7)]))
    prompts = [{"turns": [{"role": "user", "text": question}]} for question, _ in made]
    scores = RewardModel.from_pretrained(model).score(prompts, [sides for _, sides in made])
    lines = []
    for (question, sides), (first, second) in zip(made, scores, strict=True):
        won = 0 if rng.random() < 1 / (1 + np.exp(-(first - second) / temperature)) else 1
        lines.append({"prompt": question, "chosen": sides[won], "rejected": sides[1 - won]})
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder / "pairs.jsonl"


def test_a_temperature_is_fitted_kept_and_used(models: dict[str, Path], tmp_path: Path) -> None:
    from dt2it_pipeline import RewardModel

    model = models["two"]
    spread = json.loads((model / "reward_model.json").read_text())
    assert "calibration" not in spread
    before = model_digest(str(model))
    file = pairs_file(model, tmp_path, 0.5)
    call = ["calibrate", model, "--pairs", file]
    dry = json.loads(dt2it(*call, "--dry-run", "--json"))
    assert dry["written"] is False and "calibration" not in json.loads((model / "reward_model.json").read_text())
    printed = dt2it(*call)
    assert f"temperature {dry['temperature']:.3g} (95%: " in printed and "160 pairs of 160 prompts" in printed
    card = json.loads((model / "reward_model.json").read_text())
    assert card["calibration"]["temperature"] == dry["temperature"] and card["name"] == "two"
    assert dry["low"] < 0.5 < dry["high"] and dry["log_loss_after"] < dry["log_loss_before"]
    assert model_digest(str(model)) == before  # no score has changed
    text = (model / "README.md").read_text()
    assert text.count("## Calibration") == 1 and "| from | pairs.jsonl |" in text and "Not calibrated" not in text
    loaded = RewardModel.from_pretrained(model)
    question = [{"turns": [{"role": "user", "text": "what is it"}]}]
    [[first, second]] = loaded.score(question, [["red", "a blue circle"]])
    chance = loaded.compare(question, ["red"], ["a blue circle"])
    assert chance == pytest.approx(1 / (1 + np.exp(-(first - second) / dry["temperature"])), abs=1e-5)
    assert not (tmp_path / "two.calibration").exists() and not Path(f"{model}.calibration").exists()


def test_a_checkpoint_without_temperature_says_so_once(
    models: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    from dt2it_pipeline import RewardModel

    model = RewardModel.from_pretrained(models["one"])
    assert model.calibration is None
    assert model.probability(np.array([0.0, 1.0])) == pytest.approx([0.5, 0.7310586])
    model.probability(0.5)
    assert caplog.text.count("not calibrated: T = 1 is assumed") == 1
    with pytest.raises(ValueError, match="one answer for each prompt"):
        model.compare([{"turns": []}], "red", "blue")


def test_answers_of_people_decide_where_an_audit_is_given(models: dict[str, Path], tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    prompts: dict[str, dict[str, Any]] = {}
    said: list[dict[str, Any]] = []
    for number in range(140):
        turns = [{"role": "user", "text": f"what is it {number}"}]
        prompt = content_ids.prompt_id("", turns, [])
        prompts[prompt] = {"prompt_id": prompt, "source": "", "system": "", "turns": turns, "media": [],
                           "reference": None, "language": "", "meta": "{}"}  # fmt: skip
        pair = records.make_pair(prompt, "red", f"a blue circle {WORDS[number % 8]}", source="test")
        rows.append(pair)
        if number < 120:
            better = pair["rejected_id"] if number % 3 == 0 else pair["chosen_id"]
            said.append({"pair_id": pair["pair_id"], "better_id": better})
    said[1]["better_id"] = None  # neither
    atomic.write_parquet(schemas.table(rows, "pairs"), tmp_path / "pairs.parquet")
    atomic.write_parquet(schemas.table(prompts.values(), "prompts"), tmp_path / "prompts.parquet")
    pd.DataFrame(said).to_parquet(tmp_path / "people.parquet")
    call = [
        "calibrate",
        models["one"],
        "--pairs",
        tmp_path / "pairs.parquet",
        "--prompts",
        tmp_path / "prompts.parquet",
    ]
    result = invoke(*call, "--audit", tmp_path / "people.parquet", "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    audited = json.loads(result.stdout)
    assert audited["pairs"] == 119 and "not used: 1 of 120 pairs: people prefer neither answer" in result.stderr
    assert audited["source"] == "pairs.parquet, as people said in people.parquet"
    labels = json.loads(dt2it(*call, "--dry-run", "--json"))
    assert labels["pairs"] == 140 and labels["accuracy"] != audited["accuracy"]
    assert "give a table of kind `pairs`" in failing(*call[:4], "--audit", tmp_path / "people.parquet")


def test_what_cannot_be_calibrated_is_one_line(models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "few.jsonl").write_text(json.dumps({"prompt": "what", "chosen": "red", "rejected": "blue"}))
    call = ["calibrate", models["one"], "--pairs", tmp_path / "few.jsonl"]
    assert "1 pairs of 1 prompts are too few to fit a temperature: at least 100" in failing(*call)
    assert "has no prompt" in _failing_with(call, tmp_path / "few.jsonl", {"chosen": "red", "rejected": "blue"})
    assert "there is no file" in failing("calibrate", models["one"], "--pairs", tmp_path / "none.jsonl")
    assert "dt2it convert" in failing("calibrate", "http://localhost:1", "--pairs", tmp_path / "few.jsonl")


def test_a_card_that_cannot_be_written_costs_no_scores(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = pairs_file(models["one"], tmp_path, 1.0)

    def read_only(*_: object) -> None:
        raise OSError(30, "Read-only file system", str(models["one"] / "README.md"))

    monkeypatch.setattr("dt2it_pipeline.reward.checkpoints.model_card.write_calibration", read_only)
    assert "Read-only file system" in failing("calibrate", models["one"], "--pairs", pairs)
    work = models["one"].with_name("one.calibration")
    assert any(work.iterdir())
    shutil.rmtree(work)


def test_pairs_none_of_which_can_be_used_are_counted_by_reason(models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "same.jsonl").write_text(json.dumps({"prompt": "what", "chosen": "red", "rejected": "red"}))
    message = failing("calibrate", models["one"], "--pairs", tmp_path / "same.jsonl")
    assert f"{tmp_path / 'same.jsonl'} has no pair that can be used (1 pairs: " in message


@pytest.mark.parametrize("content", [b"", b"not Parquet", None])
def test_a_file_that_is_no_table_of_the_kind_is_named(models: dict[str, Path], tmp_path: Path, content: Any) -> None:
    file = tmp_path / "given.parquet"
    if content is None:
        pd.DataFrame({"a": [1]}).to_parquet(file)
    else:
        file.write_bytes(content)
    (tmp_path / "prompts.parquet").write_bytes(b"")
    tables = ["--prompts", tmp_path / "prompts.parquet", "--media", tmp_path]
    calls: list[list[Any]] = [
        ["card", models["one"], "--figures", file],
        ["calibrate", models["one"], "--pairs", file, *tables],
    ]
    for call in calls:
        assert f"{file} cannot be read as a Parquet table of kind" in failing(*call)


def test_what_is_known_to_fail_fails_before_anything_is_scored(
    models: dict[str, Path], answers: list[dict[str, Any]], tmp_path: Path
) -> None:
    call = ["best-of", tmp_path / "answers.jsonl", "--model", models["one"], "--output", tmp_path / "o.parquet"]
    (tmp_path / "curve").write_text("")
    assert "is a file; name a folder" in failing(*call, "--curve", tmp_path / "curve", code=2)
    shutil.copytree(models["two"], tmp_path / "damaged")
    card = json.loads((tmp_path / "damaged" / "reward_model.json").read_text())
    (tmp_path / "damaged" / "reward_model.json").write_text(json.dumps(card | {"calibration": {"temperature": "x"}}))
    message = failing(*call, "--model", tmp_path / "damaged", "--ensemble", "mean")
    assert f"{tmp_path / 'damaged'}: `calibration` in reward_model.json is damaged" in message
    assert not (tmp_path / "o.parquet.work").exists()


def _failing_with(call: list[Any], file: Path, row: dict[str, str]) -> str:
    file.write_text(json.dumps(row))
    return failing(*call)


def test_benchmark_figures_go_into_the_card_as_the_hub_reads_them(models: dict[str, Path], tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    columns = ("model", "benchmark", "figure", "value", "low", "high", "count")
    rows = [
        ("m", "vl_rewardbench", "overall", 0.7512, 0.73, 0.77, 1250),
        ("m", "vl_rewardbench", "hallucination", None, None, None, 0),
        ("other", "vl_rewardbench", "overall", 0.5, 0.4, 0.6, 1250),
    ]
    table = schemas.table([dict(zip(columns, row, strict=True)) for row in rows], "benchmark_figures")
    atomic.write_parquet(table, tmp_path / "figures.parquet")
    call = ["card", models["one"], "--figures", tmp_path / "figures.parquet"]
    assert "has the models m, other: name one with --model" in failing(*call)
    assert "has no model 'x'; it has m, other" in failing(*call, "--model", "x")
    for _ in range(2):  # a second call replaces what the first wrote
        assert "2 figures of vl_rewardbench" in dt2it(*call, "--model", "m")
    text = (models["one"] / "README.md").read_text()
    assert text.count("## Benchmarks") == 1 and "| vl_rewardbench | overall | 75.1 | 73.0 | 77.0 | 1250 |" in text
    assert "| vl_rewardbench | hallucination | not known |" in text and "0.4" not in text.split("## Benchmarks")[1]
    assert yaml.safe_load(text.split("---")[1])["library_name"] == "transformers"
    [result] = ModelCard.load(models["one"] / "README.md").data.eval_results
    assert (result.dataset_name, result.metric_name, result.metric_value) == ("vl_rewardbench", "overall", 0.7512)


@pytest.mark.heavy
def test_a_training_with_enough_held_out_pairs_calibrates_the_weights_that_it_keeps(tmp_path: Path) -> None:
    from dt2it_pipeline.reward.calibration import calibration_of

    tables = make_tables(tmp_path / "tables", 280)
    (tmp_path / "base").mkdir()
    held_out = {"validation_pairs": 120, "keep": "best", "epochs": 0.4, "eval_steps": 4, "processes": 1}
    training = SMALL | {"base_model": str(make_tiny(tmp_path / "base"))} | held_out
    recipe = {"name": "tiny", "seed": 5, "training": training, "annotation": {"judges": [{"name": "a"}, {"name": "b"}]}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    given = ["--pairs", tables["pairs"], "--prompts", tables["prompts"], "--media", tables["media_root"]]
    summary = json.loads(
        dt2it("train", *given, "--recipe", tmp_path / "recipe.yaml", "--output", tmp_path / "made", "--json")
    )
    found = calibration_of(json.loads((tmp_path / "made" / "reward_model.json").read_text()))
    assert found is not None and found.source == "held-out pairs of the training"
    assert found.pairs == summary["validation_pairs"] >= 120
    # The temperature is that of the weights that were kept.
    assert found.log_loss_before == pytest.approx(summary["validation_loss"], abs=1e-5)
    assert found.accuracy == pytest.approx(summary["validation_accuracy"])
    assert "| from | held-out pairs of the training |" in (tmp_path / "made" / "README.md").read_text()
