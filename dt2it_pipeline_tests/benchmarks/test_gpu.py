"""`benchmarks.gpu`: the published shapes, the settings it passes on, its figures, and the whole command on a CPU."""

import doctest
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.gpu import cases, data, figures, parity, processes, shapes
from benchmarks.gpu.__main__ import arguments, cases_of, make_case, settings
from benchmarks.gpu.case import Case
from benchmarks.gpu.figures import OUT_OF_MEMORY, Result
from dt2it_pipeline.config.base import DEMO_BASE_MODEL
from dt2it_pipeline.config.paths import model_path
from dt2it_pipeline.engines.torchvision_shim import ensure_torchvision

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = {  # parameters, as the Hub counts them in the published files
    "qwen3-vl-2b": 2_127_532_032,
    "qwen3-vl-4b": 4_437_815_808,
    "qwen3-vl-8b": 8_767_123_696,
    "qwen2.5-vl-3b": 3_754_622_976,
    "qwen2.5-vl-7b": 8_292_166_656,
}


def case(tmp_path: Path, shape: str = "tiny", *changes: str, cuda: bool = False) -> Case:
    few = ["--work", str(tmp_path), "--steps", "2"]
    given = arguments().parse_args([*few, *(part for c in changes for part in ("--set", c))])
    return make_case(shape, given, cuda=cuda)


def tokenizer() -> object:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_path(DEMO_BASE_MODEL))


