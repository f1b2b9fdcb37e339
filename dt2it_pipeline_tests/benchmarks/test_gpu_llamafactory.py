"""LLaMA-Factory's row of `benchmarks.gpu`: its data and arguments, what its process reports, and a real training.

LLAMAFACTORY_PYTHON names the python of its environment for the last tests; benchmarks/README.md says how to make one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.gpu import cases, theirs, training
from benchmarks.gpu.__main__ import arguments, make_case
from benchmarks.gpu.case import Case
from benchmarks.gpu.figures import Result, table

ROOT = Path(__file__).resolve().parents[2]
# What LLaMA-Factory 0.9.5 wrote on two CPU cores: `--shapes tiny --lora 4 --set training.max_pixels=4096`.
EVENTS = """\
{"versions": {"llamafactory": "0.9.5", "torch": "2.13.0+cpu", "transformers": "5.6.0"}}
{"tokens": 150.0625}
{"step": 1, "time": 1795883408.8350322, "memory": 680505344}
{"step": 2, "time": 1795883409.0587976, "memory": 680505344}
{"step": 3, "time": 1795883409.2915716, "memory": 680505344}
{"step": 4, "time": 1795883409.5147939, "memory": 680505344}
"""
# The same with `--llamafactory-set no_such=1`.
REFUSED = """\
{"versions": {"llamafactory": "0.9.5", "torch": "2.13.0+cpu", "transformers": "5.6.0"}}
{"failed": "ValueError", "message": "Some keys are not used by the HfArgumentParser: ['no_such']"}
"""
BEGAN = 1795883394.885  # of the first of them


def case(tmp_path: Path, shape: str, *more: str, python: str | None = None) -> Case:
    given = arguments().parse_args(["--work", str(tmp_path), *more])
    made = replace(make_case(shape, given, cuda=False), kind="llamafactory", label="LLaMA-Factory", python=python)
    place = tmp_path / "place"
    place.mkdir(exist_ok=True)
    return replace(made, place=str(place), started=time.time())


def fill(text: str, *, code: int = 0, warmup: int = 1, steps: int = 4) -> Result:
    made = Result("LLaMA-Factory", "tiny", "pairs", tokens=300.125, decoder=1e9, encoder=1e7)
    return theirs.fill(made, theirs.read(text), BEGAN, code=code, batch=4, warmup=warmup, steps=steps)


def test_the_data_set_holds_the_same_pairs_and_images(tmp_path: Path) -> None:
    made = case(tmp_path, "tiny")
    theirs.write_pairs(made, tmp_path)
    rows = json.loads((tmp_path / "pairs.json").read_text(encoding="utf-8"))
    part = made.part("training")
    assert len(rows) == part.prompts
    assert rows[0]["chosen"]["value"] != rows[0]["rejected"]["value"]
    assert [turn["from"] for turn in rows[0]["conversations"]] == ["system", "human"]
    assert rows[0]["conversations"][0]["value"] == made.settings.system_prompt
    assert all(row["conversations"][1]["value"].count("<image>") == len(row["images"]) == 1 for row in rows)
    for row in rows:
        with Image.open(row["images"][0]) as image:
            assert image.format == "JPEG" and image.size == part.size
    entry = json.loads((tmp_path / "dataset_info.json").read_text(encoding="utf-8"))["pairs"]
    assert entry["ranking"] and entry["file_name"] == "pairs.json" and set(entry["columns"].values()) <= set(rows[0])


def test_its_arguments_are_those_of_our_training(tmp_path: Path) -> None:
    changes = ("training.gradient_checkpointing=true", "training.loader_workers=3", "training.max_length=700")
    made = case(tmp_path, "tiny-qwen2.5", "--lora", "4", *(part for each in changes for part in ("--set", each)))
    asked = theirs.arguments(made, tmp_path, 4096, cuda=True)
    assert asked["stage"] == "rm" and asked["dataset"] == "pairs" and asked["dataset_dir"] == str(tmp_path)
    assert asked["gradient_accumulation_steps"] * asked["per_device_train_batch_size"] == 4
    assert (asked["lora_rank"], asked["lora_alpha"], asked["lora_target"]) == (4, 32, "all")
    assert asked["template"] == "qwen2_vl" and asked["bf16"] and not asked["use_cpu"]
    assert asked["model_name_or_path"] == str(made.base) and asked["image_max_pixels"] == 4096
    assert not asked["disable_gradient_checkpointing"] and asked["freeze_vision_tower"]
    assert asked["dataloader_num_workers"] == 3 and asked["cutoff_len"] == 700 and asked["max_steps"] == 5
    plain = theirs.arguments(case(tmp_path, "tiny"), tmp_path, 4096, cuda=False)
    assert plain["finetuning_type"] == "full" and not plain["bf16"] and plain["use_cpu"]
    assert plain["disable_gradient_checkpointing"] and plain["dataloader_num_workers"] == 0


def test_arguments_of_its_own_are_passed_on(tmp_path: Path) -> None:
    made = case(tmp_path, "tiny", "--llamafactory-set", "flash_attn=fa2", "--llamafactory-set", "pure_bf16=true")
    asked = theirs.arguments(made, tmp_path, 4096, cuda=True)
    assert asked["flash_attn"] == "fa2" and asked["pure_bf16"] is True
    for change, message in {
        "flash_attn": "write KEY=VALUE",
        "max_steps=3": "the benchmark sets max_steps",
        "optim=[": "not valid YAML",
    }.items():
        with pytest.raises(ValueError, match=message):
            case(tmp_path, "tiny", "--llamafactory-set", change)


def test_figures_come_from_the_steps_after_the_warm_up() -> None:
    made = fill(EVENTS)
    assert made.rates == pytest.approx([4 / 0.2237655, 4 / 0.2327740, 4 / 0.2232223], rel=1e-4)
    assert fill(EVENTS, warmup=2).rates == made.rates[1:]
    assert made.first == pytest.approx(13.95, abs=0.01) and made.peak_memory == 680505344
    assert made.tokens == 150.0625 and made.decoder == pytest.approx(5e8) and made.encoder == 1e7
    assert made.versions["llamafactory"] == "0.9.5"


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        (REFUSED, 1, "LLaMA-Factory raised ValueError after 0 steps: Some keys are not used by the HfArgumentParser"),
        (EVENTS.rpartition("\n{")[0] + '\n{"st', -9, "process was ended by SIGKILL after 3 of 4 steps"),
        ("", 2, "process ended with code 2 after 0 of 4 steps"),
    ],
)
def test_a_training_that_did_not_end_is_a_sentence(text: str, code: int, message: str) -> None:
    with pytest.raises(theirs.TheirError, match=message):
        fill(text, code=code)


def test_too_little_memory_of_its_gpu_is_out_of_memory() -> None:
    with pytest.raises(MemoryError):
        fill(json.dumps({"failed": "OutOfMemoryError", "message": "CUDA out of memory."}) + "\n", code=1)


def test_an_environment_without_it_is_a_line_of_the_table(tmp_path: Path) -> None:
    """Tried with a real python: an empty environment, in which not even this project's packages are."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "empty")], check=True)
    python = str(tmp_path / "empty" / "bin" / "python")
    made = case(tmp_path, "tiny", python=python)
    cases.prepare(made)
    result = Result(**cases.run(made))
    assert result.error == "LLaMA-Factory is not installed in the environment of --llamafactory-python"
    assert f"| {result.error} |" in table([result], None)
    (tmp_path / "again").mkdir()
    gone = Result(**cases.run(replace(made, place=str(tmp_path / "again"), python="/no/such/python")))
    assert gone.error == "/no/such/python cannot be started: No such file or directory"


