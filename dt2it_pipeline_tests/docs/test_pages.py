"""What the pages show works: commands exist and run, recipes and manifests are valid, Python runs."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from dt2it_pipeline.cli import app
from dt2it_pipeline.config.recipe import parse_recipe
from dt2it_pipeline.config.sections.annotation import AnnotationSettings
from dt2it_pipeline.ingest.manifest import Manifest
from dt2it_pipeline.storage.artifacts import Store
from dt2it_pipeline_tests.support.documents import ROOT, Block, all_blocks
from dt2it_pipeline_tests.support.finished_project import (
    PROJECT,
    make_audit,
    make_models,
    make_pairs,
    make_project,
    shell,
)

BASH = all_blocks("bash")
YAML = all_blocks("yaml")
PYTHON = all_blocks("python")
JOBS = ("construct", "round", "benchmark", "export")
# The rounds that the pages have a reader run, and the blocks that stand on them; several pages have the same one.
ROUNDS = "dt2it run construct\ndt2it run round --round 0\ndt2it run round --round 1\n"
PEOPLE = "dt2it review import answers.json\ndt2it run round --round 1\n"
FINISHED = {block.text: block for block in BASH if block.how == "finished" and block.text not in (ROUNDS, PEOPLE)}
_MODELS = re.compile(r"CHECKPOINT|SOURCE|data\.json")
(JOIN,) = (block for block in PYTHON if block.how == "finished")


def name(block: Block) -> str:
    return block.place


@pytest.mark.parametrize("block", BASH, ids=name)
def test_every_command_says_how_it_is_tested(block: Block) -> None:
    assert block.how in ("run", "finished", "parse", "make"), f"{block.place}: no `<!-- test: ... -->` before the block"


@pytest.mark.parametrize("block", BASH, ids=name)
def test_commands_and_options_exist(block: Block) -> None:
    checked = 0
    for words in block.commands():
        if words[0] == "dt2it":
            check_options(words[1:], block)
        elif words[0] == "make":
            targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
            assert {word for word in words[1:] if "=" not in word} <= set(targets), block.place
        elif words[0] == "dagster" and "-j" in words:
            assert words[words.index("-j") + 1] in JOBS, block.place
        elif words[:2] == ["python", "-m"] and words[2].startswith(("benchmarks.", "dt2it_pipeline.")):
            assert (ROOT / (words[2].replace(".", "/") + ".py")).is_file(), block.place
        checked += 1
    assert checked, f"{block.place}: no command in the block"


def check_options(words: list[str], block: Block) -> None:
    """The command, its subcommand and every option it is given are those of the app."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        assert words[0] in command.commands, f"{block.place}: there is no command {words[0]}"
        command = command.commands[words.pop(0)]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    if command.context_settings.get("ignore_unknown_options"):  # such as those of vLLM, behind `dt2it serve`
        return
    for word in words:
        if word.startswith("--"):
            assert word.partition("=")[0] in known | {"--help"}, f"{block.place}: {command.name} has no {word}"


def with_marks(blocks: Iterable[Block]) -> list[Any]:
    """The blocks as parameters; those that load a model take ten seconds or more."""
    return [pytest.param(block, marks=pytest.mark.heavy) if _MODELS.search(block.text) else block for block in blocks]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages call pairs.jsonl."""
    folder = tmp_path_factory.mktemp("pairs")
    make_pairs(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with what they call CHECKPOINT, SOURCE, data.json and images."""
    folder = tmp_path_factory.mktemp("models")
    make_pairs(folder)
    make_models(folder)
    return folder


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the page on audits stands on: pairs.parquet, scores.parquet, cleaned, audit/audit.csv."""
    folder = tmp_path_factory.mktemp("audited")
    make_audit(folder)
    return folder


@pytest.fixture
def files(block: Block, request: pytest.FixtureRequest) -> Path:
    """The folder that a block needs."""
    if block.page.name == "audit.md":
        return request.getfixturevalue("audited")
    return request.getfixturevalue("models" if _MODELS.search(block.text) else "pairs")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which the rounds have really run, which takes minutes: each starts five programs that load torch."""
    folder = tmp_path_factory.mktemp("finished")
    make_project(folder, ROUNDS)
    return folder / PROJECT


