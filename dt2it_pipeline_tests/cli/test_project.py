"""`dt2it init`, `check` and `settings`: what they write, print and return."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
import yaml
from huggingface_hub import constants
from typer.testing import CliRunner, Result

from dt2it_pipeline.cli import app
from dt2it_pipeline.cli.checks.flight_check import flight_check
from dt2it_pipeline.cli.project import setting_lines
from dt2it_pipeline.config import load_recipe, recipe_schema, settings_reference
from dt2it_pipeline.config.paths import shipped_configs
from dt2it_pipeline.config.recipe_files import read_deepspeed_config
from dt2it_pipeline.config.reference import section_descriptions
from dt2it_pipeline.definitions import build_defs
from dt2it_pipeline.engines import device
from dt2it_pipeline.engines.launch.ranks import write_remote_environment
from dt2it_pipeline.ingest.manifest import load_catalogue
from dt2it_pipeline_tests.support.fault_server import KEY, FaultServer, serving, verdict
from dt2it_pipeline_tests.support.ingest_world import image

PROMPTS = [{"image": f"{n}.png", "question": f"What is it, {n}?", "reference": "A square."} for n in range(3)]
PAIRS = [{"prompt": f"What is {n}?", "chosen_response": "Two.", "rejected_response": "Six."} for n in range(3)]


def dt2it(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is no project, in which no variable names one."""
    for name in ("DT2IT_PROJECT", "DT2IT_RECIPE", "DT2IT_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # read from the environment once
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lines_file(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


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


# check


def project(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    more: str = "",
    *,
    annotators: str = "[{name: a}, {name: b}]",
    **sources: list[dict],
) -> None:
    """A project with sources of the kinds that are named, as JSON Lines, and the demo's model."""
    for kind, rows in sources.items():
        lines_file(folder / f"{kind}.jsonl", rows)
        manifest = f"name: {kind}\nkind: {kind}\npath: {kind}.jsonl\nmedia_root: .\nlicence: MIT\n"
        (folder / "configs/datasets").mkdir(parents=True, exist_ok=True)
        (folder / f"configs/datasets/{kind}.yaml").write_text(manifest)
    recipe = f"name: mine\ndatasets: [{', '.join(sources)}]\nannotation: {{judges: {annotators}}}\n{more}"
    (folder / "configs/recipes").mkdir(parents=True)
    (folder / "configs/recipes/mine.yaml").write_text(recipe)
    monkeypatch.chdir(folder)


def test_a_project_that_is_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for row in PROMPTS:
        image(tmp_path / row["image"])
    held_out = [{"question": "Why?", "chosen": "So.", "rejected": "No.", "group": "g"}]
    project(tmp_path, monkeypatch, prompts=PROMPTS, benchmark=held_out)
    shown = dt2it("check")
    assert shown.exit_code == 0, shown.output
    assert max(len(line) for line in shown.stdout.splitlines() if str(tmp_path) not in line) <= 120
    for expected in (
        "OK      recipe: mine: every setting is valid; rounds 0 to 1",
        "OK      source prompts: prompts; 3 of the first 3 items are usable",
        "OK      benchmark benchmark: accuracy by group; rows come from source benchmark",
        "OK      model demo: ",
        "OK      GPU memory: ",
        "OK      judge reference (judging.judges.0): reference: compares with the reference answer",
        "OK      judge a (annotation.judges.0): likelihood: loads demo on this machine",
        "ready to run: ",
    ):
        assert expected in shown.stdout
    assert not (tmp_path / "data").exists()


class Card:
    """A GPU, as PyTorch describes it."""

    def __init__(self, gib: float) -> None:
        self.total_memory = int(gib * 2**30)


@pytest.mark.parametrize(("cards", "processes", "level", "words"), [
    ([0.01], 1, "error", "set training.lora, deepspeed_config: zero3 or more processes"),
    ([24.0, 0.01], 1, "error", "set training.lora"),  # the smallest counts
    ([0.95], 1, "warning", "should leave a quarter free"),
    ([24.0], 2, "warning", "set training.processes to the number of GPUs"),
    ([24.0, 24.0], 2, "ok", ""),
])  # fmt: skip
def test_gpus_that_do_not_suffice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cards: list[float], processes: int, level: str, words: str
) -> None:
    project(tmp_path, monkeypatch, f"training: {{processes: {processes}, deepspeed_config: zero2}}\n", prompts=PROMPTS)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: Card(cards[number]))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(cards))
    result = dt2it("check", "--json")
    (line,) = (each for each in json.loads(result.stdout)["lines"] if each["topic"] == "GPU memory")
    assert line["level"] == level and words in line["advice"], line
    assert f"here: {len(cards)} GPU(s) of {min(cards):.0f} GiB" in line["text"]
    assert line["details"]["gpus"] == [Card(each).total_memory for each in cards]
    if level == "error":
        assert result.exit_code == 1 and line["details"]["bytes_per_rank"] > min(line["details"]["gpus"])


def test_a_driver_that_is_older_than_pytorch_is_an_error_of_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project(tmp_path, monkeypatch, prompts=PROMPTS)
    version = tmp_path / "version"
    version.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n")
    monkeypatch.setattr(device, "_DRIVER", version)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    result = dt2it("check", "--json")
    (line,) = (each for each in json.loads(result.stdout)["lines"] if each["topic"] == "GPU memory")
    assert result.exit_code == 1 and line["level"] == "error"
    assert "NVIDIA driver 535.104.05" in line["text"] and "install a newer driver" in line["text"]
    assert line["details"]["gpus"] == []


