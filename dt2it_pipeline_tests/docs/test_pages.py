"""What the pages show works: commands exist or run, recipes and manifests are valid, Python compiles."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from dt2it_pipeline.cli import app
from dt2it_pipeline.config.recipe import parse_recipe
from dt2it_pipeline.ingest.manifest import Manifest
from dt2it_pipeline_tests.support.documents import ROOT, Block, all_blocks

BASH = all_blocks("bash")
YAML = all_blocks("yaml")
PYTHON = all_blocks("python")
JOBS = ("construct", "round", "benchmark", "export")


def name(block: Block) -> str:
    return block.place


@pytest.mark.parametrize("block", BASH, ids=name)
def test_every_command_says_how_it_is_tested(block: Block) -> None:
    assert block.how in ("run", "parse", "make"), f"{block.place}: no `<!-- test: run|parse|make -->` before the block"


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


@pytest.mark.parametrize("block", [block for block in BASH if block.how == "run"], ids=name)
def test_commands_run(block: Block, tmp_path: Path) -> None:
    rows = [
        {"id": n, "question": f"What is in image {n}?", "chosen": f"A cat, number {n}.", "rejected": f"**Dogs** {n}!"}
        for n in range(60)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    python = Path(sys.executable).parent
    path = os.pathsep.join([str(python), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-ec", block.text], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{block.place}: {done.stdout}{done.stderr}"


@pytest.mark.parametrize("block", YAML, ids=name)
def test_settings_are_valid(block: Block) -> None:
    found = yaml.safe_load(block.text)
    if "kind" in found and "path" in found:
        Manifest.model_validate(found)
        return
    if "storage" in found:  # dagster.yaml
        return
    base = {"name": "page", "annotation": {"judges": [{"name": "one"}, {"name": "two"}]}}
    parse_recipe(yaml.safe_dump(base | found), block.place)


@pytest.mark.parametrize("block", PYTHON, ids=name)
def test_python_compiles_and_imports_what_is_there(block: Block) -> None:
    compile(block.text, block.place, "exec")
    for line in re.findall(r"^from dt2it_pipeline.* import .*$", block.text, re.M):
        exec(line, {})