def run_in_a_copy(block: Block, folder: Path, copy: Path) -> str:
    """Run a block in a copy of a folder, so that every block finds it as the page has it; what it printed."""
    shutil.copytree(folder, copy, symlinks=True)
    for output in re.findall(r"--output (\S+)", block.text):  # what the block itself makes
        shutil.rmtree(copy / output, ignore_errors=True)
    done = shell(block.text, copy)
    assert done.returncode == block.code, f"{block.place}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


@pytest.mark.parametrize("block", with_marks(block for block in BASH if block.how == "run"), ids=name)
def test_commands_run(block: Block, files: Path, tmp_path: Path) -> None:
    printed = run_in_a_copy(block, files, tmp_path / "here")
    if block.code:  # as the tutorial says of a new project
        # The prompts are missing; and the model, since no network is to be used here.
        assert "a run would fail: " in printed and "2 error(s)" in printed
        assert "sources/prompts.jsonl" in printed and "HF_HUB_OFFLINE" in printed


@pytest.mark.heavy
@pytest.mark.timeout(1800)
def test_the_rounds_run(finished: Path) -> None:
    assert ROUNDS in {block.text for block in BASH if block.how == "finished"}
    assert "From round 0 to round 1" in (finished / "data/report.html").read_text(encoding="utf-8")


@pytest.mark.heavy
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("block", FINISHED.values(), ids=name)
def test_commands_on_finished_rounds_run(
    block: Block, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    run_in_a_copy(block, finished, here)
    if "outcomes.parquet" in block.text:  # the page goes on with it
        monkeypatch.chdir(here)
        found: dict[str, Any] = {}
        exec(compile(JOIN.text, JOIN.place, "exec"), found)
        assert len(found["joined"]) == len(found["rows"]) and found["joined"]["outcome"].notna().all()


@pytest.mark.heavy
@pytest.mark.timeout(1800)
def test_people_decide_pairs_that_judges_left_undecided(finished: Path, tmp_path: Path) -> None:
    """The block of the page on people, with the answers of one person who always took the first response."""
    (block,) = (block for block in BASH if block.text == PEOPLE)
    here = tmp_path / "here"
    printed = run_in_a_copy(block, finished, here)
    entries = json.loads((here / "answers.json").read_text(encoding="utf-8"))
    before, after = (Store(project / "data").read("annotated_pairs", "1") for project in (finished, here))
    assert len(entries) == before["quarantine"].num_rows > 0
    assert f"{len(entries)} votes of 1 person" in printed
    assert after.metadata["people_votes"] == len(entries)
    assert (after["quarantine"].num_rows, after.metadata["rows_in"]) == (0, before.metadata["rows_in"])
    labels = {row["pair_id"]: row for row in Store(here / "data").read("curated_pairs", "1")["pairs"].to_pylist()}
    for entry in entries:
        pair = labels[entry["metadata"]["pair_id"]]
        assert (pair["label"], pair["chosen_id"]) == ("annotated", entry["metadata"]["first_id"])
    # What does not depend on people is not made again.
    assert " ".join(printed.split()).count("reused, inputs and settings unchanged") >= 5


@pytest.mark.parametrize("block", YAML, ids=name)
def test_settings_are_valid(block: Block) -> None:
    found = yaml.safe_load(block.text)
    if "kind" in found and "path" in found:
        Manifest.model_validate(found)
        return
    if "storage" in found:  # dagster.yaml
        return
    if "base_url" in found:  # a judge
        AnnotationSettings.model_validate({"judges": [found]})
        return
    base = {"name": "page", "annotation": {"judges": [{"name": "one"}, {"name": "two"}]}}
    parse_recipe(yaml.safe_dump(base | found), block.place)


@pytest.mark.parametrize("block", PYTHON, ids=name)
def test_python_compiles_and_imports_what_is_there(block: Block) -> None:
    compile(block.text, block.place, "exec")
    for line in re.findall(r"^from dt2it_pipeline.* import .*$", block.text, re.M):
        exec(line, {})


@pytest.mark.parametrize("block", with_marks(block for block in PYTHON if block.how == "run"), ids=name)
def test_python_runs(block: Block, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files)
    scores = [0.5] * 8  # of the rows of data.json
    exec(compile(block.text, block.place, "exec"), {"chosen_scores": scores, "rejected_scores": [*scores[:-1], None]})