def test_faults_are_named_with_what_to_do_and_the_exit_code_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = (
        "training: {base_model: models/none, deepspeed_config: zero9}\n"
        "judging: {judges: [{kind: endpoint, name: e, base_url: 'https://h/v1', model: m, api_key_env: NO_SUCH_KEY}]}\n"
    )
    ties = [
        {"question": "Why?", "chosen": "So.", "rejected": "So."},
        {"question": "Why?", "chosen": "A.", "rejected": "B."},
    ]
    project(
        tmp_path,
        monkeypatch,
        more,
        prompts=PROMPTS,
        preferences=[*ties, {"question": "Why?", "chosen": "", "rejected": "x"}],
    )
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    result = dt2it("check", "--json")
    assert result.exit_code == 1
    found = {line["topic"]: line for line in json.loads(result.stdout)["lines"]}
    assert found["files"]["level"] == "error" and "zero9.json" in found["files"]["text"]
    assert found["source prompts"]["level"] == "error" and "0 of the first 3" in found["source prompts"]["text"]
    assert found["source prompts"]["details"]["quarantined"] == {"missing image": 3}
    assert found["source preferences"]["level"] == "warning"
    assert found["source preferences"]["details"]["quarantined"] == {"identical sides": 1, "missing value": 1}
    assert found["benchmarks"]["level"] == "warning" and "no accuracy is measured" in found["benchmarks"]["text"]
    assert found["model models/none"]["level"] == "warning"
    judge = found["judge e (judging.judges.0)"]
    assert judge["level"] == "error" and judge["advice"] == "export NO_SUCH_KEY=..."


def test_a_model_that_is_not_here_is_an_error_where_a_run_may_not_fetch_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for row in PROMPTS:
        image(tmp_path / row["image"])
    project(tmp_path, monkeypatch, "training: {base_model: nobody/none}\n", prompts=PROMPTS)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(device, "_DRIVER", tmp_path / "no driver")
    online = dt2it("check")
    assert online.exit_code == 0 and "WARNING model nobody/none: not on this machine" in online.stdout
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    offline = dt2it("check", "--json")
    found = {line["topic"]: line for line in json.loads(offline.stdout)["lines"]}
    assert offline.exit_code == 1 and found["model nobody/none"]["level"] == "error"
    assert found["model nobody/none"]["advice"].startswith("HF_HUB_OFFLINE=0 hf download nobody/none")
    assert "no GPU here, so training runs on the CPU" in found["GPU memory"]["text"]


def test_a_wrong_recipe_ends_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project(tmp_path, monkeypatch, "rouds: 3\n", prompts=PROMPTS)
    shown = dt2it("check")
    assert shown.exit_code == 1
    assert "rouds: unknown key; did you mean rounds?" in shown.stdout and "1 error(s)" in shown.stdout
    (tmp_path / "other.yaml").write_text("name: [")
    assert "other.yaml is not valid YAML" in dt2it("check", "--recipe", "other.yaml").stdout


def test_without_a_source_for_round_0_the_check_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project(tmp_path, monkeypatch, preferences=[{"question": "Why?", "chosen": "A.", "rejected": "B."}])
    found = {line.topic: line for line in flight_check()}
    assert found["sources"].level == "error" and "no source of kind `prompts` or `t2i`" in found["sources"].text


def test_judges_behind_endpoints_are_called_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    for row in PROMPTS:
        image(tmp_path / row["image"])
    with serving(
        FaultServer({}, lambda words, responses: json.dumps({"responses": [verdict(1, 9), verdict(2, 3)]}))
    ) as server:
        judge = f"{{kind: endpoint, name: e, base_url: '{server.url}', model: m, api_key_env: JUDGE_KEY}}"
        absent = "[{name: a, model: models/none}, {name: b, model: models/none}]"
        project(tmp_path, monkeypatch, f"judging: {{judges: [{judge}]}}\n", annotators=absent, prompts=PROMPTS)
        shown = dt2it("check")
        assert "not called, since a call may cost money" in shown.stdout and server.bodies == []
        called = dt2it("check", "--call-judges")
        assert len(server.bodies) == 1 and server.keys == {f"Bearer {KEY}"}
    text = " ".join(called.stdout.split())
    assert called.exit_code == 0 and "1 image of 224 x 224" in text
    assert "asked: listwise, 'What colour is the square?'" in text and "understood: response 1 is better (9 and" in text
    assert 'reply: {"responses": [{"response": 1' in text and KEY not in called.output


def test_a_judge_whose_model_is_not_here_is_not_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judges = "[{kind: likelihood, name: a, model: models/none}, {kind: likelihood, name: b, model: models/none}]"
    project(tmp_path, monkeypatch, annotators=judges, prompts=PROMPTS)
    found = {line.topic: line for line in flight_check()}
    assert found["judge a (annotation.judges.0)"].advice == "`dt2it check --call-judges` loads it and asks it once"
    found = {line.topic: line for line in flight_check(call_judges=True)}
    assert found["judge a (annotation.judges.0)"].level == "warning"
    assert found["judge a (annotation.judges.0)"].advice == "hf download models/none"


@pytest.mark.heavy
def test_a_judge_of_this_machine_is_called_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judges = "[{kind: likelihood, name: a, baseline: blank}, {kind: likelihood, name: b}]"
    project(tmp_path, monkeypatch, annotators=judges, prompts=PROMPTS)
    lines = [line for line in flight_check(call_judges=True) if line.topic == "judge a (annotation.judges.0)"]
    assert [line.level for line in lines] == ["ok", "ok"]
    assert "a large model takes minutes to load" in lines[0].text
    assert lines[1].text.startswith("asked: a pair by likelihood, ") and "response 1 is better" in lines[1].text