@pytest.fixture
def its_python() -> str:
    python = os.environ.get("LLAMAFACTORY_PYTHON")
    if not python:
        pytest.skip("LLAMAFACTORY_PYTHON names no python of an environment with LLaMA-Factory")
    return python


@pytest.mark.heavy
@pytest.mark.parametrize(("shape", "more"), [("tiny", ("--lora", "4")), ("tiny-qwen2.5", ())])
def test_it_trains_on_as_many_tokens_as_ours(
    shape: str, more: tuple[str, ...], tmp_path: Path, its_python: str
) -> None:
    smaller = ("--set", "training.max_pixels=4096")  # so that both have to scale images down
    made = case(tmp_path, shape, *smaller, *more, python=its_python)
    cases.prepare(made)
    result = Result(**cases.run(made))
    assert result.error is None and len(result.rates) == made.steps
    separate = replace(made, training=made.training | {"shared_prefix": False})
    expected, _ = training._training_result(separate)
    assert result.tokens == expected.tokens and result.decoder == expected.decoder
    assert result.encoder == 2 * (expected.encoder or 0)  # of each response's own prompt
    assert (result.first or 0) > 0 and (result.peak_memory or 0) > 2**27
    assert result.versions["llamafactory"]


@pytest.mark.heavy
@pytest.mark.timeout(600)
def test_the_command_compares_both_trainers(tmp_path: Path, its_python: str) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--work", str(tmp_path), "--steps", "2"]
    command += ["--cases", "train,llamafactory", "--llamafactory-python", its_python]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    row = next(line for line in ended.stdout.splitlines() if line.startswith("| LLaMA-Factory "))
    assert "pairs/s" in row
    assert "times the rate of LLaMA-Factory" in ended.stdout
