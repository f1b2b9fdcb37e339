"""`dt2it init` and `settings`: what they write, print and return."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from dt2it_pipeline.cli.checks.flight_check import flight_check
from dt2it_pipeline.cli.project import setting_lines
from dt2it_pipeline.config import load_recipe, recipe_schema, settings_reference
from dt2it_pipeline.config.paths import shipped_configs
from dt2it_pipeline.config.recipe_files import read_deepspeed_config
from dt2it_pipeline.config.reference import section_descriptions
from dt2it_pipeline.definitions import build_defs
from dt2it_pipeline.engines.launch.ranks import write_remote_environment
from dt2it_pipeline.ingest.manifest import load_catalogue
from dt2it_pipeline_tests.support.commands import invoke as dt2it
from dt2it_pipeline_tests.support.ingest_world import image
from dt2it_pipeline_tests.support.new_projects import PROMPTS, go_outside, lines_file

PAIRS = [{"prompt": f"What is {n}?", "chosen_response": "Two.", "rejected_response": "Six."} for n in range(3)]


@pytest.fixture(autouse=True)
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_outside(tmp_path, monkeypatch)


# settings


def test_settings_are_printed_as_text_of_at_most_120_columns() -> None:
    shown = dt2it("settings")
    assert shown.exit_code == 0
    assert max(map(len, shown.stdout.splitlines())) <= 120
    for row in settings_reference():
        assert f"{row.key}: {row.type.split(' ')[0]}" in shown.stdout
    assert "[training.lora] Low-rank adapters" in shown.stdout


def test_one_setting_and_json() -> None:
    shown = dt2it("settings", "training.lora.rank").stdout
    assert "training.lora.rank: integer; unit: dimensions; range: 1 to 1,024; default: 16" in shown
    (row,) = json.loads(dt2it("settings", "training.lora.rank", "--json").stdout)
    assert (row["key"], row["unit"], row["kinds"], row["section"]) == (
        "training.lora.rank", "dimensions", [], "training.lora"
    )  # fmt: skip
    wrong = dt2it("settings", "training.lora.rnk")
    assert wrong.exit_code == 1 and wrong.stdout == ""


def test_narrow_lines_lose_nothing() -> None:
    rows = settings_reference("curation")
    narrow = list(setting_lines(rows, section_descriptions(), width=60))
    assert max(map(len, narrow)) <= 60
    assert "".join("".join(narrow).split()) == "".join("".join(setting_lines(rows, section_descriptions())).split())


def test_the_schema_is_written(tmp_path: Path) -> None:
    assert dt2it("settings", "--schema", tmp_path / "s.json").exit_code == 0
    assert json.loads((tmp_path / "s.json").read_text()) == recipe_schema()
    assert json.loads(dt2it("settings", "--schema", "-").stdout) == recipe_schema()


# init


def test_a_new_project_runs_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = dt2it("init", "mine")
    assert made.exit_code == 0
    assert made.stdout.splitlines()[-4:] == [
        "next:", f"  cd {tmp_path / 'mine'}", "  dt2it check", "  dt2it run construct"
    ]  # fmt: skip
    monkeypatch.chdir("mine")
    recipe = load_recipe()
    assert recipe.name == "mine" and recipe.demo is not None
    build_defs(recipe, tmp_path / "home")
    demo = load_recipe("demo")
    assert recipe.model_copy(update={"name": "demo"}) == demo  # the demo that the package's recipe describes
    text = Path("configs/recipes/mine.yaml").read_text()
    assert text.startswith("# yaml-language-server: $schema=../recipe.schema.json\n")
    jsonschema.validate(yaml.safe_load(text), json.loads(Path("configs/recipe.schema.json").read_text()))


def test_a_folder_with_a_space_is_quoted_in_the_next_command(tmp_path: Path) -> None:
    assert f"\n  cd '{tmp_path / 'my proj'}'\n" in dt2it("init", "my proj").stdout


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/dagster.yaml").write_text("ours: 1\n")
    refused = dt2it("init", "mine")
    assert refused.exit_code == 1 and "dagster.yaml" in refused.output
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["dagster.yaml"]
    (tmp_path / "mine/dagster.yaml").rename(tmp_path / "mine/README.md")
    assert dt2it("init", "mine").exit_code == 0 and dt2it("init", "mine").exit_code == 1


def test_dagsters_settings_are_the_repositorys(tmp_path: Path) -> None:
    dt2it("init", "mine")
    repository = shipped_configs().parent
    for name in ("dagster.yaml", "workspace.yaml"):
        assert yaml.safe_load((tmp_path / "mine" / name).read_text()) == yaml.safe_load((repository / name).read_text())


def test_a_teams_project_keeps_runs_in_postgres_and_no_password_in_a_file(tmp_path: Path) -> None:
    made = dt2it("init", "mine", "--postgres")
    assert made.exit_code == 0 and "DT2IT_POSTGRES_HOST" in made.stdout
    settings = yaml.safe_load((tmp_path / "mine/dagster.yaml").read_text())
    alone = yaml.safe_load((shipped_configs().parent / "dagster.yaml").read_text())
    storage = settings.pop("storage")["postgres"]["postgres_db"]
    del alone["storage"]
    assert settings == alone
    # What stands for psycopg 3 where it is not named, which the extra does not bring.
    assert storage.pop("scheme") == "postgresql+psycopg2"
    assert {key: list(value) for key, value in storage.items()} == {
        key: ["env"] for key in ("hostname", "port", "db_name", "username", "password")
    }
    remote = tmp_path / "environment"
    write_remote_environment(remote, {each["env"]: "x" for each in storage.values()}, {})
    assert "DT2IT_POSTGRES_HOST=x" in remote.read_text() and "PASSWORD" not in remote.read_text()


@pytest.mark.parametrize(("row", "options", "words"), [
    ({"prompt": "Q?", "chosen": "a", "rejected": "b", "note": "x"}, (),
     "question = prompt; by their names: chosen, rejected"),
    ({"question": "Q?", "chosen": "a", "rejected": "b"}, (), "by their names: chosen, rejected, question"),
    ({"question": "Q?", "good": "a", "bad": "b"}, ("--column", "chosen=good", "--column", "rejected=bad"),
     "chosen = good, rejected = bad; by their names: question"),
    ({"question": "Q?", "chosen": "a", "rejected": "b"}, ("--column", "chosen=chosen"),
     "chosen = chosen; by their names: rejected, question"),
    ({"conversations": [{"from": "human", "value": "Q?"}], "chosen": {"from": "gpt", "value": "a"},
      "rejected": {"from": "gpt", "value": "b"}}, (), "by their names: chosen, rejected, conversations"),
    ({"prompt": "Q?", "context": "It is so.", "chosen": "a", "rejected": "b"}, (),
     "by their names: chosen, rejected, prompt, context"),
    ({"prompt": "Q?", "context": "It is so.", "chosen": "a", "rejected": "b"}, ("--column", "question=prompt"),
     "question = prompt; by their names: chosen, rejected"),
])  # fmt: skip
def test_columns_that_are_read_are_named(
    tmp_path: Path, row: dict[str, Any], options: tuple[str, ...], words: str
) -> None:
    made = dt2it("init", tmp_path / "mine", "--data", lines_file(tmp_path / "pairs.jsonl", [row]), *options)
    assert f"read as preferences by their columns ({words}): 1 of the first 1 rows" in " ".join(made.stdout.split())


def test_columns_of_a_published_schema_are_named(tmp_path: Path) -> None:
    row = {"prompt": "A cat", "path1": "a.png", "path2": "b.png", "confidence": 0.9, "note": "x"}
    made = dt2it("init", tmp_path / "mine", "--data", lines_file(tmp_path / "pairs.jsonl", [row]))
    words = "read as t2i by adapter hpdv3 (by their names: prompt, path1, path2, confidence): 1 of the first 1 rows"
    assert words in " ".join(made.stdout.split())


def test_pairs_of_ones_own_get_a_manifest_and_what_is_missing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = lines_file(tmp_path / "my pairs.jsonl", PAIRS)
    made = dt2it("init", "mine", "--data", data)
    assert made.exit_code == 0, made.output
    assert max(map(len, made.stdout.splitlines())) <= 120 or str(tmp_path) in made.stdout
    assert "columns of your file: prompt, chosen_response, rejected_response" in made.stdout
    said = " ".join(made.stdout.split())
    assert "put such questions into sources/prompts.jsonl" in said and "kind: benchmark" in said
    monkeypatch.chdir("mine")
    recipe = load_recipe()
    prompts, pairs = load_catalogue(recipe.datasets)
    assert (prompts.kind, pairs.name, pairs.kind, pairs.path) == ("prompts", "my_pairs", "preferences", str(data))
    build_defs(recipe, tmp_path / "home")
    zero = read_deepspeed_config(recipe.training.deepspeed_config)["zero_optimization"]
    assert recipe.training.processes == 1 and not zero["overlap_comm"]  # nobody to exchange gradients with
    assert zero["reduce_bucket_size"] < 50_000_000  # at 200 million and twice, as for eight GPUs, 0.8 GB in bfloat16
    schema = json.loads(Path("configs/manifest.schema.json").read_text())
    for file in Path("configs/datasets").glob("*.yaml"):
        assert file.read_text().startswith("# yaml-language-server: $schema=../manifest.schema.json\n")
        jsonschema.validate(yaml.safe_load(file.read_text()), schema)
    levels = {line.topic: line for line in flight_check()}
    assert levels["source my_pairs"].level == "ok" and levels["source my_pairs"].details["usable"] == 3
    assert levels["source prompts"].level == "error" and "No such file" in levels["source prompts"].text
    assert levels["source prompts"].advice.startswith("write this file, or correct the manifest's path")


def test_data_within_the_project_is_named_from_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for row in PROMPTS:
        image(tmp_path / "mine/own" / row["image"])
    lines_file(tmp_path / "mine/own/prompts.jsonl", PROMPTS)
    assert dt2it("init", "mine", "--data", "mine/own/prompts.jsonl").exit_code == 0
    manifest = yaml.safe_load((tmp_path / "mine/configs/datasets/prompts.yaml").read_text())
    assert (manifest["kind"], manifest["path"], manifest["media_root"]) == ("prompts", "own/prompts.jsonl", "own")
    monkeypatch.chdir("mine")
    assert load_recipe().datasets == ("prompts",)
    result = json.loads(dt2it("check", "--json").stdout)
    (source,) = [line for line in result["lines"] if line["topic"] == "source prompts"]
    assert source["level"] == "ok" and source["details"]["columns"] == ["image", "question", "reference"]


def test_data_that_cannot_be_read_writes_nothing(tmp_path: Path) -> None:
    assert dt2it("init", "mine", "--data", "none.jsonl").exit_code == 1
    assert not (tmp_path / "mine").exists()


def test_a_second_file_is_refused_with_the_way_it_gets_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("first", "my second"):
        lines_file(tmp_path / f"{name}.jsonl", PAIRS)
    made = dt2it("init", "mine", "--data", "first.jsonl", "--data", "my second.jsonl")
    assert made.exit_code == 2 and not (tmp_path / "mine").exists()
    assert "`dt2it init OTHER --data 'my second.jsonl'`" in made.stderr and "`datasets`" in made.stderr
    # The way that it names:
    assert dt2it("init", "mine", "--data", "first.jsonl").exit_code == 0
    assert dt2it("init", "OTHER", "--data", "my second.jsonl").exit_code == 0
    monkeypatch.chdir("mine")
    Path("../OTHER/configs/datasets/my_second.yaml").rename("configs/datasets/my_second.yaml")
    recipe = Path("configs/recipes/mine.yaml")
    recipe.write_text(recipe.read_text().replace("[prompts, first]", "[prompts, first, my_second]"))
    levels = {line.topic: line for line in flight_check()}
    assert levels["source my_second"].level == "ok" and levels["source my_second"].details["usable"] == 3


def test_a_verdict_of_no_side_is_named_with_its_option(tmp_path: Path) -> None:
    made = dt2it("init", "mine", "--data", lines_file(tmp_path / "pairs.jsonl", PAIRS), "--verdict", "0=left")
    assert made.exit_code == 2 and "--verdict 0=left: 'left' is none of first, second, tie" in made.stderr


def test_data_of_which_no_row_can_be_used_writes_nothing(tmp_path: Path) -> None:
    data = lines_file(tmp_path / "pairs.jsonl", [{**row, "chosen_response": ""} for row in PAIRS])
    made = dt2it("init", "mine", "--data", data)
    assert made.exit_code == 1 and not (tmp_path / "mine").exists()
    assert "none of the first 3 rows can be used as preferences by their columns: missing value" in made.stderr