@pytest.mark.parametrize("module", [figures, parity, shapes])
def test_examples_in_docstrings_are_true(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_shape_has_as_many_parameters_as_the_published_model(name: str) -> None:
    ensure_torchvision()
    import torch
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(shapes._config(shapes.SHAPES[name], tokenizer()))
    counted = {weight: value.numel() for weight, value in model.state_dict().items()}
    if shapes.SHAPES[name].tied:
        counted.pop("lm_head.weight")
    assert sum(counted.values()) == PUBLISHED[name]


def test_a_setting_is_passed_on_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    made = case(tmp_path, "tiny", "training.lora.rank=4", "scoring.tokens_per_batch=128", "training.cache_vision=true")
    assert made.settings.lora is not None and made.settings.lora.rank == 4 and made.settings.cache_vision
    assert made.scoring_settings.tokens_per_batch == 128
    for change, message in {
        "training.micro_batch=4": "training.micro_batch: is no setting",
        "training.epochs=none": "training.epochs: Input should be a valid number",
        "training=4": "write training.KEY=VALUE",
        "curation.policy=joint": "write training.KEY=VALUE",
        "training.lora={": "not valid YAML",
    }.items():
        with pytest.raises(ValueError, match=message):
            settings("training", {}, [change])


def test_a_gpu_gets_bfloat16_and_the_photographs(tmp_path: Path) -> None:
    made = case(tmp_path, "qwen3-vl-2b", cuda=True)
    assert made.settings.precision == "bfloat16" and made.settings.deepspeed_config == "zero2_one_gpu"
    assert made.settings.max_pixels == 268_324 and made.scoring_settings.pixel_limit == 1_310_720
    assert made.part("training").size == (960, 720)


def test_cases_are_those_asked_for(tmp_path: Path) -> None:
    given = arguments().parse_args(["--work", str(tmp_path), "--cases", "bare,score", "--profile"])
    made = cases_of("tiny", given, cuda=False)
    assert [each.kind for each in made] == ["bare", "naive", "score", "score", "profile"]
    assert [each.scoring["engine"] for each in made][2:4] == ["transformers", "vllm"]
    assert made[0].label == "bare"
    everything = arguments().parse_args(["--work", str(tmp_path)])
    assert cases_of("tiny", everything, cuda=False)[-1].kind == "llamafactory"


def test_a_case_that_is_asked_for_again_has_a_log_of_its_own(tmp_path: Path) -> None:
    given = arguments().parse_args(["--work", str(tmp_path), "--cases", "train,bare,train"])
    made = cases_of("tiny", given, cuda=False)
    assert [each.label for each in made] == ["train", "bare", "train (2)"]
    assert len({processes.log_of(each) for each in made}) == 3


def test_a_change_runs_the_cases_that_it_concerns_again(tmp_path: Path) -> None:
    changes = [
        "--also",
        "training.shared_prefix=false training.max_grad_norm=2",
        "--also",
        "scoring.tokens_per_batch=64",
    ]
    command = ["--work", str(tmp_path), "--set", "training.lora.rank=4", "--cases", "train,score,sample,train"]
    given = arguments().parse_args([*command, *changes, "--profile"])
    made = cases_of("tiny", given, cuda=False)
    assert [each.label for each in made[8:]] == [
        "train, LoRA 4, shared_prefix=false, max_grad_norm=2",
        "score one at a time, tokens_per_batch=64",
        "score (transformers), tokens_per_batch=64",
        "score (vllm), tokens_per_batch=64",
    ]
    assert made[0].settings.shared_prefix and not made[8].settings.shared_prefix
    assert made[8].settings.lora is not None and made[10].scoring_settings.tokens_per_batch == 64
    with pytest.raises(ValueError, match=r"--also scoring.tokens_per_batch=64: none of the cases depends on it"):
        cases_of("tiny", arguments().parse_args(["--cases", "train", *changes[2:]]), cuda=False)


def test_every_change_of_the_docs_is_one_that_the_command_takes(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "results" / "speed.md").read_text(encoding="utf-8")
    text += (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    changes = set(re.findall(r"\b(?:training|scoring)\.[a-z_.]+=[^\s`\",;)]+", text))
    assert {"training.loader_workers=0", "scoring.attention=sdpa"} <= changes and len(changes) > 12
    for change in sorted(changes):
        given = arguments().parse_args(["--work", str(tmp_path), "--cases", "train,score", "--also", change])
        labels = [each.label for each in cases_of("qwen3-vl-2b", given, cuda=True)]
        assert labels[-1].endswith(change.partition(".")[2])


def test_a_case_is_stopped_with_all_that_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "case"
    program.write_text(f"#!/bin/sh\nsleep 600 & echo $! > {tmp_path}/child\nwait\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setattr(processes.sys, "executable", str(program))
    began = time.monotonic()
    made = Result(**processes.start(replace(case(tmp_path), label="train"), began + 1))
    assert made.error == processes.OVER and time.monotonic() - began < 60
    with pytest.raises(ProcessLookupError):
        for _ in range(100):  # the kernel ends it a moment later
            os.kill(int((tmp_path / "child").read_text()), 0)
            time.sleep(0.1)
    monkeypatch.setattr(processes.sys, "executable", "/nowhere")
    assert processes.start(case(tmp_path), began)["error"] == processes.NOT_BEGUN  # and no further one begins


def test_what_fails_is_a_line_of_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class OutOfMemoryError(RuntimeError):
        """As torch.OutOfMemoryError, without a GPU."""

    def fails(case: Case) -> Result:
        try:
            raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        except OutOfMemoryError as error:
            raise ValueError("the GPU's memory does not suffice") from error

    def breaks(case: Case) -> Result:
        raise KeyError("image")

    monkeypatch.setitem(cases.KINDS, "train", fails)
    monkeypatch.setitem(cases.KINDS, "bare", breaks)
    common = case(tmp_path)
    results = [Result(**cases.run(replace(common, kind=kind, label=kind))) for kind in ("train", "bare")]
    assert results[0].error == OUT_OF_MEMORY and results[1].error == "KeyError: 'image'"
    lines = figures.table([*results, Result("score", "tiny", "responses", [2.0, 4.0, 3.0])], None).splitlines()
    assert "| out of memory " in lines[2] and "| KeyError " in lines[3] and "| 3.00 (2.00 to 4.00) |" in lines[4]
    assert "MFU" not in lines[0]  # nothing stands there


def test_utilisation_is_shown_with_its_formula() -> None:
    result = Result("train", "s", "pairs", [4.0, 6.0, 5.0], tokens=100, decoder=4e12, encoder=1e12, waits=0.031)
    result.compilation = {"compile_seconds": 41.23, "compile_graphs": 6}
    header, _, line = figures.table([result], 100.0).splitlines()
    shown = dict(zip((c.strip() for c in header.split("|")), (c.strip() for c in line.split("|")), strict=True))
    assert shown["compile, s"] == "41.2"
    assert shown["tokens/s"] == "500" and shown["MFU"] == "20.0%" and shown["with encoder"] == "25.0%"
    assert shown["waits for data"] == "3.1%"
    assert "989 TFLOP/s of NVIDIA H200" in figures.notes("NVIDIA H200", figures.peak_tflops("NVIDIA H200"))
    assert "--peak-tflops" in figures.notes("NVIDIA B200", None) and "no GPU" in figures.notes(None, None)
    assert figures.as_json([result], 100.0, {"card": "c"})["results"][0]["mfu"] == 0.2


def test_texts_and_images_have_the_sizes_that_they_should(tmp_path: Path) -> None:
    made = case(tmp_path)
    cases.prepare(made)
    for name, limit in {"training": made.settings.max_pixels, "scoring": made.scoring_settings.pixel_limit}.items():
        assert limit is not None
        found = data.encoded(made.base, made.data(name), limit, made.settings.system_prompt)
        sizes, part = data.sizes(found[0], *found[2:]), made.part(name)
        assert sizes.image_tokens == part.image_tokens and sizes.patches == 4 * part.image_tokens
        assert abs(sizes.prompt - part.prompt) <= 3 and abs(sizes.response - part.response) <= 3


PARTS = {"reading images", "moving to the device", "vision encoder", "decoder forward", "backward", "optimiser"}


def run(common: Case, kind: str) -> Result:
    place = Path(common.work) / kind
    place.mkdir()
    made = Result(**cases.run(replace(common, kind=kind, label=kind, place=str(place), started=time.time())))
    assert made.error is None, made.error
    return made


@pytest.mark.heavy
@pytest.mark.parametrize("shape", ["tiny", "tiny-qwen2.5"])
def test_cases_measure_what_they_say(shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ensure_torchvision()
    from dt2it_pipeline.reward.training.training_data import TrainingData

    monkeypatch.setattr(TrainingData, "take", TrainingData.take)  # the case wraps it, and no other test is to see that
    common = case(tmp_path, shape, "training.lora.rank=4", "scoring.shard_responses=16")
    cases.prepare(common)
    ours, loop, profile = (run(common, kind) for kind in ("train", "bare", "profile"))
    assert len(ours.rates) == len(loop.rates) == common.steps
    assert ours.waits is not None and 0 < ours.waits < 1
    assert ours.first is not None and ours.first > 0 and (ours.peak_memory or 0) > 2**20
    assert ours.tokens == loop.tokens and ours.decoder == 4 * common.parameters["decoder"] * (ours.tokens or 0)
    assert set(profile.profile) == PARTS and not profile.rates
    equal = run(common, "parity").parity
    # 4 responses to 12 prompts; what a CPU trains with in both directions, FlexAttention without its gradient.
    assert equal["pairs"] == 72 and equal["main_alike"] >= 0.98 and equal["main_correlation"] >= 0.999
    assert 0 < equal["rounding_scores"] < 0.02 and 0 < equal["rounding_gradients"] < 0.05
    bounds = {name: parity.TIMES_ROUNDING * equal[f"rounding_{name}"] for name in ("scores", "gradients")}
    assert equal["flex_scores"] <= bounds["scores"] and equal["sdpa_blocks_scores"] <= bounds["scores"]
    assert equal["sdpa_blocks_gradients"] <= bounds["gradients"] and "flex_gradients" not in equal
    score, naive = run(common, "score"), run(common, "naive")
    assert len(score.rates) == 2 and len(naive.rates) == common.steps  # three shards, the first one loads
    part = common.part("scoring")
    assert (naive.tokens or 0) - (score.tokens or 0) == pytest.approx(3 / 4 * part.prompt, abs=6)
    assert naive.encoder == pytest.approx(4 * (score.encoder or 0))


@pytest.mark.heavy
@pytest.mark.timeout(900)
def test_the_command_prints_a_table_and_writes_json_though_a_case_fails(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--work", str(tmp_path / "work"), "--json", str(file)]
    command += ["--cases", "train,bare", "--steps", "2", "--set", "training.deepspeed_config=missing"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert re.search(r"^tiny: bare \.\.\. [\d.]+ pairs/s, \d+ s$", ended.stdout, re.MULTILINE)
    train, bare = (line for line in ended.stdout.splitlines() if line.startswith(("| train ", "| bare ")))
    assert "Error" in train and "pairs/s" in bare and "train.txt" in ended.stdout
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["machine"]["card"] is None and found["machine"]["versions"]["torch"]
    assert [len(row["rates"]) for row in found["results"]] == [0, 2]
