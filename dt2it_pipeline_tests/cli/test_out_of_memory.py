"""`dt2it train` and `dt2it score` where memory runs out: the command, its processes and PyTorch's error are real."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from dt2it_pipeline.config.paths import project_root
from dt2it_pipeline.reward.reward_model import RewardModel
from dt2it_pipeline.storage import atomic, records, schemas
from dt2it_pipeline_tests.support.tiny import WORDS, make_tables, make_tiny
from dt2it_pipeline_tests.support.training_jobs import SMALL, log_of

PAIRS = 32
WORKER = "dt2it_pipeline.engines.launch.worker"
SCORE = 30  # MiB
# Python runs this file at its start.
LIMITED = """import sys
if {word!r} in sys.orig_argv:
    from dt2it_pipeline_tests.support.small_memory import shrink_memory
    shrink_memory()
"""


def command(folder: Path, word: str, mebibytes: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `dt2it`; a process with `word` in its command line gets so much memory from its first pass on; 0: any."""
    site = folder / f"{word}-{mebibytes}"
    site.mkdir(exist_ok=True)
    if mebibytes:
        (site / "sitecustomize.py").write_text(LIMITED.format(word=word))
    environment = os.environ | {
        "PYTHONPATH": f"{site}:{project_root()}",
        "OMP_NUM_THREADS": "1",
        "SMALL_MEMORY_MIB": str(mebibytes),
    }
    line = [sys.executable, "-c", "from dt2it_pipeline.cli import main; main()", *map(str, arguments)]
    return subprocess.run(line, env=environment, cwd=folder, capture_output=True, text=True, timeout=240)


def long_text(start: int, words: int) -> str:
    return " ".join(WORDS[(start + number) % len(WORDS)] for number in range(words))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A model whose passes over 32 pairs of long answers take several hundred MiB, and a recipe of one such step."""
    root = tmp_path_factory.mktemp("world")
    (root / "base").mkdir()
    tables = make_tables(root / "tables", PAIRS)
    prompts = atomic.read_parquet(tables["prompts"], "prompts").to_pylist()
    pairs = [
        records.make_pair(row["prompt_id"], long_text(number, 160), long_text(number + 7, 160), source="test")
        for number, row in enumerate(prompts)
    ]
    atomic.write_parquet(schemas.table(pairs, "pairs"), root / "pairs.parquet")
    whole = {"max_steps": 1, "global_batch_size": PAIRS, "micro_batch_size": PAIRS, "processes": 1}
    training = SMALL | whole | {"base_model": str(make_tiny(root / "base", hidden=128))}
    recipe = {"name": "tiny", "seed": 5, "training": training, "annotation": {"judges": [{"name": "a"}, {"name": "b"}]}}
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    given = ["--pairs", root / "pairs.parquet", "--prompts", tables["prompts"], "--media", tables["media_root"]]
    return {"root": root, "train": ["train", *given, "--recipe", root / "recipe.yaml", "--json", "--output"]}


@pytest.fixture(scope="module")
def trained(world: dict[str, Any]) -> Path:
    """The checkpoint of a training that had all memory that there is."""
    output: Path = world["root"] / "whole"
    done = command(world["root"], WORKER, 0, *world["train"], output)
    assert done.returncode == 0 and "micro_batch" not in json.loads(done.stdout), done.stderr
    return output


@pytest.mark.heavy
@pytest.mark.timeout(400)
def test_a_training_goes_on_with_half_the_micro_batch(world: dict[str, Any], trained: Path) -> None:
    output = world["root"] / "halved"
    done = command(world["root"], WORKER, 350, *world["train"], output)
    assert done.returncode == 0, done.stderr
    (_, line, *rest), note = done.stderr.splitlines(), world["root"] / "halved.work" / "out_of_memory.json"
    said = re.sub(r"(?<=tried to allocate ).*?(?=\); training)", "N", line)
    assert said == (
        "memory ran out at step 1, rank 0 of 1 (DefaultCPUAllocator: can't allocate memory: you tried to allocate N); "
        "training goes on from its last saved state with half the micro-batch, 16 pairs: each step has the same pairs, "
        "so that the result differs by rounding alone. Later starts with these settings do the same; with more memory, "
        f"remove {note} first"
    ), done.stderr
    assert "memory" not in "".join(rest)
    assert json.loads(done.stdout)["micro_batch"] == "16 pairs" and not note.parent.exists()
    assert log_of(output)[0]["loss"] == pytest.approx(log_of(trained)[0]["loss"], abs=1e-5)


@pytest.mark.heavy
@pytest.mark.timeout(400)
def test_a_training_that_half_does_not_help_says_what_would(world: dict[str, Any]) -> None:
    output = world["root"] / "none"
    done = command(world["root"], WORKER, 60, *world["train"], output)
    assert done.returncode == 1 and not output.exists()
    first, *_, error = (line for line in done.stderr.splitlines() if "memory" in line)
    assert first.startswith("memory ran out at step 1") and error.startswith("error: training failed: ")
    assert "the micro-batch was halved already, to 16 pairs; lower training.micro_batch_size (now 32)" in error
    assert error.endswith(f"All that it printed is in {world['root']}/none.work/training.log")


@pytest.mark.heavy
@pytest.mark.timeout(400)
def test_scoring_goes_on_with_half_a_batch(world: dict[str, Any], trained: Path) -> None:
    file, model = world["root"] / "responses.jsonl", RewardModel.from_pretrained(trained)
    texts = [[long_text(number, 300), long_text(number + 3, 300)] for number in range(PAIRS)]
    rows = [{"prompt": f"what is {number}", "responses": own} for number, own in enumerate(texts)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = world["root"] / "scores.jsonl"
    done = command(world["root"], "score", SCORE, "score", file, "--model", trained, "--output", output)
    assert done.returncode == 0, done.stderr
    assert "this machine's memory does not suffice for a batch of " in done.stderr
    assert done.stderr.count("split in halves") == 1 and "64 of 64 responses scored" in done.stdout
    expected = model.score([{"turns": [{"role": "user", "text": row["prompt"]}]} for row in rows], texts)
    made = [json.loads(line)["scores"] for line in output.read_text().splitlines()]
    for scores, own in zip(made, expected, strict=True):
        assert scores == pytest.approx(own.tolist(), abs=1e-4)
    # The setting that the line names helps: the same memory, and nothing to split.
    small = command(
        world["root"], "score", SCORE, "score", file, "--model", trained, "--output", world["root"] / "small.jsonl",
        "--tokens-per-batch", 1024,
    )  # fmt: skip
    assert small.returncode == 0 and "split in halves" not in small.stderr, small.stderr
    assert "64 of 64 responses scored" in small.stdout
